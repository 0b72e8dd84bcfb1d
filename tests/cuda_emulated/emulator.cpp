#include "cuda_emulated/emulator.hpp"

#include <cstdint>
#include <cstring>
#include <vector>

#include "catch.hpp"

using namespace terrace;
using cuda::block_context;

namespace {

template <class Kernel>
std::vector<std::string> faults_of(const Kernel& kernel, std::size_t shared_bytes = 0) {
  REQUIRE(cuda::launch(kernel, {.shared_bytes = shared_bytes}, nullptr));
  return emulator::take_faults();
}

struct barrier_in_a_branch {
  static constexpr std::uint32_t threads = 64;
  template <block_context Block>
  void operator()(Block& block) const {
    if (block.thread() < 32) block.sync();
  }
};
struct different_barriers {
  static constexpr std::uint32_t threads = 64;
  template <block_context Block>
  void operator()(Block& block) const {
    if (block.thread() < 32)
      block.sync();
    else
      block.sync();
  }
};
struct shuffle_of_half_a_warp {
  static constexpr std::uint32_t threads = 32;
  template <block_context Block>
  void operator()(Block& block) const {
    if (block.thread() < 16) static_cast<void>(block.shuffle_xor(1.0f, 1));
  }
};
struct unaligned_load {
  static constexpr std::uint32_t threads = 32;
  const std::byte* from;
  template <block_context Block>
  void operator()(Block& block) const {
    static_cast<void>(block.load16(from));
  }
};
// Passes a value from one warp to another through shared memory, with or without what it takes.
struct relay {
  static constexpr std::uint32_t threads = 64;
  const cuda::vec16* from;
  std::uint32_t* out;
  bool syncs, waits;
  template <block_context Block>
  void operator()(Block& block) const {
    if (block.thread() == 40) {
      block.copy_async16(block.shared(), from, 16);
      block.commit_copies();
      if (waits) block.template wait_copies<0>();
    }
    if (syncs) block.sync();
    if (block.thread() == 7) std::memcpy(out, block.shared(), sizeof *out);
  }
};
// A warp's lanes write rows that the warp then reads as matrices, twice, with or without barriers between.
struct rows_and_matrices {
  static constexpr std::uint32_t threads = 32;
  bool before, after;
  template <block_context Block>
  void operator()(Block& block) const {
    for (int i = 0; i < 2; ++i) {
      block.store_shared16(block.shared() + block.thread() * 16, {});
      if (before) block.sync_warp();
      std::uint32_t r[4];
      block.load_matrix(r, block.shared() + (block.thread() ^ 1) * 16);
      if (after) block.sync_warp();
    }
  }
};
// d = a * b through shared memory and the fragments that tensor cores take.
struct multiply {
  static constexpr std::uint32_t threads = 32;
  const fp16 *a, *b_transposed, *b;
  float* d;
  bool transposed;
  template <block_context Block>
  void operator()(Block& block) const {
    const std::uint32_t lane = block.thread(), g = lane / 4, t = lane % 4 * 2;
    auto* const memory = reinterpret_cast<fp16*>(block.shared());
    for (std::uint32_t i = lane; i < 256; i += 32) memory[i] = a[i];
    for (std::uint32_t i = lane; i < 128; i += 32) memory[256 + i] = transposed ? b[i] : b_transposed[i];
    block.sync_warp();
    std::uint32_t left[4], right[4];
    block.load_matrix(left, memory + (lane % 16) * 16 + lane / 16 * 8);
    if (transposed)
      block.load_matrix_transposed(right, memory + 256 + lane % 16 * 8);
    else
      block.load_matrix(right, memory + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
    const std::uint32_t two[2] = {right[0], right[1]};
    float out[4] = {};
    block.template multiply_add<fp16>(out, left, two);
    for (std::uint32_t j = 0; j < 4; ++j) d[(g + j / 2 * 8) * 8 + t + j % 2] = out[j];
  }
};
struct transpose {
  static constexpr std::uint32_t threads = 32;
  std::uint16_t* out;
  template <block_context Block>
  void operator()(Block& block) const {
    const std::uint32_t first = block.thread() * 2;
    const std::uint32_t r = block.transpose_matrix(first | (first + 1) << 16);
    std::memcpy(out + first, &r, sizeof r);
  }
};

}  // namespace

TEST_CASE("a barrier that not all threads come to is found") {
  CHECK(faults_of(barrier_in_a_branch{}).size() == 1);
  CHECK(faults_of(different_barriers{}).size() >= 1);
  CHECK(faults_of(shuffle_of_half_a_warp{}).size() == 1);
}

TEST_CASE("an access of 16 bytes that is not aligned is found") {
  cuda::vec16 two[2];
  CHECK(faults_of(unaligned_load{reinterpret_cast<const std::byte*>(two)}).empty());
  CHECK(!faults_of(unaligned_load{reinterpret_cast<const std::byte*>(two) + 8}).empty());
}

TEST_CASE("a race and a copy that is not waited for differ between machines") {
  const cuda::vec16 from{{77, 0, 0, 0}};
  const auto all_right = [&](bool syncs, bool waits) {
    bool right = true;
    emulator::on_each_machine([&] {
      std::uint32_t out = 0;
      CHECK(faults_of(relay{&from, &out, syncs, waits}, 16).empty());
      right = right && out == 77;
    });
    return right;
  };
  CHECK(all_right(true, true));
  CHECK(!all_right(false, true));
  CHECK(!all_right(true, false));
}

TEST_CASE("a barrier that is missing between writing and reading shared memory is found") {
  CHECK(faults_of(rows_and_matrices{true, true}, 512).empty());
  CHECK(!faults_of(rows_and_matrices{false, true}, 512).empty());
  CHECK(!faults_of(rows_and_matrices{true, false}, 512).empty());
}

TEST_CASE("matrices have the layout of their fragments") {
  std::vector<fp16> a(256), b(128), b_transposed(128);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = to_fp16(static_cast<float>(i % 23) - 11);
  for (std::size_t i = 0; i < b.size(); ++i) {
    b[i] = to_fp16(static_cast<float>(i % 19) - 9);
    b_transposed[i % 8 * 16 + i / 8] = b[i];
  }
  for (const bool transposed : {false, true}) {
    std::vector<float> d(128);
    CHECK(faults_of(multiply{a.data(), b_transposed.data(), b.data(), d.data(), transposed}, 1024).empty());
    for (std::size_t row = 0; row < 16; ++row)
      for (std::size_t column = 0; column < 8; ++column) {
        float sum = 0;
        for (std::size_t k = 0; k < 16; ++k) sum += to_float(a[row * 16 + k]) * to_float(b[k * 8 + column]);
        CHECK(d[row * 8 + column] == sum);
      }
  }
  std::uint16_t out[64];
  CHECK(faults_of(transpose{out}).empty());
  for (std::uint16_t i = 0; i < 64; ++i) CHECK(out[i] == i % 8 * 8 + i / 8);
}
