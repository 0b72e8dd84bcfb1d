#pragma once
#include <malloc.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/terrace.hpp"
#include "terrace/testing/scripted.hpp"
#include "tokens.hpp"

namespace soak {

using soaked_cache = tiered_cache<tier<ram>, tier<ram>, tier<scripted>, tier<nvme>, tier<directory>, lru>;
inline constexpr std::size_t hot = 48_MiB, warm = 16_MiB;

/// What was done, and what came of it.
struct counts {
  std::uint64_t steps = 0, tokens = 0, verified = 0, wrong = 0, lost = 0, refused = 0, flushes = 0,
                failed_flushes = 0;
  std::uint64_t failed_reads = 0, failed_writes = 0, flipped_bits = 0, stalls = 0, forks = 0, cuts = 0,
                resizes = 0;
};

/// The mixed load, a step at a time. Everything follows from the seed, but for when transfers complete.
class mixed_load {
 public:
  mixed_load(context& ctx, soaked_cache& cache, medium_script& script, std::uint64_t seed)
      : context_(ctx), cache_(cache), script_(script), random_(seed) {}

  counts done;

  void step() {
    ++done.steps;
    cache_.advance_step(done.steps);
    inject();
    switch (below(16)) {
      case 0:
        return below(200) == 0 ? start() : append();
      case 1:
        return below(200) == 0 ? fork() : append();
      case 2:
        return cut();
      case 3:
        return forget_front();
      case 4:
        return prefetch();
      case 5:
        return below(8) == 0 ? flush() : void();
      case 6:
        return below(8) == 0 ? resize() : void();
      case 7:
        return name();
      case 8:
        return look_up();
      case 9:
        if (!held_.empty()) held_.pop_front();
        return;
      case 10:
      case 11:
      case 12:
        return read();
      default:
        return append();
    }
  }

  /// Ends what is held and what fails, and touches all of memory: what is resident then can be compared with what was
  /// at another such moment.
  void settle() {
    held_.clear();
    script_.hold = false;
    script_.release_all();
    script_.fail_reads = script_.fail_writes = script_.flip_reads = 0;
    static_cast<void>(cache_.resize(0, hot));
    static_cast<void>(cache_.resize(1, warm));
    {
      std::vector<std::uint32_t> tags(tokens_a_block, 1);
      std::vector<sequence> scratch;
      for (std::size_t blocks = 0; blocks < 2 * (hot + warm) / layout.largest_block(); blocks += layers) {
        scratch.push_back(cache_.make_sequence());
        auto r = scratch.back().reserve(tokens_a_block);
        if (!r) break;
        fill(*r, tags);
        scratch.back().commit(std::move(*r), tokens_a_block);
      }
    }
    static_cast<void>(context_.sync_wait(cache_.flush()));
    ::malloc_trim(0);
  }
  /// Lets everything go.
  void end() {
    held_.clear();
    conversations_.clear();
    while (!names_.empty()) drop_name(names_.begin()->first);
    script_.hold = false;
    script_.release_all();
    static_cast<void>(context_.sync_wait(cache_.flush()));
  }

 private:
  struct conversation {
    sequence tokens;
    std::vector<std::uint32_t> tags;
  };
  struct named {
    std::uint32_t layer;
    std::vector<std::uint32_t> tags;
  };

  std::size_t below(std::size_t n) { return random_() % n; }
  conversation* any() {
    return conversations_.empty() ? nullptr : &conversations_[below(conversations_.size())];
  }

  // One step in a hundred has a fault; a stall holds transfers until some steps later, or beyond their deadline.
  void inject() {
    if (script_.hold && below(20) == 0) {
      script_.hold = false;
      script_.release_all();
    }
    if (below(100) != 0) return;
    switch (below(8)) {
      case 0:
        if (below(8) != 0) return;
        script_.hold = true;
        ++done.stalls;
        return;
      case 1:
      case 2:
        ++script_.flip_reads;
        ++done.flipped_bits;
        return;
      case 3:
      case 4:
      case 5:
        ++script_.fail_reads;
        ++done.failed_reads;
        return;
      default:
        ++script_.fail_writes;
        ++done.failed_writes;
    }
  }

