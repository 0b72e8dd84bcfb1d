// expect: a tiered_cache needs at least one tier before its eviction policy
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

#if defined(TERRACE_CONTROL)
using cache = tiered_cache<tier<ram>, lru>;
#else
using cache = tiered_cache<lru>;
#endif
static_assert(sizeof(cache) > 0);
