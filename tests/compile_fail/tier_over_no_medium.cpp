// expect: constraints not satisfied
#include "terrace/medium/ram.hpp"
#include "terrace/tier.hpp"

using namespace terrace;

struct file_handle {
  result<void> read(extent, mutable_bytes);
  result<void> write(extent, const_bytes);
};

#if defined(TERRACE_CONTROL)
using cold = tier<ram>;
#else
using cold = tier<file_handle>;
#endif
static_assert(is_tier<cold>);
