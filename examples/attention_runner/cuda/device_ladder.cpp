#include "device_ladder.hpp"

#include <tuple>
#include <utility>

#include "../ladder_types.hpp"
#include "terrace/cuda/pinned_ram.hpp"
#include "terrace/cuda/vram.hpp"
#include "terrace/tiered_cache.hpp"

namespace runner {
namespace {

/// Hot in device memory and warm in pinned RAM, with the codecs of the host's ladder of that name.
template <class HostTiers>
struct device_tiers;
template <class Hot, class Warm, class... Below>
struct device_tiers<std::tuple<Hot, Warm, Below...>> {
  using cache = terrace::tiered_cache<terrace::tier<terrace::vram>,
                                      terrace::tier<terrace::pinned_ram, typename Warm::codec_type>, Below...,
                                      any_policy>;
};

template <class HostTiers>
terrace::result<std::shared_ptr<terrace::kv_store>> open_device_tiers(terrace::context& ctx,
                                                                      const run_plan& plan,
                                                                      std::size_t policy,
                                                                      cudaStream_t stream) {
  using cache_type = typename device_tiers<HostTiers>::cache;
  const ladder_sizes& s = plan.sizes;
  auto cache = cache_type::open(ctx, plan.layout, {.capacity = s.hot, .stream = stream}, {.capacity = s.warm},
                                {.capacity = s.cool, .path = s.cool_path},
                                {.capacity = s.cold, .path = s.cold_path}, {.choice = policy});
  if (!cache) return terrace::propagate(cache.error());
  return std::shared_ptr<terrace::kv_store>(std::make_shared<cache_type>(std::move(*cache)));
}

}  // namespace

terrace::result<std::shared_ptr<terrace::kv_store>> open_device_ladder(terrace::context& ctx,
                                                                       const run_plan& plan,
                                                                       std::size_t policy,
                                                                       cudaStream_t stream) {
  if (plan.codec == "q8") return open_device_tiers<q8_tiers>(ctx, plan, policy, stream);
  if (plan.codec == "q4") return open_device_tiers<q4_tiers>(ctx, plan, policy, stream);
  return open_device_tiers<lossless_tiers>(ctx, plan, policy, stream);
}

}  // namespace runner
