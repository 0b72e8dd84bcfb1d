#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// One of several policies, chosen when the tier is opened by its index in `Policies`, which `index_of(name)` finds.
/// Each call is one switch, not a virtual call.
///
///     using policy = one_of<lru, step_aware>;
///     policy::options o{.choice = *policy::index_of("step_aware")};
///     std::get<step_aware::options>(o.each).patience = 8;
///
/// The state of a block differs between policies, so the chosen one's states are kept in here, no larger than it
/// needs, and the cache keeps an empty state. Allocates only in `bind`.
template <eviction_policy... Policies>
class one_of {
  static_assert(sizeof...(Policies) != 0, "one_of needs at least one policy to choose");

 public:
  static constexpr std::string_view name = "one_of";
  struct options {
    std::size_t choice = 0;
    std::tuple<typename Policies::options...> each{};
  };
  struct block_state {};

  /// The names, in order.
  static constexpr std::array<std::string_view, sizeof...(Policies)> names{Policies::name...};
  /// The index of the policy with this name, if there is one.
  static constexpr std::optional<std::size_t> index_of(std::string_view wanted) noexcept {
    for (std::size_t i = 0; i < names.size(); ++i)
      if (names[i] == wanted) return i;
    return std::nullopt;
  }

  /// Precondition: `o.choice` is less than the number of policies.
  explicit one_of(options o = {}) : chosen_(choose(o, std::index_sequence_for<Policies...>{})) {}

  /// The name of the chosen policy.
  std::string_view chosen() const noexcept { return names[chosen_.index()]; }

  void bind(std::span<block_state> states) {
    visit([&](auto& c) {
      c.states.resize(states.size());
      c.policy.bind(c.states);
    });
  }
  void admit(std::uint32_t i, const block_info& info) {
    visit([&](auto& c) { c.policy.admit(i, info); });
  }
  void remove(std::uint32_t i) {
    visit([&](auto& c) { c.policy.remove(i); });
  }
  void evict(std::uint32_t i) {
    visit([&](auto& c) { evict_from(c.policy, i); });
  }
  void touch(std::uint32_t i, const block_use& use) {
    visit([&](auto& c) { c.policy.touch(i, use); });
  }
  void weigh(std::uint32_t i, const block_use& use) {
    visit([&](auto& c) {
      if constexpr (requires { c.policy.weigh(i, use); }) c.policy.weigh(i, use);
    });
  }
  std::uint32_t victim() {
    return visit([](auto& c) -> std::uint32_t { return c.policy.victim(); });
  }
  void advance_step(std::uint64_t step) {
    visit([&](auto& c) { c.policy.advance_step(step); });
  }

 private:
  template <class P>
  struct with_books {
    explicit with_books(typename P::options o) : policy(std::move(o)) {}
    P policy;
    std::vector<typename P::block_state> states;
  };
  using choice = std::variant<with_books<Policies>...>;

  template <std::size_t... I>
  static choice choose(options& o, std::index_sequence<I...>) {
    TERRACE_ASSERT(o.choice < sizeof...(Policies), "one_of has no policy of this index");
    std::optional<choice> made;
    (void)((o.choice == I && (made.emplace(std::in_place_index<I>, std::get<I>(std::move(o.each))), true)) ||
           ...);
    return *std::move(made);
  }
  template <class F>
  decltype(auto) visit(F&& f) {
    return std::visit(std::forward<F>(f), chosen_);
  }

  choice chosen_;
};

}  // namespace terrace
