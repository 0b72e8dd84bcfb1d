// expect: the first tier holds blocks as the engine writes them: it needs an addressable medium and no codec
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

#if defined(TERRACE_CONTROL)
using cache = tiered_cache<tier<ram>, tier<nvme>, lru>;
#else
using cache = tiered_cache<tier<nvme>, tier<nvme>, lru>;
#endif
static_assert(sizeof(cache) > 0);
