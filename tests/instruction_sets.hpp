#pragma once
#include <vector>

#include "terrace/core/cpu.hpp"

/// The instruction sets that this machine has, the portable one first: what a kernel is tested in.
inline std::vector<terrace::isa> sets_here() {
  std::vector<terrace::isa> sets;
  for (const terrace::isa set : {terrace::isa::portable, terrace::isa::avx2, terrace::isa::avx512})
    if (set <= terrace::probe_isa()) sets.push_back(set);
  return sets;
}
