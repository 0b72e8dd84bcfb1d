#pragma once
// Memory on huge pages, where the system gives them, for what a bench reads as fast as possible.
#include <cstddef>
#include <cstdlib>
#include <memory>

#include "terrace/core/bytes.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bench {

struct free_memory {
  void operator()(std::byte* p) const noexcept { std::free(p); }
};
using memory = std::unique_ptr<std::byte[], free_memory>;

/// `bytes` bytes that nobody has written yet; ends the program if there are none.
inline memory huge_memory(std::size_t bytes) {
  constexpr std::size_t page = std::size_t{2} << 20;
  memory out(static_cast<std::byte*>(std::aligned_alloc(page, terrace::align_up(bytes, page))));
  if (!out) std::exit(1);
#if defined(__linux__)
  madvise(out.get(), bytes, MADV_HUGEPAGE);
#endif
  return out;
}

}  // namespace bench
