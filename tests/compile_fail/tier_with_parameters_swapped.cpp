// expect: constraints not satisfied
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/tier.hpp"

using namespace terrace;

#if defined(TERRACE_CONTROL)
using cold = tier<ram, q8_0>;
#else
using cold = tier<q8_0, ram>;
#endif
static_assert(is_tier<cold>);
