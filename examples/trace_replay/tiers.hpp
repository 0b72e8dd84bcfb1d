#pragma once
#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "terrace/cache/tier_runtime.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/policy/attention_weighted.hpp"
#include "terrace/policy/fifo.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/prefix_aware.hpp"
#include "terrace/policy/s3_fifo.hpp"
#include "terrace/policy/sieve.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/policy/two_queue.hpp"

namespace replay {

/// A medium that stores nothing: it counts blocks, each of one byte.
class no_storage {
 public:
  static constexpr std::string_view name = "none";
  static constexpr terrace::reach addressable = terrace::reach::nobody;
  static constexpr bool persistent = false;
  static constexpr std::size_t alignment = 1;
  static constexpr std::size_t granularity = 1;
  struct options {
    std::size_t capacity = 0;
  };

  explicit no_storage(options o) noexcept : capacity_(o.capacity) {}
  std::optional<terrace::extent> reserve(std::size_t bytes) noexcept {
    if (used_ + bytes > capacity_) return std::nullopt;
    used_ += bytes;
    return terrace::extent{.bytes = static_cast<std::uint32_t>(bytes)};
  }
  void release(terrace::extent e) noexcept { used_ -= e.bytes; }
  auto read(terrace::extent, terrace::mutable_bytes) noexcept { return terrace::ex::just(); }
  auto write(terrace::extent, terrace::const_bytes) noexcept { return terrace::ex::just(); }
  std::size_t capacity() const noexcept { return capacity_; }
  std::size_t used() const noexcept { return used_; }

 private:
  std::size_t capacity_, used_ = 0;
};
static_assert(terrace::medium<no_storage>);

using tier_list = std::vector<std::unique_ptr<terrace::tier_control>>;

/// Tiers as the cache composes them, of one policy, nearest first.
template <terrace::eviction_policy P>
tier_list open_tiers(const std::vector<std::size_t>& capacities) {
  tier_list out;
  for (const std::size_t blocks : capacities)
    out.push_back(std::make_unique<terrace::tier_runtime<no_storage, P>>(
        std::make_unique<no_storage>(no_storage::options{blocks}),
        terrace::traits_of<terrace::tier<no_storage>, P>(), typename P::options{}));
  return out;
}

/// A policy that can be replayed.
struct known_policy {
  std::string_view name;
  tier_list (*open)(const std::vector<std::size_t>& capacities);
};
template <terrace::eviction_policy... P>
constexpr std::array<known_policy, sizeof...(P)> list_policies() {
  return {known_policy{P::name, &open_tiers<P>}...};
}
inline constexpr auto policies =
    list_policies<terrace::lru, terrace::fifo, terrace::two_queue, terrace::s3_fifo, terrace::sieve,
                  terrace::attention_weighted, terrace::step_aware, terrace::prefix_aware>();
/// The optimum is no policy: it knows what comes.
inline constexpr std::string_view belady_name = "belady";

}  // namespace replay
