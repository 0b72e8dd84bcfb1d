#pragma once
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "terrace/cache/tier_control.hpp"
#include "terrace/policy/policy.hpp"
#include "terrace/tier.hpp"

namespace terrace {

/// A tier at work: its open medium (none where the tier was left out, and then there is never room), and a
/// policy of its own with the array of block states that it keeps books in.
template <class Tier, eviction_policy Policy>
class tier_runtime final : public tier_control {
 public:
  using medium_type = typename Tier::medium_type;
  using codec_type = typename Tier::codec_type;

  tier_runtime(std::unique_ptr<medium_type> m, typename Policy::options o)
      : tier_control({.medium = medium_type::name,
                      .codec = codec_type::name,
                      .addressable = medium_type::addressable,
                      .readable = Tier::attendable,
                      .raw = Tier::raw_in_place,
                      .loss = codec_type::loss,
                      .format_id = codec_type::format_id,
                      .weighs = mass_weighing_policy<Policy>}),
        medium_(std::move(m)),
        policy_(std::move(o)) {}

  /// nullptr where the tier was left out.
  medium_type* medium() noexcept { return medium_.get(); }
  Policy& policy() noexcept { return policy_; }

  std::optional<extent> reserve(std::size_t bytes) override {
    return medium_ == nullptr ? std::nullopt : medium_->reserve(bytes);
  }
  void release(extent e) noexcept override { medium_->release(e); }
  std::byte* address([[maybe_unused]] extent e) noexcept override {
    if constexpr (medium_type::addressable != reach::nobody)
      return medium_->address(e);
    else
      return nullptr;
  }
  result<void> copy_within([[maybe_unused]] std::byte* to, [[maybe_unused]] const std::byte* from,
                           [[maybe_unused]] std::size_t bytes) override {
    if constexpr (medium_type::addressable == reach::device) return medium_->copy_within(to, from, bytes);
    if constexpr (medium_type::addressable == reach::host) std::memcpy(to, from, bytes);
    return {};
  }
  std::size_t capacity() const noexcept override { return medium_ == nullptr ? 0 : medium_->capacity(); }
  std::size_t used() const noexcept override { return medium_ == nullptr ? 0 : medium_->used(); }
  std::size_t max_encoded_size(const layer_group& g) const noexcept override {
    return codec_type::max_encoded_size(g);
  }

  result<void> resize([[maybe_unused]] std::size_t bytes) override {
    if (medium_ == nullptr) return fail(errc::unavailable, "a tier that was left out cannot be resized");
    if constexpr (resizable_medium<medium_type>)
      return medium_->resize(bytes);
    else
      return fail(errc::unavailable, "the medium of this tier cannot be resized");
  }

  void touch(std::uint32_t block, const block_use& use) override { policy_.touch(block, use); }
  void weigh([[maybe_unused]] std::uint32_t block, [[maybe_unused]] const block_use& use) override {
    if constexpr (mass_weighing_policy<Policy>) policy_.weigh(block, use);
  }
  void advance_step(std::uint64_t step) override { policy_.advance_step(step); }

 private:
  void grow_policy(std::size_t blocks) override {
    states_.resize(blocks);
    policy_.bind(states_);
  }
  void policy_admit(std::uint32_t block, const block_info& info) override { policy_.admit(block, info); }
  void policy_remove(std::uint32_t block) override { policy_.remove(block); }
  std::uint32_t policy_victim() override { return policy_.victim(); }

  std::unique_ptr<medium_type> medium_;
  Policy policy_;
  std::vector<typename Policy::block_state> states_;
};

}  // namespace terrace
