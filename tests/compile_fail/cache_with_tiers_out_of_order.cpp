// expect: tiers must be listed nearest first: a tier that attention can read may not follow one that it cannot
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

#if defined(TERRACE_CONTROL)
using cache = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<nvme>, lru>;
#else
using cache = tiered_cache<tier<ram>, tier<nvme>, tier<ram, q8_0>, lru>;
#endif
static_assert(sizeof(cache) > 0);
