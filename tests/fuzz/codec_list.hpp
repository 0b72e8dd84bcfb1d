#pragma once
#include <cstddef>
#include <type_traits>

#include "terrace/codec/chain.hpp"
#include "terrace/codec/ecsq.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/codec/lz4.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/codec/zstd.hpp"

/// Every codec, and chains of them, by number.
namespace fuzz {

inline const terrace::layer_group& group() {
  static const terrace::layer_group one{.tokens = 4, .k = {1, 64}, .v = {1, 64}};
  return one;
}

/// Calls use(std::type_identity<Codec>, number) for each.
template <class F>
void for_each_codec(F use) {
  using namespace terrace;
  std::size_t number = 0;
  const auto each = [&]<class... C>(std::type_identity<C>... codec) { (use(codec, number++), ...); };
  each(std::type_identity<identity>{}, std::type_identity<q8_0>{}, std::type_identity<q4_0>{},
       std::type_identity<fp8>{}, std::type_identity<zstd<>>{}, std::type_identity<zstd<9>>{},
       std::type_identity<lz4>{}, std::type_identity<chain<q8_0, zstd<>>>{},
       std::type_identity<chain<q4_0, zstd<>>>{}, std::type_identity<chain<q4_0, lz4>>{},
       std::type_identity<chain<q8_0, lz4>>{}, std::type_identity<chain<fp8, zstd<>>>{},
       std::type_identity<ecsq<>>{}, std::type_identity<ecsq<rope{.theta = 10000}>>{});
}

}  // namespace fuzz
