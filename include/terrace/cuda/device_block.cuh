#pragma once
#if !defined(__CUDACC__)
#error "terrace/cuda/device_block.cuh needs nvcc: it is the machine that kernels run on"
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terrace/core/element.hpp"
#include "terrace/cuda/block_context.hpp"

namespace terrace::cuda {

/// The block context of a real device, of compute capability 8.0 or newer. It has no state.
class device_block {
 public:
  __device__ std::uint32_t thread() const { return threadIdx.x; }
  __device__ grid_index index() const { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
  __device__ grid_index count() const { return {gridDim.x, gridDim.y, gridDim.z}; }
  __device__ std::byte* shared() const {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    return reinterpret_cast<std::byte*>(shared_memory);
  }

  __device__ void sync() const { __syncthreads(); }
  __device__ void sync_warp() const { __syncwarp(); }
  template <class T>
  __device__ T shuffle_xor(T x, std::uint32_t mask) const {
    static_assert(sizeof(T) == 4, "a shuffle moves words");
    return __shfl_xor_sync(0xffffffffu, x, static_cast<int>(mask));
  }

  __device__ vec16 load16(const void* p) const {
    const uint4 v = __ldcs(static_cast<const uint4*>(p));
    return {{v.x, v.y, v.z, v.w}};
  }
  __device__ void store16(void* p, const vec16& v) const {
    __stcs(static_cast<uint4*>(p), make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]));
  }
  __device__ void store_shared16(void* p, const vec16& v) const {
    *static_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
  }

  __device__ void copy_async16(void* to, const void* from, std::uint32_t bytes) const {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
  }
  __device__ void commit_copies() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int n>
  __device__ void wait_copies() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
  }

  __device__ void load_matrix(std::uint32_t (&r)[4], const void* row) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
  __device__ void load_matrix_transposed(std::uint32_t (&r)[4], const void* row) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
  __device__ std::uint32_t transpose_matrix(std::uint32_t x) const {
    std::uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(x));
    return out;
  }
  template <class T>
  __device__ void multiply_add(float (&d)[4], const std::uint32_t (&a)[4],
                               const std::uint32_t (&b)[2]) const {
    static_assert(std::is_same_v<T, fp16> || std::is_same_v<T, bf16>,
                  "tensor cores take 16-bit elements here");
    if constexpr (std::is_same_v<T, fp16>) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }
  template <class T>
  __device__ std::uint32_t pack(float lo, float hi) const {
    static_assert(std::is_same_v<T, fp16> || std::is_same_v<T, bf16>, "a word holds two 16-bit elements");
    std::uint32_t out;
    if constexpr (std::is_same_v<T, fp16>)
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
    else
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
    return out;
  }
  __device__ float to_float(fp16 x) const { return __half2float(__ushort_as_half(x.bits)); }
  __device__ float to_float(bf16 x) const { return __uint_as_float(std::uint32_t{x.bits} << 16); }
  __device__ float exp(float x) const { return __expf(x); }

 private:
  __device__ static std::uint32_t shared_address(const void* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
  }
};

static_assert(block_context<device_block>);

}  // namespace terrace::cuda
