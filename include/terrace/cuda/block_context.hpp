#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>

#include "terrace/core/element.hpp"

namespace terrace::cuda {

/// Threads of a warp.
inline constexpr std::uint32_t warp_threads = 32;

/// 16 bytes that move as one.
struct alignas(16) vec16 {
  std::uint32_t word[4] = {};
  friend constexpr bool operator==(const vec16&, const vec16&) noexcept = default;
};

/// Which block of the grid this is, or how many there are.
struct grid_index {
  std::uint32_t x = 0, y = 0, z = 0;
};

/// What the body of a kernel knows of the machine, seen by one thread: `device_block` (cuda/device_block.cuh)
/// on a device, an emulator in the tests. Each member is one instruction or a few.
///
/// - `thread()`, `index()`, `count()`: this thread within its block, the block within the grid, the grid.
/// - `shared()`: the block's dynamic shared memory, aligned to 128 bytes, with any content at first.
/// - `sync()`: waits for all threads of the block; what was written before is seen after. Every thread of the
///   block must come to the same call, and none may have returned.
/// - `sync_warp()`: the same within a warp.
/// - `shuffle_xor(x, mask)`: the x of the lane whose number differs in the bits of `mask`. x has 4 bytes.
/// - `load16(p)`, `store16(p, v)`: global memory, p aligned to 16, not kept in the nearest cache.
/// - `store_shared16(p, v)`: shared memory, p aligned to 16.
/// - `copy_async16(to, from, bytes)`: 16 bytes of shared memory, of which the first `bytes` come from global
///   memory and the rest are 0. Both addresses are aligned to 16; with 0 bytes `from` is not read.
///   `commit_copies()` closes a group of this thread's copies, and `wait_copies<n>()` waits until at most the n
///   last groups are under way. Another thread sees the bytes after a sync that follows the wait.
/// - `load_matrix(r, row)`, `load_matrix_transposed(r, row)`: four 8x8 matrices of 16-bit elements from shared
///   memory. Lane i gives the address of row i % 8 of matrix i / 8, aligned to 16. r[j] has two elements of
///   matrix j: those of row lane / 4 and columns 2 * (lane % 4) and the next; transposed, of that column and those
///   rows. PTX: ldmatrix.x4(.trans).
/// - `transpose_matrix(x)`: one 8x8 matrix in registers, laid out as above, transposed. PTX: movmatrix.
/// - `multiply_add<T>(d, a, b)`: d += a * b, for a 16x16 of T, b 16x8 of T, d 16x8 of float. Fragments as PTX has
///   them for mma.m16n8k16: with g = lane / 4 and t = 2 * (lane % 4), a[0] has row g, columns t and t + 1; a[1] row
///   g + 8; a[2] and a[3] the same rows, columns t + 8 and t + 9; b[0] has rows t and t + 1 of column g, b[1] rows
///   t + 8 and t + 9; d[0] and d[1] have row g, columns t and t + 1, d[2] and d[3] row g + 8.
/// - `pack<T>(lo, hi)`: two floats, no NaN, rounded to T as `from_float` rounds, in one word, `lo` in its low half.
/// - `to_float(x)`: an fp16 or bf16 as a float; which NaN a NaN becomes is unspecified.
/// - `exp(x)`: e to the power of x, with a relative error of about 1e-5 for x <= 0; 0 for -infinity.
///
/// All lanes of a warp must reach the members from `sync_warp` to `shuffle_xor` and from `load_matrix` to
/// `multiply_add` together.
template <class B>
concept block_context = requires(B& block, const void* from, void* to, vec16 v, std::uint32_t n, float x,
                                 std::uint32_t (&a)[4], std::uint32_t (&b)[2], float (&d)[4]) {
  { block.thread() } -> std::same_as<std::uint32_t>;
  { block.index() } -> std::same_as<grid_index>;
  { block.count() } -> std::same_as<grid_index>;
  { block.shared() } -> std::same_as<std::byte*>;
  block.sync();
  block.sync_warp();
  { block.shuffle_xor(x, n) } -> std::same_as<float>;
  { block.shuffle_xor(n, n) } -> std::same_as<std::uint32_t>;
  { block.load16(from) } -> std::same_as<vec16>;
  block.store16(to, v);
  block.store_shared16(to, v);
  block.copy_async16(to, from, n);
  block.commit_copies();
  block.template wait_copies<1>();
  block.load_matrix(a, from);
  block.load_matrix_transposed(a, from);
  { block.transpose_matrix(n) } -> std::same_as<std::uint32_t>;
  block.template multiply_add<fp16>(d, a, b);
  block.template multiply_add<bf16>(d, a, b);
  { block.template pack<fp16>(x, x) } -> std::same_as<std::uint32_t>;
  { block.template pack<bf16>(x, x) } -> std::same_as<std::uint32_t>;
  { block.to_float(fp16{}) } -> std::same_as<float>;
  { block.to_float(bf16{}) } -> std::same_as<float>;
  { block.exp(x) } -> std::same_as<float>;
};

}  // namespace terrace::cuda
