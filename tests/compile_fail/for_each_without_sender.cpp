// expect: The callable of for_each must return a sender.
#include "terrace/execution/for_each.hpp"

using namespace terrace;

auto work() {
#if defined(TERRACE_CONTROL)
  return for_each(10, 2, [](std::size_t) noexcept { return ex::just(); });
#else
  return for_each(10, 2, [](std::size_t) noexcept {});
#endif
}
