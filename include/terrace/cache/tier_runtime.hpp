#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "terrace/cache/tier_control.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/crc32c.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/policy/policy.hpp"
#include "terrace/tier.hpp"

namespace terrace {

/// The policy part of a running tier: its own policy instance, and the array of block states in which the policy
/// keeps its books.
template <eviction_policy Policy>
class ranked_tier : public tier_control {
 public:
  ranked_tier(const traits& t, const typename Policy::options& o) : tier_control(t), policy_(o) {}

  void touch(std::uint32_t block, const block_use& use) final { policy_.touch(block, use); }
  void weigh([[maybe_unused]] std::uint32_t block, [[maybe_unused]] const block_use& use) final {
    if constexpr (mass_weighing_policy<Policy>) policy_.weigh(block, use);
  }
  void advance_step(std::uint64_t step) final { policy_.advance_step(step); }

 private:
  void grow_policy(std::size_t blocks) final {
    states_.resize(blocks);
    policy_.bind({states_.data(), states_.size()});
  }
  void policy_admit(std::uint32_t block, const block_info& info) final { policy_.admit(block, info); }
  void policy_remove(std::uint32_t block) final { policy_.remove(block); }
  void policy_evict(std::uint32_t block) final { evict_from(policy_, block); }
  std::uint32_t policy_victim() final { return policy_.victim(); }

  Policy policy_;
  std::vector<typename Policy::block_state> states_;
};

inline namespace TERRACE_EX {

/// The sync of a tier's medium that is under way, if any.
template <class Medium>
class tier_sync {
 public:
  void start([[maybe_unused]] Medium& m, [[maybe_unused]] tier_control::sync_request& r) noexcept {
    if constexpr (persistent_medium<Medium>) {
      under_way_.emplace(elide{[&] { return ex::connect(m.sync(), receiver{&r}); }});
      ex::start(*under_way_);
    }
  }

 private:
  struct receiver {
    using receiver_concept = ex::receiver_t;
    tier_control::sync_request* asked;
    void set_value() noexcept { asked->done(asked, {}); }
    void set_error(error e) noexcept { asked->done(asked, propagate(e)); }
    void set_stopped() noexcept { asked->done(asked, fail(errc::stopped, "a sync was stopped")); }
    ex::env<> get_env() const noexcept { return {}; }
  };
  template <class M>
  struct operation_of {
    using type = char;
  };
  template <persistent_medium M>
  struct operation_of<M> {
    using type = ex::connect_result_t<decltype(std::declval<M&>().sync()), receiver>;
  };
  std::optional<typename operation_of<Medium>::type>
      under_way_;  // stays after it has reported, until the next one replaces it
};

}  // namespace TERRACE_EX

/// A running tier: its open medium, and its policy. If the tier was left out, there is no medium, and never room.
/// Tiers that differ only in their codec are of one type.
template <medium Medium, eviction_policy Policy>
class tier_runtime final : public ranked_tier<Policy> {
 public:
  tier_runtime(std::unique_ptr<Medium> m, const tier_control::traits& t, const typename Policy::options& o)
      : ranked_tier<Policy>(t, o), medium_(std::move(m)) {}

  std::optional<extent> reserve(std::size_t bytes, [[maybe_unused]] std::optional<extent> before) override {
    if (medium_ == nullptr) return std::nullopt;
    if constexpr (ordered_medium<Medium>)
      return medium_->reserve_behind(before, bytes);
    else
      return medium_->reserve(bytes);
  }
  void release(extent e) noexcept override { medium_->release(e); }
  std::byte* address([[maybe_unused]] extent e) noexcept override {
    if constexpr (Medium::addressable != reach::nobody)
      return medium_->address(e);
    else
      return nullptr;
  }
  result<void> copy_within([[maybe_unused]] std::byte* to, [[maybe_unused]] const std::byte* from,
                           [[maybe_unused]] std::size_t bytes) override {
    if constexpr (Medium::addressable == reach::device) return medium_->copy_within(to, from, bytes);
    if constexpr (Medium::addressable == reach::host) std::memcpy(to, from, bytes);
    return {};
  }
  std::size_t capacity() const noexcept override { return medium_ == nullptr ? 0 : medium_->capacity(); }
  std::size_t used() const noexcept override { return medium_ == nullptr ? 0 : medium_->used(); }

  bool keeps() const noexcept override {
    if constexpr (persistent_medium<Medium>) return medium_ != nullptr && medium_->keeps();
    return false;
  }
  void scan([[maybe_unused]] tier_control::visitor& v) override {
    if constexpr (persistent_medium<Medium>)
      medium_->scan([&v](extent at, const extent_header& header) { return v.visit(at, header); });
  }
  bool label([[maybe_unused]] extent at, [[maybe_unused]] const extent_header& header) override {
    if constexpr (persistent_medium<Medium>) return medium_->label(at, header);
    return false;
  }
  void unlabel([[maybe_unused]] extent at) noexcept override {
    if constexpr (persistent_medium<Medium>) medium_->unlabel(at);
  }
  result<void> verify([[maybe_unused]] context& ctx, [[maybe_unused]] extent at,
                      [[maybe_unused]] std::uint32_t checksum) override {
    if constexpr (persistent_medium<Medium>) {
      constexpr std::align_val_t alignment{Medium::alignment};
      const auto free = [](std::byte* p) { ::operator delete[](p, alignment); };
      const std::size_t bytes = align_up(at.bytes, Medium::alignment);
      const std::unique_ptr<std::byte[], decltype(free)> buffer(
          new (alignment, std::nothrow) std::byte[bytes], free);
      if (buffer == nullptr) return fail(errc::out_of_memory, "no memory to read a kept block");
      if (const auto read = ctx.sync_wait(medium_->read(at, {buffer.get(), bytes})); !read)
        return propagate(read.error());
      if (crc32c({buffer.get(), at.bytes}) != checksum)
        return fail(errc::corrupt, "a kept block has other bytes than its header says");
    }
    return {};
  }
  void sync([[maybe_unused]] tier_control::sync_request& r) noexcept override {
    if constexpr (persistent_medium<Medium>) sync_.start(*medium_, r);
  }

  void register_buffer([[maybe_unused]] mutable_bytes memory) override {
    if constexpr (buffer_registering_medium<Medium>)
      if (medium_ != nullptr) medium_->register_buffer(memory);
  }

  result<void> resize([[maybe_unused]] std::size_t bytes) override {
    if (medium_ == nullptr) return fail(errc::unavailable, "a tier that was left out cannot be resized");
    if constexpr (resizable_medium<Medium>)
      return medium_->resize(bytes);
    else
      return fail(errc::unavailable, "the medium of this tier cannot be resized");
  }

 private:
  std::unique_ptr<Medium> medium_;
  tier_sync<Medium> sync_;
};

/// What the planner has to know of a `Tier` with this policy.
template <class Tier, eviction_policy Policy>
constexpr tier_control::traits traits_of() noexcept {
  return {.medium = Tier::medium_type::name,
          .codec = any_codec::of<typename Tier::codec_type>(),
          .addressable = Tier::medium_type::addressable,
          .readable = Tier::attendable,
          .raw = Tier::raw_in_place,
          .weighs = mass_weighing_policy<Policy>};
}

}  // namespace terrace
