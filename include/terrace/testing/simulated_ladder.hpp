#pragma once
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "terrace/cache_front.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/kv_store.hpp"
#include "terrace/testing/faulty.hpp"
#include "terrace/tiered_cache.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// How a simulated cache is opened.
struct simulated_setup {
  kv_layout layout = {
      {{.layers = 2, .tokens = 4, .k = {.heads = 1, .dim = 32}, .v = {.heads = 1, .dim = 32}}}};
  std::vector<std::size_t> capacities;  ///< bytes of each tier
  bool keep = true;                     ///< faulty tiers outlive the cache
  cache_options tuning{};
  std::uint64_t seed = 1;  ///< of the devices
};

/// The cache that a simulator drives, whatever its composition: opened, closed and opened again, over devices that
/// stay.
class simulated_ladder {
 public:
  struct rung {
    any_codec codec;
    std::size_t granule = 1;                ///< what room is rounded up to
    std::unique_ptr<faulty_device> device;  ///< where the tier is faulty
    bool keeps = false;
  };
  explicit simulated_ladder(simulated_setup s) : setup(std::move(s)) {}
  simulated_ladder(const simulated_ladder&) = delete;
  virtual ~simulated_ladder() = default;

  virtual result<void> open(context& ctx) = 0;
  /// Precondition: open.
  virtual kv_store& cache() noexcept = 0;
  virtual void close() noexcept = 0;

  const simulated_setup setup;
  std::vector<rung> rungs;  ///< one for each tier
};

/// The implementation for one `tiered_cache`. Its media are `ram`, `faulty`, and what derives from `faulty`.
template <class Cache>
class ladder_over final : public simulated_ladder {
 public:
  explicit ladder_over(simulated_setup s) : simulated_ladder(std::move(s)) {
    add_rungs(static_cast<typename Cache::tiers*>(nullptr));
  }
  result<void> open(context& ctx) override {
    auto opened = open_with(ctx, std::make_index_sequence<Cache::tier_count>{});
    if (!opened) return propagate(opened.error());
    cache_.emplace(std::move(*opened));
    return {};
  }
  kv_store& cache() noexcept override { return *cache_; }
  void close() noexcept override { cache_.reset(); }

 private:
  template <class Tier>
  static constexpr bool is_faulty = std::is_base_of_v<faulty, typename Tier::medium_type>;

  template <class... Tiers>
  void add_rungs(std::tuple<Tiers...>*) {
    (add_rung<Tiers>(), ...);
  }
  template <class Tier>
  void add_rung() {
    rung r{any_codec::of<typename Tier::codec_type>(), Tier::medium_type::alignment, nullptr, false};
    if constexpr (is_faulty<Tier>) {
      r.device = std::make_unique<faulty_device>(setup.capacities[rungs.size()], setup.seed + rungs.size());
      r.keeps = setup.keep;
    }
    rungs.push_back(std::move(r));
  }
  using tiers = typename Cache::tiers;
  template <std::size_t... T>
  result<Cache> open_with(context& ctx, std::index_sequence<T...>) {
    return Cache::open(ctx, setup.layout, options_of<std::tuple_element_t<T, tiers>>(T)..., {}, setup.tuning);
  }
  template <class Tier>
  typename Tier::options options_of(std::size_t tier) {
    typename Tier::options o;
    o.capacity = setup.capacities[tier];
    if constexpr (is_faulty<Tier>) {
      o.device = rungs[tier].device.get();
      o.keep = rungs[tier].keeps;
    } else {
      o.most_capacity = o.capacity;  // addresses for more cost the system calls that a simulation makes often
    }
    return o;
  }

  std::optional<Cache> cache_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
