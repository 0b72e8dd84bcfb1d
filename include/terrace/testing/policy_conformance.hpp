#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "terrace/core/index_list.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// How thoroughly `policy_conformance` looks.
struct policy_conformance_options {
  std::uint32_t seed = 1;
  std::uint32_t blocks = 300;  ///< final size of the array of states; it grows twice until then
  unsigned calls = 20000;      ///< random ones, for each size of the array
  /// How often the program has allocated so far, if a test can tell (by an operator new of its own).
  std::uint64_t (*allocations)() = nullptr;
};

namespace detail {

/// Drives a policy as a cache does, alongside a plain set of the blocks in its charge. Nothing in here allocates
/// between two calls of bind, so every allocation there is the policy's.
template <eviction_policy P>
class policy_examination {
 public:
  // The sentences are literals: a verdict allocates nothing either.
  using verdict = const char*;

  policy_examination(typename P::options o, const policy_conformance_options& how)
      : policy_(std::move(o)),
        how_(how),
        random_(how.seed),
        in_charge_(how.blocks, false),
        known_(how.blocks, false),
        states_(how.blocks / 4 + 1) {}

  verdict run() {
    if (std::string_view(P::name).empty()) return "a policy has a name";
    bind();
    if (policy_.victim() != index_link::none) return "nobody is the victim where nobody is in charge";
    for (const std::size_t size : {states_.size(), std::size_t{how_.blocks / 2 + 1}, in_charge_.size()}) {
      if (size > in_charge_.size() || size < states_.size()) continue;
      states_.resize(size);  // the books come along, while blocks are in charge
      bind();
      for (unsigned call = 0; call < how_.calls; ++call)
        if (verdict violated = one_call()) return violated;
      if (verdict violated = cyclic_scan()) return violated;
      if (verdict violated = drain()) return violated;
      if (verdict violated = refill()) return violated;
      if (how_.allocations != nullptr && how_.allocations() != allocated_)
        return "a policy allocates nothing after bind";
    }
    return drain();
  }

 private:
  void bind() {
    policy_.bind(std::span<typename P::block_state>(states_));
    if (how_.allocations != nullptr) allocated_ = how_.allocations();
  }

  std::uint32_t blocks() const noexcept { return static_cast<std::uint32_t>(states_.size()); }

  verdict one_call() {
    const auto i = static_cast<std::uint32_t>(random_() % blocks());
    switch (random_() % 8) {
      case 0:
      case 1:
      case 2:
        if (!in_charge_[i]) admit(i);
        break;
      case 3:
        if (in_charge_[i]) remove(i);
        break;
      case 4:  // the victim leaves, or is pinned by the transfer that takes it elsewhere
        if (const std::uint32_t victim = policy_.victim(); victim < blocks() && in_charge_[victim]) {
          if (random_() % 2 == 0)
            evict(victim);
          else
            remove(victim);
        }
        break;
      case 5:
        policy_.advance_step(step_ += random_() % 3);
        break;
      default:  // in charge or not: a pinned block is used as well
        policy_.touch(i, {.step = step_, .mass = static_cast<float>(random_() % 1000) / 1000.0f});
    }
    return victim_is_in_charge();
  }

  // What a decode does to a tier that is too small: one block after the other is needed, pinned, used and given back,
  // and the victim makes room.
  verdict cyclic_scan() {
    for (std::uint32_t turn = 0; turn < 2 * blocks(); ++turn) {
      const std::uint32_t i = turn % blocks();
      policy_.advance_step(++step_);
      if (in_charge_[i]) remove(i);
      if (size_ > blocks() / 2) {
        const std::uint32_t victim = policy_.victim();
        if (verdict violated = victim_is_in_charge()) return violated;
        evict(victim);
      }
      policy_.touch(i, {.step = step_, .mass = 0.5f});
      admit(i);
      if (verdict violated = victim_is_in_charge()) return violated;
    }
    return nullptr;
  }

  // As many victims as blocks in charge, each once.
  verdict drain() {
    for (std::size_t left = size_; left != 0; --left) {
      if (verdict violated = victim_is_in_charge()) return violated;
      evict(policy_.victim());
    }
    return victim_is_in_charge();
  }

  verdict refill() {
    for (std::uint32_t i = 0; i < blocks(); i += 3) admit(i);
    return victim_is_in_charge();
  }

  verdict victim_is_in_charge() {
    const std::uint32_t victim = policy_.victim();
    if (size_ == 0)
      return victim == index_link::none ? nullptr : "nobody is the victim where nobody is in charge";
    if (victim == index_link::none) return "somebody is the victim as long as somebody is in charge";
    if (victim >= blocks() || !in_charge_[victim]) return "the victim is in charge";
    return nullptr;
  }

  void admit(std::uint32_t i) {
    const block_info info{
        .key = random_() % 4 == 0 ? 0 : i + 1000,
        .parent = i == 0 ? index_link::none : i - 1,
        .depth = i % 17,
        .row = i % 5,
        .turn = i % 3,
        .bytes = 4096 + 512 * (i % 4),
        .recompute_cost = static_cast<float>(i % 10),
        .reload_cost = static_cast<float>(i % 7),
        .why = known_[i] ? block_info::admission::returned : block_info::admission::first,
    };
    policy_.admit(i, info);
    in_charge_[i] = known_[i] = true;
    ++size_;
  }
  void remove(std::uint32_t i) {
    policy_.remove(i);
    in_charge_[i] = false;
    --size_;
  }
  void evict(std::uint32_t i) {
    evict_from(policy_, i);
    in_charge_[i] = known_[i] = false;
    --size_;
  }

  P policy_;
  policy_conformance_options how_;
  std::mt19937 random_;
  std::vector<bool> in_charge_;
  std::vector<bool> known_;  // was in charge before, and has not died since
  std::vector<typename P::block_state> states_;
  std::size_t size_ = 0;
  std::uint64_t step_ = 0;
  std::uint64_t allocated_ = 0;
};

}  // namespace detail

/// Tests a policy against its contract (policy/policy.hpp) and returns the first sentence of it that does not hold,
/// or nothing. Whether it chooses well is a question for trace_replay.
template <eviction_policy P>
std::optional<std::string> policy_conformance(typename P::options options = {},
                                              const policy_conformance_options& how = {}) {
  const char* violated = detail::policy_examination<P>(std::move(options), how).run();
  return violated == nullptr ? std::optional<std::string>() : violated;
}

}  // namespace terrace
