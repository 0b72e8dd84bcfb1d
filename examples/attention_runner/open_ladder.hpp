#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "ladder.hpp"
#include "plan.hpp"
#include "terrace/prefetch/adaptive.hpp"
#include "terrace/prefetch/attention_pattern.hpp"
#include "terrace/prefetch/layer_ahead.hpp"
#include "terrace/prefetch/sliding_window.hpp"
#include "terrace/tiered_cache.hpp"

namespace runner {

namespace detail {
template <class Tiers>
struct cache_of;
template <class... Tiers>
struct cache_of<std::tuple<Tiers...>> {
  using type = terrace::tiered_cache<Tiers..., any_policy>;
};
}  // namespace detail

/// Opens a ladder of four tiers. Each instantiation has a file of its own: a composed cache is the most expensive
/// thing to compile here.
template <class Tiers>
terrace::result<std::unique_ptr<ladder>> open_tiers(terrace::context& ctx, const run_plan& plan,
                                                    std::size_t policy) {
  using cache_type = typename detail::cache_of<Tiers>::type;
  const ladder_sizes& s = plan.sizes;
  auto cache = cache_type::open(ctx, plan.layout, {.capacity = s.hot}, {.capacity = s.warm},
                                {.capacity = s.cool, .path = s.cool_path},
                                {.capacity = s.cold, .path = s.cold_path}, {.choice = policy});
  if (!cache) return terrace::propagate(cache.error());
  return std::make_unique<ladder>(std::make_shared<cache_type>(std::move(*cache)), plan.layout.layers());
}

extern template terrace::result<std::unique_ptr<ladder>> open_tiers<lossless_tiers>(terrace::context&,
                                                                                    const run_plan&,
                                                                                    std::size_t);
extern template terrace::result<std::unique_ptr<ladder>> open_tiers<q8_tiers>(terrace::context&,
                                                                              const run_plan&, std::size_t);
extern template terrace::result<std::unique_ptr<ladder>> open_tiers<q4_tiers>(terrace::context&,
                                                                              const run_plan&, std::size_t);

/// Opens the ladder that the plan names: one of `all_ladders`, or "resident", where everything is in tier 0.
inline terrace::result<std::unique_ptr<ladder>> open_ladder(terrace::context& ctx, const run_plan& plan,
                                                            std::size_t policy,
                                                            terrace::any_prefetcher prefetcher) {
  using resident_cache = terrace::tiered_cache<terrace::tier<terrace::ram>, terrace::lru>;
  const auto open = [&]() -> terrace::result<std::unique_ptr<ladder>> {
    if (plan.codec == "q8") return open_tiers<q8_tiers>(ctx, plan, policy);
    if (plan.codec == "q4") return open_tiers<q4_tiers>(ctx, plan, policy);
    if (plan.codec == "lossless") return open_tiers<lossless_tiers>(ctx, plan, policy);
    auto cache = resident_cache::open(ctx, plan.layout, {.capacity = plan.sizes.hot});
    if (!cache) return terrace::propagate(cache.error());
    return std::make_unique<ladder>(std::make_shared<resident_cache>(std::move(*cache)),
                                    plan.layout.layers());
  };
  auto opened = open();
  if (opened) (*opened)->use(std::move(prefetcher));
  return opened;
}

/// The prefetcher of this name, which looks as far ahead as an eighth of the hot tier holds; none for "none".
inline terrace::any_prefetcher prefetcher_named(const std::string& name, const run_plan& plan) {
  if (name == "none") return {};
  const std::size_t room = plan.sizes.hot / 8 / plan.layout.largest_block();
  const auto blocks = static_cast<std::uint32_t>(std::clamp<std::size_t>(room, 4, 64));
  const terrace::layer_ahead next({.blocks = blocks});
  const terrace::sliding_window near({.blocks = blocks});
  if (name == "sliding_window") return near;
  if (name == "attention_pattern") return terrace::attention_pattern({.blocks = blocks});
  if (name == "adaptive")
    return terrace::adaptive(next, near, terrace::attention_pattern({.blocks = blocks}));
  return next;
}

/// A run that could not go on, in the words of what failed.
inline terrace::failure<runner_error> failed(const terrace::error& why, const char* doing) {
  return refuse(runner_error{std::string(doing) + ": " + why.message(), 1});
}
/// A ladder that could not be opened: nearly always because of a size or a path that was given.
inline terrace::failure<runner_error> refuse_opening(const terrace::error& why) {
  return refuse("the cache cannot be opened: " + why.message());
}

}  // namespace runner
