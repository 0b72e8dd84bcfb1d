// expect: the last parameter of tiered_cache must be an eviction policy
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

#if defined(TERRACE_CONTROL)
using cache = tiered_cache<tier<ram>, tier<ram, q8_0>, lru>;
#else
using cache = tiered_cache<tier<ram>, tier<ram, q8_0>>;
#endif
static_assert(sizeof(cache) > 0);
