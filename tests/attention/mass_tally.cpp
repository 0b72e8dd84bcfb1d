#include "terrace/attention/mass_tally.hpp"

#include <cmath>
#include <random>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/attention_weighted.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

TEST_CASE("shares of blocks are those of a float64 softmax, and sum to one") {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  constexpr std::size_t blocks = 50, rows = 3, keys = 8;
  for (const double spread : {0.1, 3.0, 40.0}) {
    mass_tally tally;
    tally.reset(blocks, rows);
    partial_state state;
    REQUIRE(state.reset(rows, 4));
    std::vector<double> logits(blocks * rows * keys);
    for (double& x : logits) x = static_cast<float>(spread * normal(random));
    std::vector<double> expected(blocks, 0.0);
    for (std::size_t row = 0; row < rows; ++row) {
      double largest = -1e300, sum = 0;
      for (std::size_t b = 0; b < blocks; ++b)
        for (std::size_t k = 0; k < keys; ++k)
          largest = std::max(largest, logits[(b * rows + row) * keys + k]);
      for (std::size_t b = 0; b < blocks; ++b)
        for (std::size_t k = 0; k < keys; ++k) sum += std::exp(logits[(b * rows + row) * keys + k] - largest);
      for (std::size_t b = 0; b < blocks; ++b) {
        softmax_row part;
        for (std::size_t k = 0; k < keys; ++k) {
          const double x = logits[(b * rows + row) * keys + k];
          expected[b] += std::exp(x - largest) / sum / rows;
          part = merge(part, {static_cast<float>(x), 1}).row;
        }
        const softmax_row merged = merge(state.scalars(row), part).row;
        state.m(row) = merged.m;
        state.l(row) = merged.l;
        tally.note(b, state, row);
      }
    }
    double sum = 0;
    for (std::size_t b = 0; b < blocks; ++b) {
      CHECK(std::abs(static_cast<double>(tally.share(b, state)) - expected[b]) < 1e-5);
      sum += static_cast<double>(tally.share(b, state));
    }
    CHECK(sum == Approx(1).epsilon(1e-5));
  }
}

TEST_CASE("rows that saw no key have no say") {
  mass_tally tally;
  tally.reset(2, 2);
  partial_state state;
  REQUIRE(state.reset(2, 1));
  tally.note(0, state, 0);
  tally.note(0, state, 1);
  state.m(1) = 2;
  state.l(1) = 1;
  tally.note(1, state, 0);
  tally.note(1, state, 1);
  CHECK(tally.share(0, state) == 0);
  CHECK(tally.share(1, state) == 0.5f);
}

namespace {

constexpr std::uint32_t dim = 64, blocks = 12, loved = 2;

// One layer whose block `loved` draws nearly all attention of the query (1, 0, 0, ...): streams the row at every
// step and says whether that block was still in tier 0 at each step's beginning.
template <class Policy>
unsigned steps_that_found_it(std::size_t slots) {
  using cache_type = tiered_cache<tier<ram>, tier<scripted>, Policy>;
  medium_script script;
  context ctx{{.codec_threads = 0}};
  auto cache = cache_type::open(ctx, pattern::layout(1), {.capacity = slots * pattern::block_bytes},
                                {.capacity = 64 * pattern::block_bytes, .script = &script});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (std::uint32_t b = 0; b < blocks; ++b) {
    auto r = s.reserve(16);
    REQUIRE(r);
    for (std::uint32_t t = 0; t < 16; ++t)
      for (std::uint32_t d = 0; d < dim; ++d) {
        r->k(0).template row<fp16>(t, 0)[d] = to_fp16(d == 0 && b == loved ? 60.0f : 0.0f);
        r->v(0).template row<fp16>(t, 0)[d] = to_fp16(1);
      }
    s.commit(std::move(*r), 16);
  }
  REQUIRE(ctx.sync_wait(cache->flush()));
  const block_id id = s.pages().rows[0][loved];
  std::vector<float> query(dim, 0.0f), out(dim);
  query[0] = 1;
  unsigned found = 0;
  for (std::uint64_t step = 1; step <= 60; ++step) {
    cache->advance_step(step);
    found += cache->control().copy(id.index, 0).now() == block_copy::state::resident ? 1 : 0;
    auto r = s.reserve(1);
    REQUIRE(r);
    for (std::uint32_t d = 0; d < dim; ++d)
      r->k(0).template row<fp16>(0, 0)[d] = r->v(0).template row<fp16>(0, 0)[d] = fp16{};
    REQUIRE(ctx.sync_wait(stream(*cache, s, *r, 0, query, out)));
    CHECK(out[0] == Approx(1).margin(0.1));
    // Other traffic: every block is brought to tier 0 as the engine wrote it, one after the other.
    for (const block_id other : pattern::sealed(s, 0)) REQUIRE(ctx.sync_wait(cache->acquire({&other, 1})));
  }
  return found;
}

}  // namespace

TEST_CASE("the policy is told what attention looked at: the block that draws it all stays") {
  CHECK(steps_that_found_it<attention_weighted>(6) > 50);
  CHECK(steps_that_found_it<lru>(6) < 10);
}
