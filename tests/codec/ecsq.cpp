#include "terrace/codec/ecsq.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "catch.hpp"
#include "instruction_sets.hpp"
#include "terrace/codec/rans.hpp"
#include "terrace/codec/rans_simd.hpp"
#include "terrace/core/convert.hpp"
#include "terrace/testing/codec_conformance.hpp"

using namespace terrace;

namespace {

using bytes = std::vector<std::byte>;

// Keys of a model: each channel has a mean and a spread of its own, and then they are turned. Values: spreads alone.
template <class T>
bytes keys_and_values(const layer_group& group, const rope& turn, std::uint32_t first_position,
                      std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  bytes block(group.block_bytes());
  for (std::uint32_t layer = 0; layer < group.layers_per_block; ++layer)
    for (const plane* p : {&group.k, &group.v}) {
      if (!p->present()) continue;
      const bool keys = p == &group.k;
      const std::size_t plane_at = keys ? group.k_offset(layer) : group.v_offset(layer);
      for (std::uint32_t head = 0; head < p->heads; ++head) {
        std::vector<double> mean(p->dim), spread(p->dim);
        for (double& m : mean) m = keys ? 2 * normal(random) : 0;
        for (double& s : spread) s = std::exp2(normal(random));
        for (std::uint32_t t = 0; t < group.tokens; ++t) {
          std::vector<double> x(p->dim);
          for (std::uint32_t c = 0; c < p->dim; ++c) x[c] = mean[c] + spread[c] * normal(random);
          const std::uint32_t half = p->dim / 2;
          for (std::uint32_t i = 0; keys && turn.theta != 0 && i < half; ++i) {
            const double angle = (first_position + t) * std::pow(turn.theta, -2.0 * i / p->dim);
            const bool halves = turn.pairs == rope::pairing::halves;
            double &a = x[halves ? i : 2 * i], &b = x[halves ? i + half : 2 * i + 1];
            const double turned = a * std::cos(angle) - b * std::sin(angle);
            b = b * std::cos(angle) + a * std::sin(angle);
            a = turned;
          }
          std::vector<T> row(p->dim);
          for (std::uint32_t c = 0; c < p->dim; ++c) row[c] = from_float<T>(static_cast<float>(x[c]));
          std::memcpy(block.data() + plane_at + head * group.head_stride(*p) + t * group.token_stride(*p),
                      row.data(), row.size() * sizeof(T));
        }
      }
    }
  return block;
}

template <class C>
bytes encoded(const layer_group& group, const bytes& block, isa set = best_isa()) {
  bytes out(C::max_encoded_size(group));
  const auto size = C::encode(group, block, out, set);
  REQUIRE(size);
  out.resize(*size);
  return out;
}
template <class C>
bytes decoded(const layer_group& group, const bytes& in, isa set = best_isa()) {
  bytes block(group.block_bytes(), std::byte{0xee});
  REQUIRE(C::decode(group, in, block, set));
  return block;
}

// The largest difference of two blocks of fp16, and the root of their mean square.
std::pair<double, double> compare(const bytes& a, const bytes& b) {
  double most = 0, squares = 0;
  for (std::size_t i = 0; i < a.size(); i += 2) {
    fp16 x, y;
    std::memcpy(&x, a.data() + i, 2);
    std::memcpy(&y, b.data() + i, 2);
    const double off = std::fabs(to_float(x) - to_float(y));
    most = std::max(most, off);
    squares += off * off;
  }
  return std::pair(most, std::sqrt(squares / static_cast<double>(a.size() / 2)));
}

const layer_group model{.tokens = 64, .k = {2, 64}, .v = {2, 64}};
constexpr rope llama{.theta = 100000};
constexpr rope gptj{.theta = 10000, .pairs = rope::pairing::neighbours};

#if TERRACE_X86
TERRACE_TARGET_AVX512 void put_avx512(rans_writer& to, const std::int16_t* numbers,
                                      const std::uint8_t* which) {
  simd::avx512::put(to, numbers, which);
}
#endif

}  // namespace

