// expect: the last parameter of tiered_cache must be an eviction policy
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

#if defined(TERRACE_CONTROL)
using cache = tiered_cache<tier<ram>, lru>;
#else
using cache = tiered_cache<tier<ram>>;
#endif
static_assert(sizeof(cache) > 0);
