#pragma once
// A model of each concept that has what the concept asks for and nothing more: a starting point for writing your own,
// and proof that Terrace itself uses no more than it says. They are correct, and simple rather than fast.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string_view>

#include "terrace/codec/codec.hpp"
#include "terrace/core/index_list.hpp"
#include "terrace/medium/medium.hpp"
#include "terrace/medium/space.hpp"
#include "terrace/policy/policy.hpp"
#include "terrace/prefetch/prefetcher.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A medium without addresses: memory that is copied in and out, each transfer complete when it is started. A
/// medium that waits for a device completes later, on the owner (testing/scripted.hpp posts to the context,
/// medium/nvme.hpp uses its ring).
class medium_archetype {
 protected:
  // A sender: nothing happens before it is connected and started.
  static auto copy(const std::byte* from, std::byte* to, std::size_t bytes) {
    return ex::then(ex::just(), [=]() noexcept {
      if (bytes != 0) std::memcpy(to, from, bytes);
    });
  }

 public:
  static constexpr const char* name = "archetype";
  static constexpr reach addressable = reach::nobody;
  static constexpr bool persistent = false;
  static constexpr std::size_t alignment = 64;
  static constexpr std::size_t granularity = 64;

  struct options {
    std::size_t capacity = 0;  ///< bytes; 0: no such tier
  };

  static result<std::unique_ptr<medium_archetype>> open(context&, options o) {
    return std::unique_ptr<medium_archetype>(new medium_archetype(o.capacity));
  }
  medium_archetype(medium_archetype&&) = delete;

  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  void release(extent e) noexcept { space_.release(e); }
  auto read(extent e, mutable_bytes into) { return copy(bytes_.get() + e.offset, into.data(), into.size()); }
  auto write(extent e, const_bytes from) { return copy(from.data(), bytes_.get() + e.offset, from.size()); }
  std::size_t capacity() const { return space_.capacity(); }
  std::size_t used() const { return space_.used(); }

 protected:
  explicit medium_archetype(std::size_t capacity)
      : space_(capacity, alignment), bytes_(new (std::align_val_t{alignment}) std::byte[capacity]) {}

  struct aligned_delete {
    void operator()(std::byte* p) const noexcept { ::operator delete[](p, std::align_val_t{alignment}); }
  };

  space space_;
  std::unique_ptr<std::byte[], aligned_delete> bytes_;
};
static_assert(medium<medium_archetype> && !host_addressable_medium<medium_archetype>);

/// The same with addresses: attention reads its blocks in place, and nothing is copied needlessly.
class host_medium_archetype : public medium_archetype {
 public:
  static constexpr reach addressable = reach::host;

  static result<std::unique_ptr<host_medium_archetype>> open(context&, options o) {
    return std::unique_ptr<host_medium_archetype>(new host_medium_archetype(o.capacity));
  }
  std::byte* address(extent e) noexcept { return bytes_.get() + e.offset; }

 private:
  using medium_archetype::medium_archetype;
};
static_assert(host_addressable_medium<host_medium_archetype>);

/// A lossless codec: every bit inverted. The smallest that is not identity, so that a block that missed a step is
/// noticed.
struct codec_archetype {
  static constexpr std::uint32_t format_id = 0xfffffffeu;  // no format on disk has it
  static constexpr std::string_view name = "archetype";
  static constexpr bool lossless = true;
  static constexpr std::uint8_t loss = 0;
  static constexpr bool fixed_rate = true;
  static constexpr bool attendable = false;

  codec_archetype() = delete;  // a codec is a name for functions: nobody makes one

  static result<void> supports(const layer_group&) noexcept { return {}; }
  static std::size_t max_encoded_size(const layer_group& group) noexcept { return group.block_bytes(); }
  static result<std::size_t> encode(const layer_group& group, const_bytes raw, mutable_bytes out) noexcept {
    if (raw.size() != group.block_bytes() || out.size() < raw.size())
      return fail(errc::invalid_argument,
                  "a block and its encoding must have the sizes that their group says");
    invert(raw, out);
    return raw.size();
  }
  static result<void> decode(const layer_group& group, const_bytes in, mutable_bytes raw) noexcept {
    if (raw.size() != group.block_bytes())
      return fail(errc::invalid_argument, "a block must have the size that its group says");
    if (in.size() != raw.size())
      return fail(errc::corrupt, "a stored block has not the size of its group's blocks");
    invert(in, raw);
    return {};
  }

 private:
  static void invert(const_bytes from, mutable_bytes to) noexcept {
    for (std::size_t i = 0; i < from.size(); ++i) to[i] = ~from[i];
  }
};
static_assert(codec<codec_archetype>);

/// A policy: who was admitted first leaves first. Its books lie in the array that the cache keeps, so it
/// allocates nothing.
class policy_archetype {
 public:
  static constexpr const char* name = "archetype";
  struct options {};
  using block_state = index_link;

  explicit policy_archetype(options) {}
  policy_archetype(policy_archetype&&) = delete;

  void bind(std::span<block_state> states) { links_ = states; }
  void admit(std::uint32_t i, const block_info&) { order_.push_back(links_, i); }
  void touch(std::uint32_t, const block_use&) {}
  void remove(std::uint32_t i) { order_.erase(links_, i); }
  std::uint32_t victim() { return order_.front(); }
  void advance_step(std::uint64_t) {}

 private:
  std::span<block_state> links_;
  index_list order_;
};
static_assert(eviction_policy<policy_archetype>);

/// A prefetcher: the row that is being streamed will be wanted again at the next step.
class prefetcher_archetype {
 public:
  static constexpr const char* name = "archetype";

  prefetcher_archetype() = default;
  prefetcher_archetype(prefetcher_archetype&&) = default;  // any_prefetcher takes it by value

  void observe(const row_use& use) { use_ = use; }
  std::size_t suggest(std::span<prefetch_wish> out) {
    if (out.empty() || use_.blocks == 0) return 0;
    out[0] = {.row = use_.row, .first = 0, .blocks = use_.blocks, .at_step = use_.step + 1};
    return 1;
  }

 private:
  row_use use_{};
};
static_assert(prefetcher<prefetcher_archetype>);

}  // namespace TERRACE_EX
}  // namespace terrace
