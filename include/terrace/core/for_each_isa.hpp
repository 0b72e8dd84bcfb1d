// Compiles a file of kernels once for each instruction set, the way Highway does. The owner writes
//
//     #define TERRACE_KERNEL "terrace/attention/float_kernel.hpp"
//     #include "terrace/core/for_each_isa.hpp"
//
// and the file opens the namespace TERRACE_ISA inside its own, marks each function, lambdas included, with
// TERRACE_TARGET, and loops over registers with TERRACE_UNROLL. Inside it, simd::TERRACE_ISA has the vocabulary of
// core/simd.hpp. The result is, for example, terrace::kernels::avx512::attend beside
// terrace::kernels::portable::attend.
//
// With TERRACE_KERNEL_OF_BF16 defined as well, the file is compiled once, for AVX-512 with products of bf16, and adds
// to what is in the namespace avx512.

#ifdef TERRACE_KERNEL

#include "terrace/core/simd.hpp"

// TERRACE_KERNEL_INLINE marks helpers that are always inlined into kernels of sets with vector registers; in the
// portable set that is up to the compiler: it is compiled everywhere, and is the slow one anyway.
// Register blocks live in registers only if their loops are unrolled completely.
#if defined(__clang__)
#define TERRACE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TERRACE_UNROLL _Pragma("GCC unroll 16")
#endif

// nvcc passes the g++ pragma on without recognising it.
#if defined(__CUDACC__)
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675
#endif

#if defined(TERRACE_KERNEL_OF_BF16)

#define TERRACE_KERNEL_INLINE TERRACE_ALWAYS_INLINE
#if TERRACE_X86
#define TERRACE_ISA avx512
#define TERRACE_TARGET TERRACE_TARGET_AVX512_BF16
#include TERRACE_KERNEL
#undef TERRACE_ISA
#undef TERRACE_TARGET
#endif
#undef TERRACE_KERNEL_OF_BF16

#else

#define TERRACE_ISA portable
#define TERRACE_TARGET
#define TERRACE_KERNEL_INLINE inline
#include TERRACE_KERNEL
#undef TERRACE_ISA
#undef TERRACE_TARGET
#undef TERRACE_KERNEL_INLINE

#define TERRACE_KERNEL_INLINE TERRACE_ALWAYS_INLINE

#if TERRACE_X86

#define TERRACE_ISA avx2
#define TERRACE_TARGET TERRACE_TARGET_AVX2
#include TERRACE_KERNEL
#undef TERRACE_ISA
#undef TERRACE_TARGET

#define TERRACE_ISA avx512
#define TERRACE_TARGET TERRACE_TARGET_AVX512
#include TERRACE_KERNEL
#undef TERRACE_ISA
#undef TERRACE_TARGET

#endif

#endif

#if defined(__CUDACC__)
#pragma nv_diagnostic pop
#endif
#undef TERRACE_KERNEL_INLINE
#undef TERRACE_UNROLL
#undef TERRACE_KERNEL
#endif
