#pragma once
// The macros of Terrace (TERRACE_EX, which names the execution back end, is in execution/backend.hpp). All of
// this is about the compiler, never about a feature: no type changes its shape because of a macro in this file.

// Marks a function that the CUDA device pass compiles as well. Empty for every other compiler. TERRACE_DEVICE marks
// the body of a kernel: nvcc compiles it only for the device, other compilers for the tests that emulate a device.
// TERRACE_DEVICE_UNROLL goes before a kernel loop whose body indexes arrays that must become registers.
#if defined(__CUDACC__)
#define TERRACE_HD __host__ __device__
#define TERRACE_DEVICE __device__
#define TERRACE_DEVICE_UNROLL _Pragma("unroll")
#else
#define TERRACE_HD
#define TERRACE_DEVICE
#define TERRACE_DEVICE_UNROLL
#endif

// Runs `TERRACE_TRY { ... } TERRACE_CATCH_ALL { ... }` if the caller's translation unit has exceptions enabled, and
// only the first block if not. Terrace itself throws nothing; this is for callables that the caller supplies.
#if defined(__cpp_exceptions)
#define TERRACE_TRY try
#define TERRACE_CATCH_ALL catch (...)
#else
#define TERRACE_TRY if (true)
#define TERRACE_CATCH_ALL else
#endif

// CPU kernels are compiled for several instruction sets in one translation unit and chosen at run time. Every
// function of a kernel, lambdas included, carries one of these; the caller needs no -m flag.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDA_ARCH__)
#define TERRACE_X86 1
#define TERRACE_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define TERRACE_TARGET_AVX512_BF16 \
  __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define TERRACE_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#else
#define TERRACE_X86 0
#define TERRACE_TARGET_AVX512
#define TERRACE_TARGET_AVX512_BF16
#define TERRACE_TARGET_AVX2
#endif
#define TERRACE_ALWAYS_INLINE __attribute__((always_inline)) inline

// Code that uses AVX-512 intrinsics goes between these two: g++ 12 warns about the deliberately undefined operands
// inside its own intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#define TERRACE_AVX512_BEGIN                                                           \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define TERRACE_AVX512_END _Pragma("GCC diagnostic pop")
#else
#define TERRACE_AVX512_BEGIN
#define TERRACE_AVX512_END
#endif

// Terrace is header-only unless every translation unit of a program defines TERRACE_PREBUILT and one of them includes
// terrace/prebuilt.hpp. Then everything that knows neither tier nor policy (the planner, the kernels) is compiled
// once, in that unit, and the others compile in half the time. TERRACE_BODY marks the definitions of those functions.
#if defined(TERRACE_PREBUILT)
#define TERRACE_BODY
#else
#define TERRACE_BODY inline
#endif

// A contract that only a bug in the caller or in Terrace can break. Checked in debug builds, and in release
// builds that define TERRACE_CHECKED. A violation prints the sentence and aborts: there is no state to continue from.
#if !defined(NDEBUG) || defined(TERRACE_CHECKED)
#include <cstdio>
#include <cstdlib>
#define TERRACE_ASSERT(condition, sentence)                                        \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "terrace: %s (%s:%d)\n", sentence, __FILE__, __LINE__); \
      std::abort();                                                                \
    }                                                                              \
  } while (false)
#else
#define TERRACE_ASSERT(condition, sentence) static_cast<void>(0)
#endif
