#pragma once
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "terrace/codec/codec.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// How thoroughly `codec_conformance` looks.
struct codec_conformance_options {
  std::uint32_t seed = 1;
  unsigned rounds = 24;  ///< blocks that are encoded for each group
};

/// Groups of layers of every kind that a codec may be asked for: element types, page orders, one plane and
/// two, several layers a block, sizes that are multiples of nothing.
inline std::vector<layer_group> codec_conformance_groups() {
  std::vector<layer_group> groups;
  for (const element type : {element::fp16, element::bf16, element::fp32, element::fp8_e4m3})
    for (const page_order order : {page_order::hnd, page_order::nhd}) {
      groups.push_back({.tokens = 16, .k = {2, 64, type}, .v = {2, 64, type}, .order = order});
      groups.push_back({.layers = 2,
                        .tokens = 4,
                        .k = {1, 96, type},
                        .v = {1, 32, type},
                        .order = order,
                        .layers_per_block = 2});
    }
  groups.push_back({.tokens = 16, .k = {1, 576, element::bf16}});  // one latent plane, as MLA has
  groups.push_back({.tokens = 3, .k = {3, 5, element::fp16}, .v = {3, 7, element::fp16}});
  groups.push_back({.tokens = 1, .k = {1, 1, element::fp32}});
  groups.push_back({.tokens = 8, .k = {1, 64, element::bf16}, .v = {1, 64, element::fp16}});
  return groups;
}

namespace detail {

template <codec C>
class codec_examination {
 public:
  using verdict = std::optional<std::string>;
  using bytes = std::vector<std::byte>;

  codec_examination(const layer_group& group, const codec_conformance_options& how)
      : group_(group), how_(how), random_(how.seed) {}

  verdict run() {
    const auto supported = C::supports(group_);
    if (!supported) {
      if (supported.error().code != errc::invalid_argument)
        return "a group that cannot be encoded is an invalid argument";
      if (*supported.error().text == 0) return "supports() says in a sentence what cannot be encoded";
      return {};
    }
    most_ = C::max_encoded_size(group_);
    if (most_ == 0) return "an encoded block has at least one byte";
    if (C::max_encoded_size(group_) != most_) return "max_encoded_size is the same every time";
    if (auto violated = sizes()) return violated;
    for (unsigned round = 0; round < how_.rounds; ++round)
      if (auto violated = one_block(content(round))) return violated;
    return {};
  }

 private:
  // An input is allocated to its exact size, so that a sanitizer sees reads beyond it.
  struct exact {
    explicit exact(const bytes& from) : data(new std::byte[from.size()]), size(from.size()) {
      if (size != 0) std::memcpy(data.get(), from.data(), size);
    }
    const_bytes all() const noexcept { return {data.get(), size}; }
    std::unique_ptr<std::byte[]> data;
    std::size_t size;
  };
  // An output has a margin on both sides.
  struct guarded {
    explicit guarded(std::size_t n) : data(n + 2 * margin, std::byte{0x5c}), size(n) {}
    mutable_bytes all() noexcept { return mutable_bytes(data).subspan(margin, size); }
    bool intact() const noexcept {
      const auto is_margin = [](std::byte b) { return b == std::byte{0x5c}; };
      return std::all_of(data.begin(), data.begin() + margin, is_margin) &&
             std::all_of(data.end() - margin, data.end(), is_margin);
    }
    bytes first(std::size_t n) {
      return {data.begin() + margin, data.begin() + margin + static_cast<std::ptrdiff_t>(n)};
    }
    static constexpr std::ptrdiff_t margin = 64;
    bytes data;
    std::size_t size;
  };

  std::size_t block() const noexcept { return group_.block_bytes(); }

  verdict sizes() {
    const bytes right(block()), small(block() - 1), large(block() + 1);
    for (const bytes* raw : {&small, &large}) {
      guarded out(most_);
      const auto encoded = C::encode(group_, exact(*raw).all(), out.all());
      if (encoded || encoded.error().code != errc::invalid_argument)
        return "a block of another size than its group's is an invalid argument to encode";
      if (!out.intact()) return "encode writes nothing outside of its spans";
    }
    guarded short_out(most_ - 1);
    const auto encoded = C::encode(group_, exact(right).all(), short_out.all());
    if (encoded || encoded.error().code != errc::invalid_argument)
      return "an output that is smaller than max_encoded_size is an invalid argument to encode";
    if (!short_out.intact()) return "encode writes nothing outside of its spans";
    return {};
  }

  verdict one_block(const bytes& raw) {
    const auto first = encode(raw);
    if (!first.violated.empty()) return first.violated;
    const auto back = decode(first.value);
    if (!back.violated.empty()) return back.violated;
    if (C::lossless && back.value != raw) return "a lossless codec gives back what it was given";
    const auto second = encode(back.value);
    if (!second.violated.empty()) return second.violated;
    if (second.value != first.value) return "encoding what was decoded gives the same encoded bytes";
    const auto again = decode(second.value);
    if (!again.violated.empty()) return again.violated;
    if (again.value != back.value) return "decoding a second time gives the same block";
    return hostile(first.value);
  }

