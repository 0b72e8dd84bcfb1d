#pragma once
#include <cstddef>
#include <limits>
#include <new>
#include <utility>

#include "terrace/core/error.hpp"

namespace terrace {

/// A cache-line-aligned buffer of floats that grows and never shrinks, so that using it again allocates nothing.
/// Contents are unspecified after it has grown.
class float_buffer {
 public:
  static constexpr std::size_t alignment = 64;

  float_buffer() noexcept = default;
  float_buffer(float_buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), capacity_(std::exchange(other.capacity_, 0)) {}
  float_buffer& operator=(float_buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  ~float_buffer() { ::operator delete (data_, std::align_val_t{alignment}); }

  /// Makes room for at least `count` floats. Errors: out_of_memory, and then nothing has changed.
  result<void> require(std::size_t count) noexcept {
    if (count <= capacity_) return {};
    if (count > std::numeric_limits<std::size_t>::max() / sizeof(float))
      return fail(errc::out_of_memory, "more floats were asked for than memory can hold");
    void* const fresh = ::operator new (count * sizeof(float), std::align_val_t{alignment}, std::nothrow);
    if (fresh == nullptr) return fail(errc::out_of_memory, "no memory for attention state");
    ::operator delete (data_, std::align_val_t{alignment});
    data_ = static_cast<float*>(fresh);
    capacity_ = count;
    return {};
  }

  float* data() noexcept { return data_; }
  const float* data() const noexcept { return data_; }
  std::size_t capacity() const noexcept { return capacity_; }

 private:
  float* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace terrace