  void drop_any() {
    if (!conversations_.empty())
      conversations_.erase(conversations_.begin() +
                           static_cast<std::ptrdiff_t>(below(conversations_.size())));
  }
  void start() {
    if (conversations_.size() >= 24) drop_any();
    conversations_.push_back({cache_.make_sequence(), {}});
  }
  void fork() {
    if (conversations_.size() >= 24) drop_any();
    const conversation* const c = any();
    if (c == nullptr) return;
    ++done.forks;
    conversation copy{cache_.fork(c->tokens), c->tags};
    conversations_.push_back(std::move(copy));
  }
  void append() {
    conversation* const c = conversations_.size() < 12 ? nullptr : any();
    if (c == nullptr) return start();
    const auto count = static_cast<std::uint32_t>(below(4) == 0 ? below(200) + 1 : below(20) + 1);
    if (c->tags.size() + count > 8000) return drop_any();
    auto r = c->tokens.reserve(count);
    if (!r) {
      ++done.refused;
      return drop_any();
    }
    for (std::uint32_t i = 0; i < count; ++i) c->tags.push_back(static_cast<std::uint32_t>(random_()));
    fill(*r, c->tags);
    const auto keep = static_cast<std::uint32_t>(below(5) == 0 ? below(count + 1) : count);
    c->tokens.commit(std::move(*r), keep);
    c->tags.resize(c->tags.size() - count + keep);
    done.tokens += keep;
  }
  void cut() {
    conversation* const c = any();
    if (c == nullptr || c->tags.empty()) return;
    const std::size_t most = below(50) == 0 ? c->tags.size() : std::min<std::size_t>(c->tags.size(), 40);
    cut_to(*c, c->tags.size() - below(most + 1));
  }
  void cut_to(conversation& c, std::size_t tokens) {
    if (!c.tokens.truncate(tokens)) return;
    c.tags.resize(tokens);
    ++done.cuts;
  }
  void forget_front() {
    conversation* const c = any();
    if (c == nullptr || below(40) != 0) return;
    c->tokens.forget(0, below(c->tags.size() + 1));
  }
  void prefetch() {
    const conversation* const c = any();
    if (c == nullptr) return;
    static_cast<void>(
        cache_.prefetch(ids_of(*c, static_cast<std::uint32_t>(below(layers)), below(c->tags.size() + 1), 8)));
  }
  void flush() { ++(context_.sync_wait(cache_.flush()) ? done.flushes : done.failed_flushes); }
  void resize() {
    ++done.resizes;
    const std::size_t tier = below(2);
    static_cast<void>(cache_.resize(tier, (tier == 0 ? hot : warm) / 8 * (below(5) + 4)));
  }

  // The sealed blocks of a row from a position on, as far as they are not forgotten.
  std::vector<block_id> ids_of(const conversation& c, std::uint32_t layer, std::size_t position,
                               std::size_t most) const {
    std::vector<block_id> ids;
    const page_table& pages = c.tokens.pages();
    for (std::size_t i = position / tokens_a_block; i < pages.sealed(layer) && ids.size() < most; ++i) {
      if (!pages.rows[layer][i].valid()) break;
      ids.push_back(pages.rows[layer][i]);
    }
    return ids;
  }
  void read() {
    conversation* const c = any();
    if (c == nullptr || c->tags.empty()) return;
    const auto layer = static_cast<std::uint32_t>(below(layers));
    const std::size_t first = below(c->tags.size()) / tokens_a_block;
    const auto ids = ids_of(*c, layer, first * tokens_a_block, below(16) + 1);
    if (ids.empty()) return;
    auto held = context_.sync_wait(cache_.acquire(ids));
    if (!held) return recover(*c, first, ids, held.error());
    for (std::size_t i = 0; i < ids.size(); ++i)
      check((*held)[i].data, layer, &c->tags[(first + i) * tokens_a_block]);
    if (below(4) == 0) held_.push_back(std::move(*held));
    if (held_.size() > 8) held_.pop_front();
  }
  // A lost block would be computed anew: everything from it on is.
  template <class Error>
  void recover(conversation& c, std::size_t first, const std::vector<block_id>& ids, const Error& why) {
    if (why.lost.empty()) {
      ++done.refused;
      return held_.clear();
    }
    done.lost += why.lost.size();
    for (std::size_t i = 0; i < ids.size(); ++i)
      for (const lost_block& l : why.lost)
        if (l.id == ids[i]) return cut_to(c, (first + i) * tokens_a_block);
  }
  void check(const std::byte* data, std::uint32_t layer, const std::uint32_t* tags) {
    ++done.verified;
    if (holds(data, layer, tags)) return;
    ++done.wrong;
    std::fprintf(stderr, "soak: step %llu: a block is wrong\n", static_cast<unsigned long long>(done.steps));
  }

  void name() {
    const conversation* const c = any();
    if (c == nullptr || c->tags.size() < tokens_a_block) return;
    if (names_.size() >= 400)
      drop_name(std::next(names_.begin(), static_cast<std::ptrdiff_t>(below(names_.size())))->first);
    const auto layer = static_cast<std::uint32_t>(below(layers));
    const std::size_t block = below(c->tags.size() / tokens_a_block);
    const auto ids = ids_of(*c, layer, block * tokens_a_block, 1);
    const std::uint64_t key = ++next_name_ % 600 + 1;  // keys are used again
    if (ids.empty() || names_.contains(key) || !cache_.name(ids[0], {.low = key, .high = 1})) return;
    const auto from = c->tags.begin() + static_cast<std::ptrdiff_t>(block * tokens_a_block);
    names_[key] = {layer, {from, from + tokens_a_block}};
  }
  void drop_name(std::uint64_t key) {
    cache_.forget({.low = key, .high = 1});
    names_.erase(key);
  }
  void look_up() {
    if (names_.empty()) return;
    const auto& [key, what] = *std::next(names_.begin(), static_cast<std::ptrdiff_t>(below(names_.size())));
    const auto id = cache_.find({.low = key, .high = 1});
    if (!id) {
      ++done.wrong;
      std::fprintf(stderr, "soak: a name is gone\n");
      return;
    }
    const auto held = context_.sync_wait(cache_.acquire({&*id, 1}));
    if (held) return check((*held)[0].data, what.layer, what.tags.data());
    if (held.error().lost.empty()) {
      ++done.refused;
      return held_.clear();
    }
    ++done.lost;
    drop_name(key);
  }

  context& context_;
  soaked_cache& cache_;
  medium_script& script_;
  std::mt19937_64 random_;
  std::vector<conversation> conversations_;
  std::map<std::uint64_t, named> names_;
  std::uint64_t next_name_ = 0;
  std::deque<lease> held_;
};

}  // namespace soak
