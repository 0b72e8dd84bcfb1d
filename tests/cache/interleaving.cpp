// The law of the cache: whatever the order of appends, acquires, releases, prefetches, forks, cuts, stops and failures,
// every block that is handed out is right, every other one is reported lost, and in the end everything has come back.
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/cache/acquire.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::uint32_t layers = 2;
using lossless = tiered_cache<tier<ram>, tier<ram>, tier<scripted>, lru>;
using far_only = tiered_cache<tier<ram>, tier<scripted>, tier<scripted>, lru>;

struct pending {
  struct receiver {
    using receiver_concept = ex::receiver_t;
    pending* p;
    void set_value(lease l) noexcept { p->held.emplace(std::move(l)); }
    void set_error(block_error e) noexcept { p->failure.emplace(std::move(e)); }
    void set_stopped() noexcept { p->stopped = true; }
    struct env {
      ex::inplace_stop_token token;
      ex::inplace_stop_token query(ex::get_stop_token_t) const noexcept { return token; }
    };
    env get_env() const noexcept { return {p->stop.get_token()}; }
  };
  pending(kv_store& cache, std::vector<block_id> wanted, std::uint32_t in_row, std::uint32_t tag_of,
          std::size_t first)
      : ids(std::move(wanted)),
        row(in_row),
        tag(tag_of),
        from(first),
        operation(cache.acquire(ids).connect(receiver{this})) {}
  bool done() const { return held || failure || stopped; }

  ex::inplace_stop_source stop;
  std::vector<block_id> ids;
  std::uint32_t row, tag;
  std::size_t from;
  std::optional<lease> held;
  std::optional<block_error> failure;
  bool stopped = false;
  acquire_sender::operation<receiver> operation;
};

void check(const layer_group& g, const pending& p, const lease& held) {
  for (std::size_t i = 0; i < held.size(); ++i) {
    if (held[i].data == nullptr) continue;
    REQUIRE(held[i].id == p.ids[i]);
    REQUIRE(pattern::holds(g, held[i].data, p.row, p.from + i, p.tag, 16));
  }
}

