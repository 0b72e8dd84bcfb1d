#pragma once
// What the tests of batches share: sequences that grow, and attention of a batch and of each sequence alone.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/stream_fixture.hpp"
#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/attend_batch.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/batch.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

namespace batch_test {

using namespace terrace;

using stream_test::dim, stream_test::layers, stream_test::q_heads, stream_test::queries;
using stream_test::resident, stream_test::ladder, stream_test::over_script;

inline constexpr std::size_t block = pattern::block_bytes;
using to_disk = tiered_cache<tier<ram>, tier<nvme>, lru>;

// A batch, its sequences, and what it is attended with.
struct requests {
  std::vector<sequence> sequences;
  std::vector<query_tile> queries;
  std::vector<partial_state> states;

  std::vector<sequence*> pointers() {
    std::vector<sequence*> all;
    for (sequence& s : sequences) all.push_back(&s);
    return all;
  }
  void make_tiles() {
    queries = std::vector<query_tile>(sequences.size());
    states = std::vector<partial_state>(sequences.size());
  }
};

// Attention of the batch's new tokens in one layer, through its windows; how many there were.
inline std::size_t attend_all(context& ctx, batch& b, requests& r, std::uint32_t layer,
                              const std::vector<float>& q, std::vector<float>& out,
                              lease_form form = lease_form::raw) {
  r.make_tiles();
  REQUIRE(load(b, layer, q, r.queries, r.states));
  std::size_t windows = 0;
  while (auto window = ctx.sync_wait(b.next(layer, form))) {
    if (window->empty()) {
      REQUIRE(finish(r.states, out));
      return windows;
    }
    ++windows;
    attend(*window, r.queries, r.states);
  }
  FAIL("a window could not be had");
  return windows;
}

// The same by streaming each sequence alone.
inline std::vector<float> stream_each(context& ctx, kv_store& cache, const batch& b, const requests& r,
                                      std::uint32_t layer, const std::vector<float>& q) {
  std::vector<float> all(q.size());
  std::size_t at = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    if (b.new_tokens(i) == 0) continue;
    const std::size_t count = std::size_t{b.new_tokens(i)} * q_heads * dim;
    const auto out = std::span(all).subspan(at, count);
    REQUIRE(ctx.sync_wait(
        stream(cache, r.sequences[i], b.reserved(i), layer, std::span(q).subspan(at, count), out)));
    at += count;
  }
  return all;
}

// Appends tokens a block at a time, so that tier 0 need not hold them all.
inline void grow(sequence& s, std::uint32_t tokens, std::uint32_t tag, std::uint32_t in_layers = layers) {
  for (std::uint32_t done = 0; done < tokens; done += 16)
    REQUIRE(pattern::append(s, std::min(16u, tokens - done), in_layers, tag));
}

inline std::vector<std::uint32_t> ones(std::size_t n) { return std::vector<std::uint32_t>(n, 1); }

inline void write_all(const batch& b, std::uint32_t tag) {
  for (std::size_t i = 0; i < b.size(); ++i)
    if (b.new_tokens(i) != 0) pattern::write(b.reserved(i), layers, tag + static_cast<std::uint32_t>(i));
}

template <class Cache>
void settle(context& ctx, Cache& cache) {
  static_cast<void>(ctx.sync_wait(cache.flush()));
  while (!ctx.idle()) ctx.poll();
}

// Pushes everything out of tier 0 that may leave.
inline void fill_tier_0(context& ctx, kv_store& cache, const std::vector<block_id>& with) {
  for (const block_id id : with) REQUIRE(ctx.sync_wait(cache.acquire({&id, 1})));
  settle(ctx, cache);
}

}  // namespace batch_test
