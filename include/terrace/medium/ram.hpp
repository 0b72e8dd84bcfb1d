#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "terrace/medium/medium.hpp"
#include "terrace/medium/space.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Main memory: an arena that Terrace maps on huge pages, or memory that the caller owns. Attention reads it
/// in place.
class ram {
 public:
  static constexpr std::string_view name = "ram";
  static constexpr reach addressable = reach::host;
  static constexpr bool persistent = false;
  static constexpr std::size_t alignment =
      4096;  // so that a disk reads straight into a slot, without a bounce
  static constexpr std::size_t granularity = 4096;

  struct options {
    std::size_t capacity = 0;   ///< bytes; ignored where `memory` is given
    mutable_bytes memory = {};  ///< the caller's own memory, 4 KiB-aligned, which must outlive the cache
  };

  /// O(1): pages are touched when they are first used. errc::out_of_memory where the system gives none.
  static result<std::unique_ptr<ram>> open(context&, options o) {
    if (!o.memory.empty()) {
      if (reinterpret_cast<std::uintptr_t>(o.memory.data()) % alignment != 0)
        return fail(errc::invalid_argument, "memory given to a ram tier must begin at a multiple of 4 KiB");
      return std::unique_ptr<ram>(new ram(o.memory.data(), o.memory.size(), 0));
    }
    if (o.capacity < alignment) return fail(errc::invalid_argument, "a ram tier needs at least 4 KiB");
    if (o.capacity > std::numeric_limits<std::size_t>::max() / 2)
      return fail(errc::out_of_memory, "no machine has memory for a ram tier of that capacity");
    const std::size_t mapped = align_up(o.capacity, alignment);
    void* arena = ::mmap(nullptr, mapped + huge_page, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) return fail(errc::out_of_memory, "no memory for a ram tier", errno);
    // Huge pages: fewer TLB misses, and a direct disk transfer of a block stays within the device's segment
    // limit.
    ::madvise(arena, mapped + huge_page, MADV_HUGEPAGE);
    return std::unique_ptr<ram>(new ram(static_cast<std::byte*>(arena), o.capacity, mapped + huge_page));
  }

  ram(ram&&) = delete;
  ~ram() {
    if (mapped_ != 0) ::munmap(arena_, mapped_);
  }

  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  void release(extent e) noexcept { space_.release(e); }
  std::byte* address(extent e) noexcept { return base_ + e.offset; }
  std::size_t capacity() const noexcept { return space_.capacity(); }
  std::size_t used() const noexcept { return space_.used(); }

  /// A copy on the calling thread, complete when started. The cache itself reads RAM in place and copies on
  /// its pool.
  auto read(extent e, mutable_bytes into) noexcept { return copy{{address(e), into.data(), into.size()}}; }
  auto write(extent e, const_bytes from) noexcept { return copy{{from.data(), address(e), from.size()}}; }

 private:
  static constexpr std::size_t huge_page = std::size_t{2} << 20;

  struct run_of_bytes {
    const std::byte* from;
    std::byte* to;
    std::size_t bytes;
  };
  struct copy {
    using sender_concept = ex::sender_t;
    run_of_bytes run;
    template <class Self, class... E>
    static consteval auto get_completion_signatures() {
      return ex::completion_signatures<ex::set_value_t()>{};
    }
    template <class R>
    struct operation {
      using operation_state_concept = ex::operation_state_t;
      run_of_bytes run;
      R receiver;
      void start() noexcept {
        if (run.bytes != 0) std::memcpy(run.to, run.from, run.bytes);
        ex::set_value(std::move(receiver));
      }
    };
    template <class R>
    operation<R> connect(R receiver) const {
      return {run, std::move(receiver)};
    }
  };

  ram(std::byte* arena, std::size_t capacity, std::size_t mapped)
      : arena_(arena), base_(arena), mapped_(mapped), space_(capacity, alignment) {
    if (mapped != 0) {
      const auto at = reinterpret_cast<std::uintptr_t>(arena);
      base_ = arena + (align_up(at, huge_page) - at);
    }
  }

  std::byte* arena_;  // what was mapped
  std::byte* base_;   // where extents begin: at a huge page
  std::size_t mapped_;
  space space_;
};
static_assert(host_addressable_medium<ram>);

}  // namespace TERRACE_EX
}  // namespace terrace
