// expect: parallel_for needs a noexcept callable, as no thread could hand its exception back.
#include "terrace/execution/context.hpp"

using namespace terrace;

void zero(context& ctx, int* values) {
#if defined(TERRACE_CONTROL)
  ctx.parallel_for(100, [=](std::size_t i) noexcept { values[i] = 0; });
#else
  ctx.parallel_for(100, [=](std::size_t i) { values[i] = 0; });
#endif
}
