#pragma once
#include <algorithm>
#include <cstddef>
#include <functional>

namespace runner {

/// Calls body(0) .. body(n - 1), each once, in any order and on any threads, and returns when all have
/// returned. The body throws nothing. What is computed never depends on who computes it.
using parallel_for = std::function<void(std::size_t n, const std::function<void(std::size_t)>& body)>;

/// Everything on the calling thread.
inline void serial_for(std::size_t n, const std::function<void(std::size_t)>& body) {
  for (std::size_t i = 0; i < n; ++i) body(i);
}

/// Calls body(begin, end) over pieces of [0, n) of at most `grain` each; a single piece stays on this thread.
template <class Body>
void for_pieces(const parallel_for& parallel, std::size_t n, std::size_t grain, const Body& body) {
  if (n <= grain) return n == 0 ? void() : body(std::size_t{0}, n);
  const auto piece = [&](std::size_t i) { body(i * grain, std::min(n, (i + 1) * grain)); };
  parallel((n + grain - 1) / grain,
           std::cref(piece));  // by reference: a std::function that allocates nothing
}

}  // namespace runner
