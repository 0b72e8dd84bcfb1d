#pragma once
#include <cstddef>
#include <tuple>
#include <type_traits>

#include "terrace/cache/residency.hpp"
#include "terrace/policy/policy.hpp"
#include "terrace/tier.hpp"

namespace terrace {

/// The parameters of `tiered_cache<Tiers..., Policy>`, split and checked: a wrong composition fails with one sentence
/// that says why.
template <class... Parts>
struct composition {
  static_assert(sizeof...(Parts) > 0,
                "a tiered_cache needs at least one tier, and an eviction policy as its last parameter");
};

namespace composing {

template <class... Tiers>
constexpr bool nearest_first() {
  bool right = true, far = false;
  ((Tiers::attendable ? void(right = right && !far) : void(far = true)), ...);
  return right;
}

// To an engine that computes on a device, device memory is nearer than host memory; to others it is out of reach.
template <class... Tiers>
constexpr bool device_first() {
  bool right = true, past = false;
  ((Tiers::medium_type::addressable == reach::device ? void(right = right && !past) : void(past = true)),
   ...);
  return right;
}

// Each check runs only if the ones before it hold, so that one mistake gives one sentence.
template <class Policy, class... Tiers>
struct checked {
  // A tier in the policy's place means a missing policy, not a missing tier.
  static constexpr bool has_tiers = sizeof...(Tiers) > 0 || is_tier<Policy>;
  static constexpr bool policy_last = !has_tiers || eviction_policy<Policy>;
  static_assert(has_tiers, "a tiered_cache needs at least one tier before its eviction policy");
  static_assert(policy_last, "the last parameter of tiered_cache must be an eviction policy");
  static constexpr bool tiers_first = !has_tiers || !policy_last || (is_tier<Tiers> && ...);
  static_assert(tiers_first, "every parameter of tiered_cache but the last must be a tier");
  static consteval bool order() {
    if constexpr (has_tiers && policy_last && tiers_first)
      return nearest_first<Tiers...>();
    else
      return true;
  }
  static_assert(
      order(),
      "tiers must be listed nearest first: a tier that attention can read may not follow one that it cannot");
  static consteval bool hot_is_raw() {
    if constexpr (has_tiers && policy_last && tiers_first)
      return std::tuple_element_t<0, std::tuple<Tiers...>>::raw_in_place || !order();
    else
      return true;
  }
  static_assert(
      hot_is_raw(),
      "the first tier holds blocks as the engine writes them: it needs an addressable medium and no codec");
  static consteval bool device_tiers_lead() {
    if constexpr (has_tiers && policy_last && tiers_first)
      return device_first<Tiers...>() || !order();
    else
      return true;
  }
  static_assert(device_tiers_lead(), "a tier in device memory may not follow one that is not");
  static_assert(sizeof...(Tiers) <= max_tiers, "a tiered_cache has at most six tiers");
};

template <class Head, class... Rest>
struct split;
template <class... Done, class Policy>
struct split<std::tuple<Done...>, Policy> {
  using tiers = std::tuple<Done...>;
  using policy = Policy;
  using check = checked<Policy, Done...>;
};
template <class... Done, class Next, class... Rest>
requires(sizeof...(Rest) > 0) struct split<std::tuple<Done...>, Next, Rest...>
    : split<std::tuple<Done..., Next>, Rest...> {
};

}  // namespace composing

template <class First, class... Rest>
struct composition<First, Rest...> : composing::split<std::tuple<>, First, Rest...> {
  static_assert(sizeof(typename composition::check) > 0);
};

}  // namespace terrace