  struct outcome {
    bytes value;
    std::string violated;
  };
  outcome encode(const bytes& raw) {
    guarded out(most_ + random_() % 3 * 64);  // more room than it needs is allowed
    const auto written = C::encode(group_, exact(raw).all(), out.all());
    if (!out.intact()) return {{}, "encode writes nothing outside of its spans"};
    if (!written) return {{}, "a block of any content can be encoded: " + written.error().message()};
    if (*written == 0 || *written > most_) return {{}, "encode writes at most max_encoded_size bytes"};
    if (C::fixed_rate && *written != most_)
      return {{}, "a codec of fixed rate always writes max_encoded_size bytes"};
    return {out.first(*written), {}};
  }
  outcome decode(const bytes& encoded) {
    guarded raw(block());
    const auto decoded = C::decode(group_, exact(encoded).all(), raw.all());
    if (!raw.intact()) return {{}, "decode writes nothing outside of its spans"};
    if (!decoded) return {{}, "what encode wrote can be decoded: " + decoded.error().message()};
    return {raw.first(block()), {}};
  }

  // Bytes that encode did not write: cut off, prolonged, changed here and there, or of any content.
  verdict hostile(const bytes& encoded) {
    for (int kind = 0; kind < 6; ++kind) {
      bytes in = encoded;
      switch (kind) {
        case 0:
          in.resize(random_() % encoded.size());
          break;
        case 1:
          in.resize(encoded.size() + 1 + random_() % 64);
          break;
        case 2:
          in.clear();
          break;
        case 3:
          fill(in);
          break;
        default:
          for (int flips = 0; flips < 4; ++flips)
            in[random_() % in.size()] ^= static_cast<std::byte>(1u << (random_() % 8));
      }
      guarded raw(block());
      const auto decoded = C::decode(group_, exact(in).all(), raw.all());
      if (!raw.intact()) return "decode of hostile bytes touches nothing outside of its spans";
      if (!decoded && decoded.error().code != errc::corrupt)
        return "bytes that encode cannot have written are corrupt";
    }
    return {};
  }

  void fill(bytes& b) {
    for (std::byte& x : b) x = static_cast<std::byte>(random_());
  }

  // Zeros; random bits, NaN among them; one value throughout; ordinary numbers, with outliers or without.
  bytes content(unsigned round) {
    bytes b(block());
    switch (round % 5) {
      case 0:
        break;
      case 1:
        fill(b);
        break;
      case 2:
        std::fill(b.begin(), b.end(), static_cast<std::byte>(random_()));
        break;
      default:
        numbers(b, round % 5 == 4);
    }
    return b;
  }
  void numbers(bytes& b, bool outliers) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::size_t at = 0;
    for (std::uint32_t layer = 0; layer < group_.layers_per_block; ++layer)
      for (const plane& p : {group_.k, group_.v})
        for (std::size_t i = 0; i < group_.plane_bytes(p) / std::max<std::size_t>(size_of(p.type), 1); ++i) {
          const float x = normal(random_) * (outliers && random_() % 64 == 0 ? 500.0f : 1.0f);
          put(b, at, p.type, x);
        }
  }
  static void put(bytes& b, std::size_t& at, element type, float x) {
    const auto store = [&](auto value) {
      std::memcpy(b.data() + at, &value, sizeof value);
      at += sizeof value;
    };
    switch (type) {
      case element::fp16:
        return store(to_fp16(x));
      case element::bf16:
        return store(to_bf16(x));
      case element::fp32:
        return store(x);
      case element::fp8_e4m3:
        return store(to_fp8_e4m3(x));
    }
  }

  layer_group group_;
  codec_conformance_options how_;
  std::mt19937 random_;
  std::size_t most_ = 0;
};

}  // namespace detail

/// Tests a codec against its contract (codec/codec.hpp) on blocks of one group and returns the first sentence of it
/// that does not hold, or nothing; also nothing if the codec refuses the group as it should. Run it under an address
/// sanitizer too: only that can see reads outside a span.
template <codec C>
std::optional<std::string> codec_conformance(const layer_group& group,
                                             const codec_conformance_options& how = {}) {
  return detail::codec_examination<C>(group, how).run();
}

/// The same for all of `codec_conformance_groups()`; a codec that supports none of them is a violation too.
template <codec C>
std::optional<std::string> codec_conformance(const codec_conformance_options& how = {}) {
  bool any = false;
  for (const layer_group& group : codec_conformance_groups()) {
    if (auto violated = codec_conformance<C>(group, how)) return violated;
    any = any || C::supports(group);
  }
  return any ? std::optional<std::string>() : "a codec supports groups of some kind";
}

}  // namespace terrace
