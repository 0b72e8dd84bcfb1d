#include "terrace/medium/disk_format.hpp"

#include <cstddef>
#include <cstring>
#include <random>

#include "catch.hpp"
#include "pattern.hpp"

using namespace terrace;

namespace {

superblock some_superblock(superblock::arrangement how = superblock::arrangement::one_file) {
  const bool one_file = how == superblock::arrangement::one_file;
  return {.how = how,
          .contents = {fingerprint(pattern::layout()), {fingerprint("llama"), 1, 2}, 7},
          .store = 0x1122334455667788u,
          .capacity = 1u << 20,
          .alignment = one_file ? 4096u : 1u,
          .headers = 64,
          .data_offset = one_file ? 16384u : 0u};
}
extent_header some_header(const superblock& s) {
  return {.store = s.store,
          .key = {.low = 3, .high = 4},
          .sequence = 9,
          .place = s.how == superblock::arrangement::one_file ? 8192u : 63u,
          .encoded = 4000,
          .checksum = 0xdeadbeef,
          .format_id = 7,
          .raw = 8000,
          .depth = 5,
          .group = 1,
          .row = 2,
          .loss = 3,
          .naming = 0x123456789au};
}

// Puts the right checksum under bytes that were tampered with, so that only the checks of sense are left.
template <class Bytes>
void seal(Bytes& bytes) {
  const std::uint32_t crc = crc32c(const_bytes(bytes).first(bytes.size() - 4));
  for (std::size_t i = 0; i < 4; ++i) bytes[bytes.size() - 4 + i] = std::byte(crc >> (8 * i));
}

// What every superblock that is accepted must obey, however it came about.
bool sound(const superblock& s) {
  return s.alignment != 0 && s.headers <= s.capacity / extent_header::bytes && s.data_offset <= s.capacity &&
         s.capacity <= INT64_MAX;
}
bool sound(const extent_header& h, const superblock& s) {
  if (h.encoded == 0 || h.store != s.store) return false;
  if (h.sequence > INT64_MAX || h.naming > INT64_MAX || h.depth == UINT32_MAX) return false;
  if (s.how == superblock::arrangement::file_each) return h.place <= 0xffffffffu && h.encoded <= s.capacity;
  return h.place % s.alignment == 0 && h.place <= s.capacity &&
         s.data_offset + h.place + h.encoded <= s.capacity;
}

}  // namespace

TEST_CASE("superblocks and headers come back as they were") {
  for (const auto how : {superblock::arrangement::one_file, superblock::arrangement::file_each}) {
    const superblock s = some_superblock(how);
    const auto read = decode_superblock(encode(s));
    REQUIRE(read);
    CHECK(*read == s);
    const auto header = decode_extent_header(encode(some_header(s)), s);
    REQUIRE(header);
    CHECK(*header == some_header(s));
  }
}

TEST_CASE("the bytes are those of docs/on-disk-format.md") {
  const superblock_bytes s = encode(some_superblock());
  CHECK(std::memcmp(s.data(), "terrkv1\n", 8) == 0);
  CHECK(s[8] == std::byte{1});
  CHECK(s[48] == std::byte{0x88});
  CHECK(s[55] == std::byte{0x11});
  const extent_header_bytes h = encode(some_header(some_superblock()));
  CHECK(std::memcmp(h.data(), "ext1", 4) == 0);
  CHECK(h[16] == std::byte{3});
  CHECK(h[24] == std::byte{4});
  CHECK(h[52] == std::byte{0xef});
}