TEST_CASE("ecsq keeps the laws of a codec") {
  CHECK(codec_conformance<ecsq<>>() == std::nullopt);
  CHECK(codec_conformance<ecsq<llama>>() == std::nullopt);
  CHECK(codec_conformance<ecsq<gptj, 15, 15>>() == std::nullopt);
  CHECK(codec_conformance<ecsq<llama, 1, 1>>() == std::nullopt);
}

TEMPLATE_TEST_CASE("what ecsq decoded is encoded as the same bytes, with every instruction set", "", fp16,
                   bf16, float) {
  for (const page_order order : {page_order::hnd, page_order::nhd})
    for (std::uint32_t seed = 0; seed < 12; ++seed) {
      layer_group group = model;
      group.order = order;
      group.k.type = group.v.type = element_of<TestType>;
      const bytes block = keys_and_values<TestType>(group, llama, 1000 * seed, seed);
      for (const isa set : sets_here()) {
        using coder = ecsq<llama>;
        const bytes first = encoded<coder>(group, block, set);
        const bytes back = decoded<coder>(group, first, set);
        REQUIRE(encoded<coder>(group, back, set) == first);
        // Far fewer bytes, so heads are coded and not stored.
        CHECK(first.size() < group.block_bytes() / 4);
      }
    }
}

TEST_CASE("ecsq moves a value by half a step at most") {
  layer_group values = model;
  values.v = {};  // one plane that nothing turns
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  bytes block(values.block_bytes());
  for (std::size_t i = 0; i < block.size(); i += 2) {
    const fp16 x = to_fp16(normal(random));
    std::memcpy(block.data() + i, &x, 2);
  }
  const auto [most, root] = compare(block, decoded<ecsq<>>(values, encoded<ecsq<>>(values, block)));
  CHECK(most <=
        0.6 * std::exp2(1.0 / 16) + 0.01);  // 1.2 standard deviations, rounded to an eighth of a power of two
  CHECK(root < 1.2 * std::exp2(1.0 / 16) / std::sqrt(12.0) * 1.02);
  CHECK(root > 0.2);
}

TEST_CASE("turning keys back gives finer steps for as many bytes, wherever the block is") {
  const auto bytes_and_error = [](auto coder, const bytes& block) {
    using C = decltype(coder);
    const bytes in = encoded<C>(model, block);
    return std::pair(static_cast<double>(in.size()), compare(block, decoded<C>(model, in)).second);
  };
  for (const std::uint32_t position : {0u, 12345u}) {
    const bytes block = keys_and_values<fp16>(model, llama, position, 7);
    const auto [right, right_error] = bytes_and_error(ecsq<llama>{}, block);
    const auto [none, none_error] = bytes_and_error(ecsq<>{}, block);
    const auto [wrong, wrong_error] = bytes_and_error(ecsq<gptj>{}, block);
    CHECK(right < none * 1.05);
    CHECK(right < wrong * 1.05);
    CHECK(right_error < none_error * 0.93);
    CHECK(right_error < wrong_error * 0.93);
    const bytes other = keys_and_values<fp16>(model, gptj, position, 7);
    CHECK(bytes_and_error(ecsq<gptj>{}, other).second < bytes_and_error(ecsq<>{}, other).second * 0.93);
  }
}

TEST_CASE("zeros take three bytes a head, and what cannot be coded is stored as it is") {
  bytes block(model.block_bytes());
  CHECK(encoded<ecsq<llama>>(model, block).size() == 4 * 3 + rans::state_bytes);
  CHECK(decoded<ecsq<llama>>(model, encoded<ecsq<llama>>(model, block)) == block);

  block = keys_and_values<fp16>(model, llama, 0, 1);
  const std::size_t all_coded = encoded<ecsq<llama>>(model, block).size();
  const fp16 infinity{0x7c00};
  std::memcpy(block.data(), &infinity, 2);  // in the first head
  const bytes in = encoded<ecsq<llama>>(model, block);
  CHECK(in.size() > all_coded + 6000);
  const bytes back = decoded<ecsq<llama>>(model, in);
  CHECK(std::memcmp(back.data(), block.data(), 64 * 64 * 2) == 0);
}