template <class Cache, class Open>
void run(unsigned seed, Open open) {
  std::mt19937 random(seed);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  context ctx{{.codec_threads = 0}};
  medium_script script;
  auto opened = open(ctx, script);
  REQUIRE(opened);
  Cache& cache = *opened;
  const layer_group& g = cache.layout().groups[0];
  {
    std::vector<std::pair<sequence, std::uint32_t>> sequences;  // and their tags
    std::deque<std::unique_ptr<pending>> asked;
    std::uint32_t tags = 0;
    for (int i = 0; i < 1500; ++i) {
      switch (below(13)) {
        case 0:
          if (sequences.size() < 4) sequences.emplace_back(cache.make_sequence(), ++tags);
          break;
        case 1:
        case 2:
          if (!sequences.empty()) {
            auto& [s, tag] = sequences[below(sequences.size())];
            script.hold = false;  // reserve may wait for a transfer
            script.release_all();
            const auto n = static_cast<std::uint32_t>(1 + below(40));
            auto r = s.reserve(n);
            if (!r) {
              REQUIRE(r.error().code == errc::out_of_capacity);
              break;
            }
            pattern::write(*r, layers, tag);
            s.commit(std::move(*r), static_cast<std::uint32_t>(below(n + 1)));
          }
          break;
        case 3:
        case 4:
        case 5:
          if (!sequences.empty()) {
            const auto& [s, tag] = sequences[below(sequences.size())];
            const auto row = static_cast<std::uint32_t>(below(layers));
            const auto ids = pattern::sealed(s, row);
            if (ids.empty()) break;
            const std::size_t first = below(ids.size());
            const std::size_t count = 1 + below(std::min<std::size_t>(4, ids.size() - first));
            asked.push_back(std::make_unique<pending>(
                cache,
                std::vector(ids.begin() + static_cast<std::ptrdiff_t>(first),
                            ids.begin() + static_cast<std::ptrdiff_t>(first + count)),
                row, tag, first));
            asked.back()->operation.start();
          }
          break;
        case 6:
          if (!asked.empty()) {
            auto& p = *asked[below(asked.size())];
            if (p.done()) break;
            p.stop.request_stop();
          }
          break;
        case 7:
          if (!sequences.empty()) {
            const auto ids = pattern::sealed(sequences[below(sequences.size())].first, 0);
            cache.prefetch(ids);
          }
          break;
        case 8:
          if (!sequences.empty() && below(3) == 0) {
            auto& [s, tag] = sequences[below(sequences.size())];
            if (below(2) == 0)
              s.release();
            else
              s.forget(0, below(60));
          }
          break;
        case 9:
          script.hold = below(2) == 0;
          if (below(3) == 0) script.fail_reads = static_cast<unsigned>(below(2));
          if (below(3) == 0) script.fail_writes = static_cast<unsigned>(below(3));
          break;
        case 11:
          if (!sequences.empty()) {
            const hint all[]{hint::hot(), hint::evictable(), hint::priority(0),
                             hint::prefetchable(static_cast<std::uint64_t>(i) + below(20)),
                             hint::ttl(static_cast<std::uint64_t>(i) + below(20))};
            const std::uint64_t first = below(100);
            static_cast<void>(
                sequences[below(sequences.size())].first.hint(first, first + below(100), all[below(5)]));
          }
          break;
        case 10:
          cache.advance_step(static_cast<std::uint64_t>(i));
          script.release_all();
          ctx.poll();
          break;
        default:
          ctx.poll();
      }
      for (std::size_t k = 0; k < asked.size();) {
        pending& p = *asked[k];
        if (!p.done()) {
          ++k;
          continue;
        }
        if (p.held) check(g, p, *p.held);
        if (p.failure) {
          const bool known = p.failure->code == errc::lost || p.failure->code == errc::out_of_capacity;
          REQUIRE(known);
          check(g, p, p.failure->rest);
        }
        if (below(2) == 0)
          asked.erase(asked.begin() + static_cast<std::ptrdiff_t>(k));
        else
          ++k;
      }
    }
    script.hold = false;
    script.fail_reads = script.fail_writes = 0;
    while (std::any_of(asked.begin(), asked.end(), [](const auto& p) { return !p->done(); })) {
      script.release_all();
      ctx.poll();
    }
  }
  while (script.in_flight != 0 || !ctx.idle()) {
    script.release_all();
    ctx.poll();
  }
  const cache_stats end = cache.stats();
  CHECK(end.pins == 0);
  CHECK(end.blocks == 0);
  for (const tier_stats& t : end.tiers) CHECK(t.resident_bytes == 0);
  CHECK(end.staging_bytes == 0);
}

// Whether the middle tier keeps what tier 0 holds, and whether transfers that hang are given up.
cache_options tuned(inclusion i, bool impatient) {
  cache_options o;
  o.transfers.inclusions[1] = i;
  if (impatient) o.transfers.deadline = std::chrono::milliseconds(0);
  return o;
}

}  // namespace

TEST_CASE("any interleaving leaves every block right or lost, and leaks nothing") {
  const inclusion i = GENERATE(inclusion::inclusive, inclusion::exclusive);
  const bool impatient = GENERATE(false, true);
  for (unsigned seed = 0; seed < 12; ++seed) {
    CAPTURE(seed, static_cast<int>(i), impatient);
    run<lossless>(seed, [&](context& ctx, medium_script& script) {
      return lossless::open(ctx, pattern::layout(layers), {.capacity = 14 * pattern::block_bytes},
                            {.capacity = 6 * pattern::block_bytes},
                            {.capacity = 24 * pattern::block_bytes, .script = &script}, {},
                            tuned(i, impatient));
    });
    run<far_only>(seed, [&](context& ctx, medium_script& script) {
      return far_only::open(ctx, pattern::layout(layers), {.capacity = 12 * pattern::block_bytes},
                            {.capacity = 8 * pattern::block_bytes, .script = &script},
                            {.capacity = 16 * pattern::block_bytes, .script = &script}, {},
                            tuned(i, impatient));
    });
  }
}
