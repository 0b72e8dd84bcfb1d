// expect: constraints not satisfied
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/tier.hpp"

using namespace terrace;

struct bits {
  static constexpr std::uint32_t format_id = 99;
};

#if defined(TERRACE_CONTROL)
using cold = tier<ram, q8_0>;
#else
using cold = tier<ram, bits>;
#endif
static_assert(is_tier<cold>);
