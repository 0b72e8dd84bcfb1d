// expect: a tiered_cache has at most six tiers
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

#if defined(TERRACE_CONTROL)
using cache = tiered_cache<tier<ram>, tier<ram>, tier<ram>, tier<ram>, tier<ram>, tier<ram>, lru>;
#else
using cache = tiered_cache<tier<ram>, tier<ram>, tier<ram>, tier<ram>, tier<ram>, tier<ram>, tier<ram>, lru>;
#endif
static_assert(sizeof(cache) > 0);
