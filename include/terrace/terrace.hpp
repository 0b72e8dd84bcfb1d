#pragma once
// Terrace, all that needs nothing but the standard library. Start reading at tiered_cache.hpp.
#include "terrace/attention/stream.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/prefetch/layer_ahead.hpp"
#include "terrace/tiered_cache.hpp"
