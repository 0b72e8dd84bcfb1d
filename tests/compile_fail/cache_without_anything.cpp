// expect: a tiered_cache needs at least one tier, and an eviction policy as its last parameter
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

#if defined(TERRACE_CONTROL)
using cache = tiered_cache<tier<ram>, lru>;
#else
using cache = tiered_cache<>;
#endif
static_assert(sizeof(cache) > 0);
