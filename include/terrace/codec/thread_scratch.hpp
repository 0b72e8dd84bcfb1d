#pragma once
#include <cstddef>
#include <memory>
#include <new>

#include "terrace/core/bytes.hpp"

namespace terrace {

/// `bytes` bytes of scratch that belong to this thread and to `Owner`, a tag type: what a codec needs between two of
/// its steps. Their contents are unspecified, and the bytes are valid until the next call with the same owner on the
/// same thread. Empty if there is no memory. The buffer grows to the largest size asked for and stays until the
/// thread ends, so that a codec allocates nothing once it has seen its largest block.
template <class Owner>
mutable_bytes thread_scratch(std::size_t bytes) noexcept {
  struct buffer {
    std::unique_ptr<std::byte[]> data;
    std::size_t size = 0;
  };
  thread_local buffer kept;
  if (kept.size < bytes) {
    kept = {};  // not both at once
    kept.data.reset(new (std::nothrow) std::byte[bytes]);
    if (kept.data == nullptr) return {};
    kept.size = bytes;
  }
  return {kept.data.get(), bytes};
}

}  // namespace terrace
