// Every codec's decode of hostile bytes: an error or a block, and nothing outside of its spans (the address sanitizer
// watches). What was decoded is encoded again, and comes back as itself.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "codec_list.hpp"

using namespace terrace;

namespace {
// Buffers of exactly their sizes, so that a byte beyond them is seen.
struct buffer {
  explicit buffer(std::size_t n) : bytes(new std::byte[n]), size(n) {}
  mutable_bytes all() const { return {bytes.get(), size}; }
  std::unique_ptr<std::byte[]> bytes;
  std::size_t size;
};

template <class C>
void decode(const layer_group& g, const_bytes in) {
  const buffer source(in.size()), raw(g.block_bytes()), encoded(C::max_encoded_size(g)),
      again(g.block_bytes());
  if (!in.empty()) std::memcpy(source.bytes.get(), in.data(), in.size());
  if (!C::decode(g, source.all(), raw.all())) return;
  const auto length = C::encode(g, raw.all(), encoded.all());
  if (!length || *length > encoded.size) std::abort();
  if (!C::decode(g, encoded.all().first(*length), again.all())) std::abort();
  if (C::lossless && std::memcmp(raw.bytes.get(), again.bytes.get(), raw.size) != 0) std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const const_bytes in = std::as_bytes(std::span(data + 1, size - 1));
  fuzz::for_each_codec([&](auto codec, std::size_t number) {
    if (number == data[0] % 14u) decode<typename decltype(codec)::type>(fuzz::group(), in);
  });
  return 0;
}
