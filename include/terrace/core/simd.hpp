#pragma once
// Sixteen floats at a time, in one vocabulary for three instruction sets. Kernels are written once in this vocabulary
// and compiled for each set through core/for_each_isa.hpp. Nothing here needs a compiler flag: each function carries
// its target, and is inlined into kernels that carry the same one.
//
// Each of simd::portable, simd::avx2 and simd::avx512 has:
//
//   f32x16                           sixteen lanes
//   mask16                           bit i is about lane i
//   splat(x)                         a float, or an fp16 widened, in every lane
//   load(p), store(p, v)             floats, no alignment needed
//   load_as<T>(bytes)                16 elements of type fp16, bf16, fp8_e4m3 or float, widened exactly
//   store_as<T>(bytes, v)            rounded to T, to nearest, ties to even, as from_float<T> does
//   round_as<T>(v)                   what load_as would read after store_as
//   load_i8(bytes)                   16 signed bytes
//   store_i8(bytes, v)               rounded to nearest, ties away from zero; precondition |v| < 127.5
//   narrow(x)                        one float to fp16
//   add, sub, mul, div, fma(a, b, c) fma is a * b + c with one rounding where the set has it
//   min(a, b), max(a, b), abs(v)     b where either is NaN
//   select(mask, a, b)               a where the bit is set
//   is_number(v)                     mask; a NaN is no number
//   less(a, b), equal(a, b)          masks; false where either is NaN
//   power_of_two(n + 1.5 * 2^23)     2^n for integral n in [-126, 127]
//   sum(v), largest(v)               over the lanes, in one fixed order
//   largest_magnitude(a, b)          over the lanes of both; a NaN where there is one
//   larger_magnitude(a, b)           lane by lane; a NaN where either is one
//   largest_of_each(v)               lane i is the largest lane of v[i], of sixteen vectors of magnitudes; a NaN where
//                                    there is one
//   store_sums(v, out)               the sum of each of sums_per_block vectors, in one fixed order
//   split_rows<rows>(in, out, stride) 16 * rows sums, in blocks of sums_per_block that are [row][column] each, to
//                                    rows of 16 that are `stride` apart; rows is a power of two up to most_sum_rows

#include <cstddef>
#include <cstdint>

#include "terrace/core/config.hpp"
#include "terrace/core/simd_portable.hpp"
#if TERRACE_X86
#include "terrace/core/simd_avx2.hpp"
#include "terrace/core/simd_avx512.hpp"
#endif
