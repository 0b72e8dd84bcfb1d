// expect: every parameter of tiered_cache but the last must be a tier
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

#if defined(TERRACE_CONTROL)
using cache = tiered_cache<tier<ram>, tier<nvme>, lru>;
#else
using cache = tiered_cache<tier<ram>, nvme, lru>;
#endif
static_assert(sizeof(cache) > 0);