TEST_CASE("what cannot be right is refused, whatever its checksum says") {
  const superblock good = some_superblock();
  const auto refused = [](superblock_bytes bytes, errc why) {
    const auto read = decode_superblock(bytes);
    return !read && read.error().code == why && *read.error().text != 0;
  };
  CHECK_FALSE(decode_superblock(const_bytes(encode(good)).first(4095)));
  auto bytes = encode(good);
  bytes[0] ^= std::byte{1};
  CHECK(refused(bytes, errc::corrupt));
  bytes = encode(good);
  bytes[8] = std::byte{2};
  CHECK(refused(bytes, errc::unavailable));
  bytes = encode(good);
  bytes[100] ^= std::byte{1};
  CHECK(refused(bytes, errc::corrupt));

  superblock bad = good;
  bad.alignment = 3;
  CHECK(refused(encode(bad), errc::corrupt));
  bad = good;
  bad.headers = bad.capacity;
  CHECK(refused(encode(bad), errc::corrupt));
  bad = good;
  bad.data_offset = bad.capacity + bad.alignment;
  CHECK(refused(encode(bad), errc::corrupt));
  bad = good;
  bad.data_offset = 4096;  // in the middle of the table
  CHECK(refused(encode(bad), errc::corrupt));
  bad = good;
  bad.capacity = ~std::uint64_t{0};
  CHECK(refused(encode(bad), errc::corrupt));

  const auto no_header = [&](extent_header h) { return !decode_extent_header(encode(h), good); };
  extent_header h = some_header(good);
  h.place = good.capacity;
  CHECK(no_header(h));
  h = some_header(good);
  h.place = ~std::uint64_t{0} - 4095;
  CHECK(no_header(h));
  h = some_header(good);
  h.encoded = 0xffffffffu;
  CHECK(no_header(h));
  h = some_header(good);
  h.encoded = 0;
  CHECK(no_header(h));
  h = some_header(good);
  h.store ^= 1;
  CHECK(no_header(h));
  // Numbers that would begin anew with the next one.
  for (const std::uint64_t n : {~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    h = some_header(good);
    h.sequence = n;
    CHECK(no_header(h));
    h = some_header(good);
    h.naming = n;
    CHECK(no_header(h));
  }
  h = some_header(good);
  h.depth = ~std::uint32_t{0};
  CHECK(no_header(h));
  CHECK_FALSE(decode_extent_header(extent_header_bytes{}, good));
  CHECK_FALSE(decode_extent_header(const_bytes(encode(some_header(good))).first(127), good));
}

TEST_CASE("mutated bytes are refused, or make sense") {
  std::mt19937_64 random(1);
  const auto mutate = [&](mutable_bytes bytes) {
    for (auto n = random() % 4 + 1; n != 0; --n) {
      std::byte& b = bytes[random() % bytes.size()];
      switch (random() % 3) {
        case 0:
          b ^= std::byte(1u << (random() % 8));
          break;
        case 1:
          b = std::byte(random() & 0xff);
          break;
        default:
          b = random() % 2 != 0 ? std::byte{0xff} : std::byte{0};
      }
    }
  };
  unsigned accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    const superblock s =
        some_superblock(i % 2 != 0 ? superblock::arrangement::one_file : superblock::arrangement::file_each);
    auto head = encode(s);
    mutate(mutable_bytes(head).first(80));
    // Damage alone is always seen, as more than a few flipped bits are not at work here.
    if (head != encode(s)) REQUIRE_FALSE(decode_superblock(head));
    seal(head);
    if (const auto read = decode_superblock(head)) {
      REQUIRE(sound(*read));
      ++accepted;
    }
    auto header = encode(some_header(s));
    mutate(mutable_bytes(header).first(80));
    if (header != encode(some_header(s))) REQUIRE_FALSE(decode_extent_header(header, s));
    seal(header);
    if (const auto read = decode_extent_header(header, s)) {
      REQUIRE(sound(*read, s));
      ++accepted;
    }
  }
  CHECK(accepted > 1000);  // else the checks of sense were never reached
}

TEST_CASE("another layout has another fingerprint") {
  const kv_layout layout = pattern::layout();
  const std::uint64_t own = fingerprint(layout);
  const auto differs = [&](auto change) {
    kv_layout other = layout;
    change(other.groups[0]);
    return fingerprint(other) != own;
  };
  CHECK(fingerprint(pattern::layout()) == own);
  CHECK(differs([](layer_group& g) { g.layers = 4; }));
  CHECK(differs([](layer_group& g) { g.tokens = 32; }));
  CHECK(differs([](layer_group& g) { std::swap(g.k.heads, g.k.dim); }));
  CHECK(differs([](layer_group& g) { g.v.type = element::bf16; }));
  CHECK(differs([](layer_group& g) { g.order = page_order::nhd; }));
  CHECK(differs([](layer_group& g) { g.layers_per_block = 2; }));
  CHECK_FALSE(differs([](layer_group& g) { g.keep.window = 64; }));  // attention's affair
}
