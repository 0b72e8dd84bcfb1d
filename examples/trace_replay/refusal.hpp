#pragma once
#include <string>
#include <utility>

#include "terrace/core/result.hpp"

namespace replay {

/// Why the program stops: one sentence for standard error, and its exit status.
struct refusal {
  std::string sentence;
  int exit_code = 2;  ///< 2: the arguments cannot be used; 1: they can, and what they name cannot
};

/// A value, or the sentence that says why there is none.
template <class T>
using outcome = terrace::basic_result<T, refusal>;

inline terrace::failure<refusal> refuse(std::string sentence, int exit_code = 2) {
  return terrace::failure<refusal>{refusal{std::move(sentence), exit_code}};
}

}  // namespace replay
