#pragma once
#include <string>
#include <string_view>
#include <utility>

#include "terrace/core/result.hpp"

namespace runner {

/// Why the runner stops: one sentence for standard error, and the program's exit status.
struct runner_error {
  std::string sentence;
  int exit_code = 2;  ///< 2: what the user gave cannot be used; 1: it could, and the run failed
};

/// A value, or the sentence that says why there is none.
template <class T>
using outcome = terrace::basic_result<T, runner_error>;

/// `return refuse("config.json gives no hidden_size")`: the user's input cannot be used.
inline terrace::failure<runner_error> refuse(std::string sentence) {
  return terrace::failure<runner_error>{runner_error{std::move(sentence), 2}};
}

/// Hands a refusal on.
inline terrace::failure<runner_error> refuse(runner_error why) {
  return terrace::failure<runner_error>{std::move(why)};
}

/// A name out of a file, made safe to print: in quotes, at most 80 bytes, without control characters, so that a
/// hostile file cannot write to the user's terminal.
inline std::string in_quotes(std::string_view name) {
  constexpr std::size_t longest = 80;
  std::string out = "\"";
  for (const char c : name.substr(0, longest)) {
    const bool plain = c >= ' ' && c <= '~' && c != '"' && c != '\\';
    out += plain ? c : '?';
  }
  out += name.size() > longest ? "...\"" : "\"";
  return out;
}

}  // namespace runner
