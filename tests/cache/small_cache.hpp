#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/cache/acquire.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/testing/virtual_clock.hpp"
#include "terrace/tiered_cache.hpp"

/// One layer, a few slots in tier 0, and a tier below that does what a script says.
template <class Policy = terrace::lru>
struct small_cache {
  using type = terrace::tiered_cache<terrace::tier<terrace::ram>, terrace::tier<terrace::scripted>, Policy>;

  small_cache(std::size_t slots, std::size_t below, terrace::cache_options tuning = {})
      : opened(type::open(ctx, pattern::layout(1), {.capacity = slots * pattern::block_bytes},
                          {.capacity = below * pattern::block_bytes, .script = &script}, {}, tuning)) {
    REQUIRE(opened);
    tokens.emplace(cache().make_sequence());
  }
  type& cache() { return *opened; }

  /// Appends so many blocks; false where there is no room.
  bool append(std::uint32_t blocks) {
    for (std::uint32_t i = 0; i < blocks; ++i)
      if (!pattern::append(*tokens, 16, 1, 1)) return false;
    return true;
  }
  std::vector<terrace::block_id> ids() const { return pattern::sealed(*tokens, 0); }
  /// Brings a block, looks at every byte, and lets it go.
  bool read(std::size_t block) {
    const std::vector<terrace::block_id> all = ids();
    auto held = ctx.sync_wait(cache().acquire(std::span(all).subspan(block, 1)));
    return held && pattern::holds(cache().layout().groups[0], (*held)[0].data, 0, block, 1, 16);
  }
  /// Writes what `append` wrote into that block.
  void write(const terrace::mutable_bytes& to, std::size_t block) {
    const terrace::layer_group& g = cache().layout().groups[0];
    for (const bool values : {false, true}) {
      const terrace::plane& p = values ? g.v : g.k;
      for (std::uint32_t t = 0; t < g.tokens; ++t)
        for (std::uint32_t d = 0; d < p.dim; ++d) {
          const terrace::fp16 x = pattern::element_at(1, 0, values, 0, block * g.tokens + t, d);
          std::memcpy(
              to.data() + (values ? g.v_offset() : g.k_offset()) + t * g.token_stride(p) + d * sizeof x, &x,
              sizeof x);
        }
    }
  }
  bool in_tier_0(std::size_t block) { return copy(block, 0) == terrace::block_copy::state::resident; }
  terrace::block_copy::state copy(std::size_t block, std::size_t tier) {
    return cache().control().copy(ids()[block].index, tier).now();
  }
  /// Lets everything that is on its way arrive.
  void settle() {
    while (script.in_flight != 0 || !ctx.idle()) {
      script.release_all();
      ctx.poll();
    }
  }

  terrace::virtual_clock clock;  // a deadline passes when all there is to do is to wait for it
  terrace::context ctx{{.codec_threads = 0, .time = &clock}};
  terrace::medium_script script;
  terrace::result<type> opened;
  std::optional<terrace::sequence> tokens;
};

/// Six slots. All blocks are sealed, and none can leave before the device below has taken one.
struct full_cache : small_cache<> {
  full_cache() : small_cache<>(6, 64) {
    script.hold = true;
    REQUIRE(append(6));
    while (script.in_flight == 0) ctx.poll();
  }
  std::uint64_t pins() { return cache().stats().pins; }
};
