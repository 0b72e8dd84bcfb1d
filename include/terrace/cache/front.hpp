#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "terrace/cache/planner.hpp"
#include "terrace/cache/store.hpp"
#include "terrace/cache/tier_runtime.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/transfer/engine.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// What a cache is tuned with, beyond its tiers. The defaults serve.
struct cache_options {
  planner::options transfers{};
  std::size_t staging_buffers = 16;  ///< where a codec works between media; cut from tier 0's capacity
};

/// What a cache's handle points at: media, policies, transfers, planner, in the order in which they depend on
/// one another, and so in which they are made and (backwards) ended.
template <class Tiers, class Policy>
struct cache_storage;
template <class... Tiers, class Policy>
struct cache_storage<std::tuple<Tiers...>, Policy> {
  using engine_type = transfer_engine<Tiers...>;

  cache_storage(context& ctx, kv_layout layout, std::unique_ptr<typename Tiers::medium_type>... media,
                const typename Policy::options& policy, staging cut, const cache_options& o)
      : buffers(std::move(cut)),
        tiers(std::make_unique<tier_runtime<Tiers, Policy>>(std::move(media), policy)...),
        engine(ctx, media_of(tiers), buffers, o.transfers.loads_in_flight + o.transfers.stores_in_flight,
               o.transfers.deadline),
        control(ctx, std::move(layout), controls_of(tiers), engine, o.transfers) {
    engine.report_to(control);
  }
  ~cache_storage() { control.shut_down(); }

  using runtimes = std::tuple<std::unique_ptr<tier_runtime<Tiers, Policy>>...>;
  static typename engine_type::media media_of(const runtimes& all) {
    return std::apply([](const auto&... t) { return typename engine_type::media{t->medium()...}; }, all);
  }
  static std::vector<tier_control*> controls_of(const runtimes& all) {
    return std::apply([](const auto&... t) { return std::vector<tier_control*>{t.get()...}; }, all);
  }

  staging buffers;  // first: media may have registered it
  runtimes tiers;
  engine_type engine;
  planner control;
};

/// Gives `tiered_cache` its `open`, whose parameters are the options of each tier.
template <class Cache, class Tiers, class Policy>
class cache_front;
template <class Cache, class... Tiers, class Policy>
class cache_front<Cache, std::tuple<Tiers...>, Policy> : public kv_store {
 protected:
  using storage = cache_storage<std::tuple<Tiers...>, Policy>;
  explicit cache_front(std::unique_ptr<storage> s) : kv_store(s->control), storage_(std::move(s)) {}

 public:
  /// Opens the media, nearest first, with the options of each:
  ///
  ///     kv_cache::open(ctx, layout, {.capacity = 400_MiB}, {.capacity = 1_GiB}, {.capacity = 8_GiB, .path =
  ///     "kv.bin"})
  ///
  /// then, where they are not the defaults, the policy's options and the cache's. A capacity of 0 leaves a
  /// tier out, the first one excepted. Staging is cut from tier 0's capacity, so that its slots and staging
  /// together stay within it. Errors: invalid_argument for a layout or a size that cannot be, else what a
  /// medium says; then nothing is left behind.
  static result<Cache> open(context& ctx, kv_layout layout, typename Tiers::options... options,
                            typename Policy::options policy = {}, cache_options tuning = {}) {
    if (auto good = validate(layout); !good) return propagate(good.error());
    for (const layer_group& g : layout.groups) {
      result<void> good;
      static_cast<void>(((good = Tiers::codec_type::supports(g), good.has_value()) && ...));
      if (!good) return propagate(good.error());
    }
    std::tuple<typename Tiers::options...> chosen(std::move(options)...);
    auto open_ones = std::apply(
        [](const auto&... o) { return typename storage::engine_type::presence{o.capacity != 0 ...}; },
        chosen);
    open_ones[0] = true;
    auto buffers = cut_staging(ctx, layout, std::get<0>(chosen), open_ones, tuning);
    if (!buffers) return propagate(buffers.error());
    return open_media<0>(ctx, std::move(layout), chosen, policy, *buffers, tuning);
  }

 private:
  // Buffers hold what any codec below tier 0 makes of the largest block, and the block itself where it lies between
  // two codecs.
  static result<staging> cut_staging(context& ctx, const kv_layout& layout, auto& hot,
                                     const typename storage::engine_type::presence& open_ones,
                                     const cache_options& tuning) {
    const std::size_t at_least = storage::engine_type::most_staging_buffers(open_ones);
    if (at_least == 0) return staging::make(ctx, 0, 0);
    std::size_t bytes = storage::engine_type::stages_raw_blocks(open_ones) ? layout.largest_block() : 0;
    for (const layer_group& g : layout.groups) {
      const std::array encoded{Tiers::codec_type::max_encoded_size(g)...};
      for (std::size_t t = 1; t < encoded.size(); ++t)
        if (open_ones[t]) bytes = std::max(bytes, encoded[t]);
    }
    bytes = align_up(bytes, ram::alignment);
    // At most an eighth of tier 0, unless even the fewest that work need more.
    const std::size_t count = std::max(at_least, std::min(tuning.staging_buffers, hot.capacity / 8 / bytes));
    if (hot.capacity != 0) {  // else tier 0 lies in memory of the caller's, all of which is slots
      if (hot.capacity < count * bytes + layout.largest_block())
        return fail(errc::invalid_argument,
                    "tier 0 is too small for one block and the staging buffers of its codecs");
      hot.capacity -= count * bytes;
    }
    return staging::make(ctx, count, bytes);
  }

  // Staging alone: its pages stay, whereas those of a tier in RAM come and go with its capacity.
  template <class Medium>
  static void register_staging(Medium* medium, const staging& buffers) {
    if constexpr (buffer_registering_medium<Medium>)
      if (medium != nullptr && buffers.bytes() != 0) medium->register_buffer(buffers.memory());
  }

  template <std::size_t I, class Chosen, class... Media>
  static result<Cache> open_media(context& ctx, kv_layout layout, Chosen& chosen,
                                  const typename Policy::options& policy, staging& buffers,
                                  const cache_options& tuning, std::unique_ptr<Media>... open_ones) {
    if constexpr (I == sizeof...(Tiers)) {
      (register_staging(open_ones.get(), buffers), ...);
      return Cache(std::make_unique<storage>(ctx, std::move(layout), std::move(open_ones)..., policy,
                                             std::move(buffers), tuning));
    } else {
      using medium_type = typename std::tuple_element_t<I, std::tuple<Tiers...>>::medium_type;
      std::unique_ptr<medium_type> next;
      if (I == 0 || std::get<I>(chosen).capacity != 0) {
        auto opened = medium_type::open(ctx, std::move(std::get<I>(chosen)));
        if (!opened) return propagate(opened.error());
        next = std::move(*opened);
      }
      return open_media<I + 1>(ctx, std::move(layout), chosen, policy, buffers, tuning,
                               std::move(open_ones)..., std::move(next));
    }
  }

  std::unique_ptr<storage> storage_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