TEST_CASE("a block that another instruction set encoded is decoded to the rounding of a type") {
  const bytes block = keys_and_values<fp16>(model, llama, 99, 5);
  const bytes in = encoded<ecsq<llama>>(model, block, isa::portable);
  const bytes one = decoded<ecsq<llama>>(model, in, isa::portable);
  for (const isa set : sets_here()) {
    const bytes other = decoded<ecsq<llama>>(model, in, set);
    for (std::size_t i = 0; i < one.size(); i += 2) {
      fp16 x, y;
      std::memcpy(&x, one.data() + i, 2);
      std::memcpy(&y, other.data() + i, 2);
      REQUIRE(std::fabs(to_float(x) - to_float(y)) <= 0.002f * (1 + std::fabs(to_float(x))));
    }
    CHECK(encoded<ecsq<llama>>(model, other, set) == in);
  }
}

TEST_CASE("hostile bytes are an error, whatever was done to them") {
  std::mt19937 random(11);
  const bytes good = encoded<ecsq<llama>>(model, keys_and_values<fp16>(model, llama, 0, 2));
  bytes block(model.block_bytes());
  unsigned refused = 0, rounds = 0;
  for (const isa set : sets_here())
    for (unsigned i = 0; i < 300; ++i, ++rounds) {
      bytes bad = good;
      if (i % 3 == 0) bad.resize(random() % bad.size());
      if (i % 3 == 1) bad[random() % bad.size()] ^= static_cast<std::byte>(1 + random() % 255);
      if (i % 3 == 2) bad.insert(bad.end(), {std::byte{1}, std::byte{2}});
      refused += !ecsq<llama>::decode(model, bad, block, set);
    }
  CHECK(refused == rounds);  // the states at the end tell: a change is missed once in 2^100
}

TEST_CASE("the distributions of the range coder fill their slots, and each number can be read again") {
  const rans::tables& t = rans::table();
  for (std::size_t d = 0; d < rans::distributions; ++d) {
    std::uint32_t sum = 0;
    for (int n = -rans::reach[d]; n <= rans::reach[d]; ++n) {
      const rans::interval i = t.of[d][static_cast<std::size_t>(n + rans::most)];
      REQUIRE(i.start == sum);
      REQUIRE(i.frequency >= 1);
      sum += i.frequency;
    }
    CHECK(sum == rans::slots);
  }
  std::mt19937 random(1);
  bytes room(100 * 32 + rans::state_bytes);
  std::vector<std::int16_t> numbers(1600);
  std::vector<std::uint8_t> which(1600);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    which[i] = static_cast<std::uint8_t>(random() % rans::distributions);
    const auto reach = static_cast<unsigned>(rans::reach[which[i]]);
    numbers[i] =
        static_cast<std::int16_t>(static_cast<int>(random() % (2 * reach + 1)) - static_cast<int>(reach));
  }
  const auto write = [&](bytes& to, auto put) {
    rans_writer writer(to.data() + to.size());
    for (std::size_t i = numbers.size(); i != 0;) {
      i -= 16;
      put(writer, numbers.data() + i, which.data() + i);
    }
    return writer.finish();
  };
  const std::byte* const begin = write(room, [](auto&&... arguments) { simd::portable::put(arguments...); });
#if TERRACE_X86
  if (probe_isa() == isa::avx512) {
    bytes other(room.size());
    const std::byte* const there = write(other, [](auto&&... arguments) { put_avx512(arguments...); });
    REQUIRE(there - other.data() == begin - room.data());
    CHECK(std::equal(there, static_cast<const std::byte*>(other.data() + other.size()), begin));
  }
#endif
  rans_reader reader(begin, static_cast<std::size_t>(room.data() + room.size() - begin));
  auto lanes = simd::portable::load_lanes(reader);
  for (std::size_t i = 0; i < numbers.size(); i += 16) {
    std::int32_t bases[16];
    for (std::size_t l = 0; l < 16; ++l) bases[l] = which[i + l] * static_cast<int>(rans::slots);
    const auto read = simd::portable::next(lanes, reader, t.at.data(), bases);
    for (std::size_t l = 0; l < 16; ++l) REQUIRE(read.lane[l] == numbers[i + l]);
  }
  simd::portable::store_lanes(reader, lanes);
  CHECK(reader.done());
}
