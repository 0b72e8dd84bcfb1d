// The kernels on a device: what tests/cuda_emulated says of their bodies, once more where they are to run. Compiled in
// kernels.cu.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "catch.hpp"
#include "cuda/pinned.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/codecs.hpp"
#include "terrace/cuda/gather.hpp"
#include "terrace/cuda/mass.hpp"
#include "terrace/cuda/merge.hpp"

using namespace terrace;

namespace {

template <class Codec, class T>
void check_codec() {
  constexpr block_encoding encoding{Codec::format_id};
  const plane p{.heads = 2, .dim = 128, .type = element_of<T>};
  const layer_group group{.tokens = 64, .k = p, .v = p};
  constexpr std::uint32_t count = 9;
  const std::size_t block = group.block_bytes(), bytes = Codec::max_encoded_size(group);
  pinned<std::byte> raw(count * block), encoded(count * bytes), again(count * block);
  pinned<std::uint32_t> bad(count);
  std::mt19937 random(1);
  for (std::size_t i = 0; i < raw.size() / sizeof(T); ++i) {
    const T x = from_float<T>(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 300.0f);
    const auto bits = static_cast<std::uint32_t>(random());
    const bool any = i % 64 < 32 && i % 3 == 0;  // any bits, among numbers
    std::memcpy(raw.data() + i * sizeof(T), any ? static_cast<const void*>(&bits) : &x, sizeof x);
  }
  std::fill_n(bad.data(), count, 0u);
  REQUIRE(cuda::encode_blocks<T, encoding>(group, {.base = raw.data(), .stride = block},
                                           {.base = encoded.data(), .stride = bytes}, count, nullptr));
  REQUIRE(cuda::decode_blocks<T, encoding>(group, {.base = encoded.data(), .stride = bytes},
                                           {.base = again.data(), .stride = block}, count, nullptr,
                                           bad.data()));
  finish_device();
  std::vector<std::byte> host(bytes), decoded(block);
  for (std::size_t i = 0; i < count; ++i) {
    REQUIRE(Codec::encode(group, {raw.data() + i * block, block}, host));
    REQUIRE(Codec::decode(group, host, decoded));
    CHECK(std::memcmp(host.data(), encoded.data() + i * bytes, bytes) == 0);
    CHECK(std::memcmp(decoded.data(), again.data() + i * block, block) == 0);
    CHECK(bad[i] == 0);
  }
}

template <class T, std::uint32_t dim, block_encoding encoding = block_encoding::raw>
double error_of(std::uint32_t kv_heads, std::uint32_t q_heads) {
  const plane p{.heads = kv_heads, .dim = dim};
  paged_kv<T, encoding> kv({.tokens = 32, .k = p, .v = p}, q_heads,
                           {{.tokens = 1000}, {.tokens = 1}, {.tokens = 0}, {.tokens = 97, .queries = 5}},
                           gaussian_at);
  pinned_kv<paged_kv<T, encoding>> there(kv, 4);
  REQUIRE(cuda::attend<T, dim, encoding>(there.args, nullptr));
  finish_device();
  there.copy_results(kv);
  const double error = kv.error(there.args.out.splits);
  // The same again: the same bits.
  REQUIRE(cuda::attend<T, dim, encoding>(there.args, nullptr));
  finish_device();
  CHECK(std::memcmp(kv.outputs.data(), there.outputs.data(), kv.outputs.size() * sizeof(float)) == 0);
  return error;
}

}  // namespace

TEST_CASE("gather on a device copies blocks of any size") {
  std::mt19937 random(2);
  for (const std::size_t bytes : {1u, 17u, 4096u, 100001u})
    for (const std::size_t skew : {0u, 1u, 4u}) {
      pinned<std::byte> from(3 * (bytes + skew)), to(3 * bytes);
      for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(random());
      REQUIRE(cuda::gather<8>({.base = from.data() + skew, .stride = bytes},
                              {.base = to.data(), .stride = bytes}, 3, bytes, nullptr));
      finish_device();
      CHECK(std::memcmp(from.data() + skew, to.data(), to.size()) == 0);
    }
}

TEST_CASE("codecs on a device give the bits of the host") {
  check_codec<q8_0, fp16>();
  check_codec<q8_0, bf16>();
  check_codec<q4_0, fp16>();
  check_codec<fp8, float>();
}

TEST_CASE("attention on a device is that of double") {
  for (const std::uint32_t q_heads : {1u, 4u, 8u, 12u, 16u}) CHECK(error_of<fp16, 128>(1, q_heads) < 1e-3);
  CHECK(error_of<bf16, 256>(2, 8) < 6e-3);
  CHECK(error_of<fp16, 128, block_encoding::q8_0>(2, 8) < 1e-3);
  CHECK(error_of<fp16, 64, block_encoding::q4_0>(2, 8) < 1e-3);
  CHECK(error_of<bf16, 64, block_encoding::fp8>(2, 8) < 6e-3);
  CHECK(error_of<float, 40>(2, 8) < 1e-5);
}

TEST_CASE("merge and mass on a device") {
  const plane p{.heads = 2, .dim = 128};
  paged_kv<fp16> kv({.tokens = 32, .k = p, .v = p}, 8, {{.tokens = 500}, {.tokens = 33}}, gaussian_at);
  pinned_kv<paged_kv<fp16>> there(kv, 2);
  const auto rows = static_cast<std::uint32_t>(kv.rows());
  pinned<softmax_row> tiles(kv.pointers.size() * cuda::tiles_of(there.args.page) * 8);
  pinned<float> out(rows * 128), lse(rows), shares(kv.pointers.size());
  there.args.tiles.rows = tiles.data();
  REQUIRE(cuda::attend<fp16, 128>(there.args, nullptr));
  REQUIRE(cuda::merge<float>(there.args.out, rows, 128, {}, {.o = out.data(), .lse = lse.data()}, nullptr));
  REQUIRE(cuda::block_mass<128>(there.args, lse.data(), static_cast<std::uint32_t>(shares.size()),
                                shares.data(), nullptr));
  finish_device();
  there.copy_results(kv);
  for (std::size_t row = 0; row < rows; ++row) {
    const auto expected = kv.merged(row, there.args.out.splits);
    for (std::size_t d = 0; d < 128; ++d)
      CHECK(out[row * 128 + d] == Approx(expected[d]).epsilon(1e-4).margin(1e-6));
  }
  for (std::size_t s = 0; s < 2; ++s) {
    double sum = 0;
    for (std::int32_t e = kv.indptr[s]; e < kv.indptr[s + 1]; ++e)
      sum += double{shares[static_cast<std::size_t>(e)]};
    CHECK(sum == Approx(1).epsilon(1e-3));
  }
}
