#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
#include <tuple>

#include "terrace/codec/chain.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/codec/zstd.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/attention_weighted.hpp"
#include "terrace/policy/fifo.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/one_of.hpp"
#include "terrace/policy/s3_fifo.hpp"
#include "terrace/policy/sieve.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/policy/two_queue.hpp"
#include "terrace/tier.hpp"
#include "terrace/transfer/route.hpp"

namespace runner {

/// What --policy chooses from.
using any_policy = terrace::one_of<terrace::lru, terrace::step_aware, terrace::attention_weighted,
                                   terrace::two_queue, terrace::s3_fifo, terrace::sieve, terrace::fifo>;

/// The tiers of every ladder, nearest first.
inline constexpr std::array<std::string_view, 4> tier_names{"hot", "warm", "cool", "cold"};

/// Hot, warm, cool and cold with the codecs of the last three; hot holds blocks as they are.
template <class Warm, class Cool, class Cold>
using tiers_with = std::tuple<terrace::tier<terrace::ram>, terrace::tier<terrace::ram, Warm>,
                              terrace::tier<terrace::nvme, Cool>, terrace::tier<terrace::directory, Cold>>;

using packed_q4 = terrace::chain<terrace::q4_0, terrace::zstd<>>;
using lossless_tiers = tiers_with<terrace::identity, terrace::identity, terrace::zstd<>>;
using q8_tiers = tiers_with<terrace::q8_0, terrace::q8_0, terrace::chain<terrace::q8_0, terrace::zstd<>>>;
using q4_tiers = tiers_with<terrace::q8_0, packed_q4, packed_q4>;

/// What the codecs of a ladder need, known before it is opened.
struct ladder_codecs {
  using size_function = std::size_t (*)(const terrace::layer_group&) noexcept;
  std::string_view name;                  ///< as --codec calls it
  std::size_t staging_buffers = 0;        ///< that some route needs at once
  size_function staging_bytes = nullptr;  ///< of one of these buffers
  std::array<size_function, 3> stored{};  ///< the most that a block takes in warm, cool, cold
  terrace::result<void> (*supports)(const terrace::layer_group&) noexcept = nullptr;  ///< all of its codecs
};

namespace detail {
template <class... Tiers>
struct codecs_of;
template <class Hot, class... Below>
struct codecs_of<std::tuple<Hot, Below...>> {
  template <class From, class... To>
  static consteval std::size_t buffers_from() {
    return std::max({terrace::route_between<From, To>().staging_buffers()...});
  }
  static consteval std::size_t buffers() {
    return std::max({buffers_from<Hot, Below...>(), buffers_from<Below, Hot, Below...>()...});
  }
  // A buffer may also hold a raw block, between two codecs.
  static std::size_t staging_bytes(const terrace::layer_group& g) noexcept {
    return terrace::align_up(std::max({g.block_bytes(), Below::codec_type::max_encoded_size(g)...}),
                             terrace::ram::alignment);
  }
  template <class Tier>
  static std::size_t stored(const terrace::layer_group& g) noexcept {
    return terrace::align_up(Tier::codec_type::max_encoded_size(g), terrace::ram::alignment);
  }
  static terrace::result<void> supports(const terrace::layer_group& g) noexcept {
    terrace::result<void> all;
    static_cast<void>(((all = Below::codec_type::supports(g), all.has_value()) && ...));
    return all;
  }
  static constexpr ladder_codecs named(std::string_view name) {
    return {name, buffers(), &staging_bytes, {&stored<Below>...}, &supports};
  }
};
}  // namespace detail

/// What --codec chooses from.
inline constexpr std::array<ladder_codecs, 3> all_ladders{
    detail::codecs_of<lossless_tiers>::named("lossless"), detail::codecs_of<q8_tiers>::named("q8"),
    detail::codecs_of<q4_tiers>::named("q4")};

/// The ladder of that name, or nullptr.
constexpr const ladder_codecs* find_ladder(std::string_view name) noexcept {
  for (const ladder_codecs& l : all_ladders)
    if (l.name == name) return &l;
  return nullptr;
}

}  // namespace runner
