// What the policies of a cache are told of blocks: whether ghosts can work.
#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "cache/small_cache.hpp"
#include "catch.hpp"
#include "terrace/policy/two_queue.hpp"

using namespace terrace;

namespace {

// Notes all admissions and evictions, and is fifo otherwise.
struct telling_policy {
  static constexpr const char* name = "telling";
  struct event {
    std::uint32_t block;
    block_info info;
  };
  struct options {
    std::vector<std::vector<event>>* admitted = nullptr;  // of each tier
    std::vector<std::uint32_t>* evicted = nullptr;
  };
  using block_state = index_link;

  explicit telling_policy(options o) : evicted_(o.evicted) {
    if (o.admitted == nullptr) return;
    admitted_ = o.admitted;
    tier_ = admitted_->size();
    admitted_->emplace_back();
  }
  void bind(std::span<block_state> states) { links_ = states; }
  void admit(std::uint32_t i, const block_info& info) {
    if (admitted_ != nullptr) (*admitted_)[tier_].push_back({i, info});
    order_.push_back(links_, i);
  }
  void touch(std::uint32_t, const block_use&) {}
  void remove(std::uint32_t i) { order_.erase(links_, i); }
  void evict(std::uint32_t i) {
    if (evicted_ != nullptr && tier_ == 0) evicted_->push_back(i);
    remove(i);
  }
  std::uint32_t victim() { return order_.front(); }
  void advance_step(std::uint64_t) {}

 private:
  std::vector<std::vector<event>>* admitted_ = nullptr;
  std::vector<std::uint32_t>* evicted_;
  std::size_t tier_ = 0;
  std::span<block_state> links_;
  index_list order_;
};
static_assert(ghost_keeping_policy<telling_policy>);

struct told_cache {
  using type = tiered_cache<tier<ram>, tier<ram>, tier<scripted>, telling_policy>;
  context ctx{{.codec_threads = 0}};
  medium_script script;
  std::vector<std::vector<telling_policy::event>> admitted;
  std::vector<std::uint32_t> evicted;
  result<type> opened{type::open(ctx, pattern::layout(1), {.capacity = 4 * pattern::block_bytes},
                                 {.capacity = 16 * pattern::block_bytes},
                                 {.capacity = 64 * pattern::block_bytes, .script = &script},
                                 {.admitted = &admitted, .evicted = &evicted})};
};

}  // namespace

TEST_CASE(
    "policies are told a key of each block: not 0, its own, the same in every tier and when it comes back") {
  told_cache c;
  REQUIRE(c.opened);
  sequence text = c.opened->make_sequence();
  for (int n = 0; n < 30; ++n) REQUIRE(pattern::append(text, 16, 1, 1));
  const std::vector<block_id> ids = pattern::sealed(text, 0);
  for (int round = 0; round < 2; ++round)
    for (const block_id& id : ids) REQUIRE(c.ctx.sync_wait(c.opened->acquire({&id, 1})));

  std::map<std::uint32_t, std::uint64_t> key_of;
  std::set<std::uint64_t> keys;
  for (const auto& tier : c.admitted)
    for (const auto& [block, info] : tier) {
      CHECK(info.key != 0);
      CHECK(key_of.emplace(block, info.key).first->second == info.key);
      keys.insert(info.key);
    }
  CHECK(c.admitted[0].size() >= 2 * ids.size() - 8);
  CHECK_FALSE(c.admitted[1].empty());
  CHECK(keys.size() == ids.size());
  CHECK(c.evicted.size() >= 2 * ids.size() - 8);

  // Indices come back into use; keys do not.
  text.release();
  for (auto& tier : c.admitted) tier.clear();
  for (int n = 0; n < 8; ++n) REQUIRE(pattern::append(text, 16, 1, 1));
  REQUIRE(c.ctx.sync_wait(c.opened->flush()));
  REQUIRE_FALSE(c.admitted[0].empty());
  for (const auto& [block, info] : c.admitted[0]) {
    CHECK(key_of.count(block) == 1);
    CHECK(keys.count(info.key) == 0);
  }
}

TEST_CASE("policies are told the turn in which a block was written") {
  told_cache c;
  REQUIRE(c.opened);
  sequence text = c.opened->make_sequence();
  REQUIRE(pattern::append(text, 16, 1, 1));
  text.begin_turn();
  REQUIRE(pattern::append(text, 16, 1, 1));
  sequence other = c.opened->fork(text);
  other.begin_turn();
  REQUIRE(pattern::append(other, 16, 1, 1));
  REQUIRE(c.ctx.sync_wait(c.opened->flush()));
  std::map<std::uint32_t, std::uint32_t> turn_at;  // depth
  for (const auto& [block, info] : c.admitted[0]) turn_at[info.depth] = info.turn;
  CHECK(turn_at == std::map<std::uint32_t, std::uint32_t>{{0, 0}, {1, 1}, {2, 2}});
}

TEST_CASE("two_queue in a cache: what comes back while its key is remembered outlasts a scan") {
  small_cache<two_queue> c(9, 100);
  REQUIRE(c.append(60));
  REQUIRE(c.ctx.sync_wait(c.cache().flush()));
  const auto read = [&](std::size_t block) { REQUIRE(c.read(block)); };
  for (const std::size_t b : {8u, 9u}) read(b);
  for (std::size_t b = 20; c.in_tier_0(9); ++b) read(b);
  for (const std::size_t b : {8u, 9u}) read(b);
  for (std::size_t b = 30; b < 60; ++b) read(b);  // a scan three times as long as the tier
  CHECK(c.in_tier_0(8));
  CHECK(c.in_tier_0(9));
  CHECK_FALSE(c.in_tier_0(30));
}
