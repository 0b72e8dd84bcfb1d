#pragma once
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
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
///
/// An arena reserves addresses for the largest size that it may grow to, which costs nothing, so no address ever
/// changes. Pages are taken when first touched, and stay until resize() lowers the capacity: then those no longer
/// needed go back to the system, free ones at once, the others when they are released. So the pages taken never
/// exceed the capacity, or what is in use if that is more. Memory that the caller owns is never given back.
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
    /// How far resize() can go; 0: as far as the machine has memory, and no further than `capacity` where the
    /// process is short of addresses (RLIMIT_AS).
    std::size_t most_capacity = 0;
  };

  /// O(1): pages are touched when they are first used. errc::out_of_memory where the system gives none.
  static result<std::unique_ptr<ram>> open(context&, options o) {
    if (!o.memory.empty()) {
      if (reinterpret_cast<std::uintptr_t>(o.memory.data()) % alignment != 0)
        return fail(errc::invalid_argument, "memory given to a ram tier must begin at a multiple of 4 KiB");
      return std::unique_ptr<ram>(new ram(o.memory));
    }
    if (o.capacity < alignment) return fail(errc::invalid_argument, "a ram tier needs at least 4 KiB");
    constexpr std::size_t no_machine = std::numeric_limits<std::size_t>::max() / 2;
    if (o.capacity > no_machine)
      return fail(errc::out_of_memory, "no machine has memory for a ram tier of that capacity");
    std::size_t most = o.most_capacity != 0 ? std::min(o.most_capacity, no_machine) : most_by_default();
    most = std::max(most, o.capacity);
    void* arena = map(most);
    if (arena == MAP_FAILED && most > o.capacity) arena = map(most = o.capacity);  // addresses are limited
    if (arena == MAP_FAILED) return fail(errc::out_of_memory, "no memory for a ram tier", errno);
    auto medium = std::unique_ptr<ram>(new ram(static_cast<std::byte*>(arena), mapped_bytes(most)));
    if (auto made = medium->resize(o.capacity); !made) return propagate(made.error());
    return medium;
  }

  ram(ram&&) = delete;
  ~ram() {
    if (mapped_ != 0) ::munmap(arena_, mapped_);
  }

  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  void release(extent e) noexcept {
    const bool gives_back = e.offset >= space_.limit();
    space_.release(e);
    if (gives_back) give_back(e.offset, space_.rounded(e.bytes));
  }
  /// Raising the capacity fails with out_of_memory beyond options::most_capacity, with invalid_argument beyond memory
  /// that the caller owns, and then changes nothing. Lowering it always succeeds: O(runs), plus the time that the
  /// system takes for the pages.
  result<void> resize(std::size_t capacity) {
    if (mapped_ == 0 && capacity > most_)
      return fail(errc::invalid_argument, "a ram tier cannot grow beyond the memory that it was given");
    if (capacity > most_)
      return fail(errc::out_of_memory, "a ram tier cannot grow beyond the addresses that it reserved");
    if (mapped_ != 0 && capacity > accessible_) {
      const std::size_t wanted = std::min(align_up(capacity, huge_page), most_);
      if (::mprotect(base_ + accessible_, wanted - accessible_, PROT_READ | PROT_WRITE) != 0)
        return fail(errc::out_of_memory, "no memory for a ram tier", errno);
      accessible_ = wanted;
    }
    const bool lowered = capacity < space_.capacity();
    space_.resize(capacity);
    if (lowered)
      space_.for_each_free(space_.limit(),
                           [this](std::uint64_t offset, std::uint64_t bytes) { give_back(offset, bytes); });
    return {};
  }
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

  // Memory that the caller owns.
  explicit ram(mutable_bytes memory)
      : base_(memory.data()), most_(memory.size()), space_(memory.size(), alignment) {}
  // Addresses that `map` reserved.
  ram(std::byte* arena, std::size_t mapped)
      : arena_(arena), mapped_(mapped), most_(mapped - huge_page), space_(0, alignment) {
    const auto at = reinterpret_cast<std::uintptr_t>(arena);
    base_ = arena + (align_up(at, huge_page) - at);
  }

  static std::size_t page() noexcept { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }
  static std::size_t most_by_default() noexcept {
    rlimit addresses{};
    if (::getrlimit(RLIMIT_AS, &addresses) == 0 && addresses.rlim_cur != RLIM_INFINITY) return 0;
    return static_cast<std::size_t>(std::max(::sysconf(_SC_PHYS_PAGES), 0L)) * page();
  }
  static std::size_t mapped_bytes(std::size_t most) noexcept { return align_up(most, huge_page) + huge_page; }

  // Reserves only addresses: memory that nobody may touch is not accounted for, even where overcommit is strict.
  static void* map(std::size_t most) noexcept {
    void* const arena =
        ::mmap(nullptr, mapped_bytes(most), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    // Huge pages: fewer TLB misses, and a direct disk transfer of a block stays within the device's segment
    // limit.
    if (arena != MAP_FAILED) ::madvise(arena, mapped_bytes(most), MADV_HUGEPAGE);
    return arena;
  }

  // Whole pages only: a page that is shared with something else stays.
  void give_back(std::uint64_t offset, std::uint64_t bytes) noexcept {
    if (mapped_ == 0) return;
    const std::uint64_t first = align_up(offset, page()), end = (offset + bytes) / page() * page();
    if (first < end) ::madvise(base_ + first, end - first, MADV_DONTNEED);
  }

  std::byte* arena_ = nullptr;  // what was mapped
  std::size_t mapped_ = 0;      // 0: the memory is the caller's
  std::byte* base_ = nullptr;   // where extents begin: at a huge page
  std::size_t most_;            // from there on, bytes that are or can be made accessible
  std::size_t accessible_ = 0;
  space space_;
};
static_assert(host_addressable_medium<ram> && resizable_medium<ram>);

}  // namespace TERRACE_EX
}  // namespace terrace
