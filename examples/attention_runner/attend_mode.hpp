#pragma once
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>

#include "runner_error.hpp"

namespace runner {

/// Which blocks attention reads: what --attend says.
struct attend_mode {
  enum class choice : std::uint8_t { dense, top_k, certified };
  choice how = choice::dense;
  std::uint32_t k = 0;         ///< of top_k: blocks for each query head
  double eps = 0;              ///< of certified: the share of the softmax mass that a query head may miss
  std::string name = "dense";  ///< as it was given

  bool selects() const noexcept { return how != choice::dense; }
};

/// Reads dense, top-k=N or certified=EPS.
inline outcome<attend_mode> parse_attend(const std::string& text) {
  const auto number_behind = [&](std::string_view prefix, auto& number) {
    const std::string_view rest = std::string_view(text).substr(prefix.size());
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
    return error == std::errc{} && end == rest.data() + rest.size();
  };
  constexpr std::string_view top_k = "top-k=", certified = "certified=";
  attend_mode mode{.name = text};
  if (text == "dense") return mode;
  if (text.starts_with(top_k)) {
    mode.how = attend_mode::choice::top_k;
    if (!number_behind(top_k, mode.k) || mode.k == 0)
      return refuse("--attend top-k=N needs a number of blocks of at least 1, not " + in_quotes(text));
    return mode;
  }
  if (text.starts_with(certified)) {
    mode.how = attend_mode::choice::certified;
    if (!number_behind(certified, mode.eps) || !(mode.eps > 0 && mode.eps < 1))
      return refuse("--attend certified=EPS needs a share between 0 and 1, neither of them, not " +
                    in_quotes(text));
    return mode;
  }
  return refuse("--attend knows dense, top-k=N and certified=EPS, not " + in_quotes(text));
}

}  // namespace runner
