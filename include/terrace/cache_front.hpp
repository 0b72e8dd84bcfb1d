#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <utility>

#include "terrace/attention/stream_workspace.hpp"
#include "terrace/cache/planner.hpp"
#include "terrace/cache/planner_options.hpp"
#include "terrace/cache/tier_runtime.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/kv_store.hpp"
#include "terrace/medium/disk_format.hpp"
#include "terrace/transfer/engine.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Tuning of a cache, beyond its tiers. The defaults are fine for most uses.
struct cache_options {
  planner_options transfers{};
  model_key model{};  ///< whose KV it is: a tier that keeps refuses a store of another model or shard
  std::size_t staging_buffers = 16;  ///< where a codec works between media; cut from tier 0's capacity
};

/// What a cache's handle points at: media, policies, transfers, planner, in order of dependency: they are constructed
/// in this order and destroyed in reverse.
template <class Tiers, class Policy>
struct cache_storage;
template <class... Tiers, class Policy>
struct cache_storage<std::tuple<Tiers...>, Policy> {
  static constexpr std::size_t count = sizeof...(Tiers);
  static constexpr bool hot_on_host =
      std::tuple_element_t<0, std::tuple<Tiers...>>::medium_type::addressable == reach::host;
  using engine_type = transfer_engine<Tiers...>;

  /// The tiers, open or left out.
  struct ladder {
    std::array<std::unique_ptr<tier_control>, count> tiers;
    std::array<tier_control*, count> controls{};  // the same
    typename engine_type::media media{};
  };

  cache_storage(context& ctx, kv_layout layout, ladder open, staging cut, const cache_options& o)
      : buffers(std::move(cut)),
        rungs(std::move(open)),
        engine(ctx, rungs.media, buffers, o.transfers.jobs(), o.transfers.time_limit()),
        control(ctx, std::move(layout), rungs.controls, engine, o.transfers) {
    engine.report_to(control);
    control.adopt_kept();
  }
  ~cache_storage() { control.shut_down(); }

  staging buffers;  // first: media may have registered it
  ladder rungs;
  engine_type engine;
  planner control;
  stream_workspace_pool workspaces;
};

/// Gives `tiered_cache` its `open`, whose parameters are the options of each tier.
template <class Cache, class Tiers, class Policy>
class cache_front;
template <class Cache, class... Tiers, class Policy>
class cache_front<Cache, std::tuple<Tiers...>, Policy> : public kv_store {
 protected:
  using storage = cache_storage<std::tuple<Tiers...>, Policy>;
  explicit cache_front(std::unique_ptr<storage> s)
      : kv_store(s->control, s->workspaces), storage_(std::move(s)) {}

 public:
  /// Opens the media, nearest first, with the options of each:
  ///
  ///     kv_cache::open(ctx, layout, {.capacity = 400_MiB}, {.capacity = 1_GiB}, {.capacity = 8_GiB, .path =
  ///     "kv.bin"})
  ///
  /// then the policy's options and the cache's, unless the defaults will do. A capacity of 0 leaves a tier out,
  /// except the first. Staging is cut from tier 0's capacity, so that slots and staging together stay within it.
  /// Errors: invalid_argument for an invalid layout or size, otherwise the medium's error; then nothing is left
  /// behind.
  static result<Cache> open(context& ctx, kv_layout layout, typename Tiers::options... options,
                            typename Policy::options policy = {}, cache_options tuning = {}) {
    result<void> good = validate(layout);
    for (const layer_group& g : layout.groups)
      for (const route_end& tier : storage::engine_type::ends)
        if (good) good = tier.codec.supports(g);
    if (!good) return propagate(good.error());

    std::array<bool, storage::count> present{has_space(options)...};
    present[0] = true;
    auto& hot = first_of(options...);
    std::size_t slots = has_memory(hot) ? 0 : hot.capacity;
    auto buffers = cut_staging(ctx, layout, slots, present, tuning);
    if (!buffers) return propagate(buffers.error());
    hot.capacity = slots;

    (name_contents<Tiers>(options, layout, tuning), ...);
    typename storage::ladder open;
    std::size_t next = 0;
    static_cast<void>(((good = open_tier<typename Tiers::medium_type>(ctx, open, next++, std::move(options),
                                                                      traits_of<Tiers, Policy>(), policy),
                        good.has_value()) &&
                       ...));
    if (!good) return propagate(good.error());
    // Only staging: its pages stay, whereas those of a tier in RAM come and go with its capacity.
    if (buffers->bytes() != 0)
      for (tier_control* tier : open.controls) tier->register_buffer(buffers->memory());
    return Cache(
        std::make_unique<storage>(ctx, std::move(layout), std::move(open), std::move(*buffers), tuning));
  }

 private:
  static auto& first_of(auto& first, auto&...) noexcept { return first; }

  // Whether a tier is in the caller's memory; then its capacity is ignored.
  static bool has_memory(const auto& options) noexcept {
    if constexpr (requires { options.memory.empty(); }) return !options.memory.empty();
    return false;
  }
  static bool has_space(const auto& options) noexcept { return options.capacity != 0 || has_memory(options); }

  // What the tier's store must hold, if its medium is persistent.
  template <class Tier>
  static void name_contents([[maybe_unused]] typename Tier::options& options,
                            [[maybe_unused]] const kv_layout& layout,
                            [[maybe_unused]] const cache_options& tuning) {
    if constexpr (persistent_medium<typename Tier::medium_type>)
      options.contents = {fingerprint(layout), tuning.model, Tier::codec_type::format_id};
  }

  // A buffer holds the largest block as any codec below tier 0 encodes it, and the raw block where one is staged. The
  // buffers are subtracted from the bytes for slots.
  static result<staging> cut_staging(context& ctx, const kv_layout& layout, std::size_t& slots,
                                     const std::array<bool, storage::count>& present,
                                     const cache_options& tuning) {
    const auto needs = storage::engine_type::needs(present);
    if (needs.buffers == 0) return staging::make(ctx, 0, 0);
    std::size_t bytes = needs.raw_blocks ? layout.largest_block() : 0;
    for (const layer_group& g : layout.groups)
      for (std::size_t t = 1; t < storage::count; ++t)
        if (present[t]) bytes = std::max(bytes, storage::engine_type::ends[t].codec.max_encoded_size(g));
    bytes = align_up(bytes, ram::alignment);
    // At most an eighth of tier 0, unless the minimum number of buffers needs more.
    const std::size_t count = std::max(needs.buffers, std::min(tuning.staging_buffers, slots / 8 / bytes));
    // Not if tier 0 is in the caller's memory, which is all slots, or in device memory, where staging is not.
    if (slots != 0 && storage::hot_on_host) {
      if (slots < count * bytes + layout.largest_block())
        return fail(errc::invalid_argument,
                    "tier 0 is too small for one block and the staging buffers of its codecs");
      slots -= count * bytes;
    }
    return staging::make(ctx, count, bytes);
  }

  template <class Medium>
  static result<void> open_tier(context& ctx, typename storage::ladder& open, std::size_t i,
                                typename Medium::options options, const tier_control::traits& what,
                                const typename Policy::options& policy) {
    std::unique_ptr<Medium> medium;
    if (i == 0 || has_space(options)) {
      auto opened = Medium::open(ctx, std::move(options));
      if (!opened) return propagate(opened.error());
      medium = std::move(*opened);
    }
    open.media[i] = medium.get();
    open.tiers[i] = std::make_unique<tier_runtime<Medium, Policy>>(std::move(medium), what, policy);
    open.controls[i] = open.tiers[i].get();
    return {};
  }

  std::unique_ptr<storage> storage_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
