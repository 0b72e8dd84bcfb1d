// Every codec's decode of hostile bytes: an error or a block, and nothing outside of its spans (the address sanitizer
// watches).
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

#include "terrace/codec/chain.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/codec/lz4.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/codec/zstd.hpp"

using namespace terrace;

namespace {
template <class C>
void decode(const layer_group& g, const_bytes in) {
  // Copies of exactly their sizes, so that a byte beyond them is seen.
  const auto source = std::make_unique<std::byte[]>(in.size());
  if (!in.empty()) std::memcpy(source.get(), in.data(), in.size());
  const auto raw = std::make_unique<std::byte[]>(g.block_bytes());
  static_cast<void>(C::decode(g, {source.get(), in.size()}, {raw.get(), g.block_bytes()}));
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const layer_group group{.tokens = 4, .k = {1, 64}, .v = {1, 64}};
  if (size == 0) return 0;
  const const_bytes in = std::as_bytes(std::span(data + 1, size - 1));
  switch (data[0] % 8) {
    case 0:
      decode<identity>(group, in);
      break;
    case 1:
      decode<q8_0>(group, in);
      break;
    case 2:
      decode<q4_0>(group, in);
      break;
    case 3:
      decode<fp8>(group, in);
      break;
    case 4:
      decode<zstd<>>(group, in);
      break;
    case 5:
      decode<lz4>(group, in);
      break;
    case 6:
      decode<chain<q4_0, zstd<>>>(group, in);
      break;
    default:
      decode<chain<q8_0, lz4>>(group, in);
  }
  return 0;
}
