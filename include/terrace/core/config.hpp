#pragma once
// The macros of Terrace (TERRACE_EX, which names the execution back end, is in execution/backend.hpp). All of
// this is about the compiler, never about a feature: no type changes its shape because of a macro in this file.

// Marks a function that the CUDA device pass compiles as well. Empty for every other compiler. TERRACE_DEVICE marks
// the body of a kernel: nvcc compiles it for the device alone, another compiler for the tests that emulate a device.
// TERRACE_DEVICE_UNROLL stands before a loop of a kernel whose body indexes arrays that have to become registers.
#if defined(__CUDACC__)
#define TERRACE_HD __host__ __device__
#define TERRACE_DEVICE __device__
#define TERRACE_DEVICE_UNROLL _Pragma("unroll")
#else
#define TERRACE_HD
#define TERRACE_DEVICE
#define TERRACE_DEVICE_UNROLL
#endif

// Runs `TERRACE_TRY { ... } TERRACE_CATCH_ALL { ... }` where the caller's translation unit has exceptions,
// and only the first block where it has none. Terrace throws nothing itself; this is for callables that
// belong to the caller.
#if defined(__cpp_exceptions)
#define TERRACE_TRY try
#define TERRACE_CATCH_ALL catch (...)
#else
#define TERRACE_TRY if (true)
#define TERRACE_CATCH_ALL else
#endif

// CPU kernels are compiled for several instruction sets in one translation unit and chosen at run time. Each
// function of a kernel carries one of these, lambdas included; the caller needs no -m flag.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDA_ARCH__)
#define TERRACE_X86 1
#define TERRACE_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define TERRACE_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#else
#define TERRACE_X86 0
#define TERRACE_TARGET_AVX512
#define TERRACE_TARGET_AVX2
#endif
#define TERRACE_ALWAYS_INLINE __attribute__((always_inline)) inline

// Code that uses AVX-512 intrinsics stands between these two: g++ 12 warns of the deliberately undefined operands
// inside its own.
#if defined(__GNUC__) && !defined(__clang__)
#define TERRACE_AVX512_BEGIN                                                           \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define TERRACE_AVX512_END _Pragma("GCC diagnostic pop")
#else
#define TERRACE_AVX512_BEGIN
#define TERRACE_AVX512_END
#endif

// Terrace is headers alone unless every translation unit of a program defines TERRACE_PREBUILT and one of them
// includes terrace/prebuilt.hpp: then what knows neither tier nor policy (the planner, the kernels) is compiled
// there, once, and the others compile in half the time. TERRACE_BODY marks those functions where they are
// defined.
#if defined(TERRACE_PREBUILT)
#define TERRACE_BODY
#else
#define TERRACE_BODY inline
#endif

// A contract that only a bug in the caller or in Terrace can break. Checked in debug builds, and in release
// builds that define TERRACE_CHECKED. It prints the sentence and aborts: there is no state to go on from.
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
