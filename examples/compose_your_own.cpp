// A cache with your own medium, codec and policy: copy this file and replace them. Each of them is one type that
// models one concept, and ends with the assertion that it does. What a concept requires is written out in its header:
// terrace/medium/medium.hpp, terrace/codec/codec.hpp, terrace/policy/policy.hpp.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "terrace/medium/nvme.hpp"
#include "terrace/medium/space.hpp"
#include "terrace/terrace.hpp"
using namespace terrace;

// --- A medium: memory that another process can map. Blocks in it can be inspected, or handed on, without a copy.

class memory_file {
  // A transfer is a sender: nothing moves before it is started. This one is complete then; those of
  // terrace/medium/nvme.hpp and terrace/testing/scripted.hpp may complete later. (First: its return type is deduced.)
  static auto copy(const std::byte* from, std::byte* to, std::size_t bytes) noexcept {
    return ex::then(ex::just(), [=]() noexcept {
      if (bytes != 0) std::memcpy(to, from, bytes);
    });
  }

 public:
  static constexpr std::string_view name = "memory_file";  // what statistics call it
  static constexpr reach addressable = reach::host;        // so it has address()
  static constexpr bool persistent = false;
  static constexpr std::size_t alignment = 64;
  static constexpr std::size_t granularity = 4096;

  struct options {
    std::size_t capacity = 0;  // bytes; the one member that every medium has
  };

  // Called by tiered_cache::open. A failure is returned as an error, and leaves nothing behind.
  static result<std::unique_ptr<memory_file>> open(context&, options o) {
    if (o.capacity < alignment) return fail(errc::invalid_argument, "a memory file needs at least 64 bytes");
    const int file = ::memfd_create("terrace", MFD_CLOEXEC);
    if (file < 0) return fail(errc::out_of_memory, "no memory file can be made", errno);
    void* const bytes = ::ftruncate(file, static_cast<off_t>(o.capacity)) != 0
                            ? MAP_FAILED
                            : ::mmap(nullptr, o.capacity, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED) {
      const int why = errno;
      ::close(file);
      return fail(errc::out_of_memory, "there is no memory for a memory file", why);
    }
    return std::unique_ptr<memory_file>(new memory_file(file, static_cast<std::byte*>(bytes), o.capacity));
  }
  memory_file(memory_file&&) = delete;  // transfers in flight refer to it: it stays where it is
  ~memory_file() {
    ::munmap(bytes_, mapped_);
    ::close(file_);
  }

  // Room comes from a `space`, which keeps books for any range of bytes.
  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  void release(extent e) noexcept { space_.release(e); }
  std::size_t capacity() const noexcept { return space_.capacity(); }
  std::size_t used() const noexcept { return space_.used(); }

  auto read(extent e, mutable_bytes into) noexcept { return copy(address(e), into.data(), into.size()); }
  auto write(extent e, const_bytes from) noexcept { return copy(from.data(), address(e), from.size()); }

  std::byte* address(extent e) noexcept { return bytes_ + e.offset; }
  // For the other process: send it through a Unix socket, or open /proc/PID/fd/NUMBER.
  int descriptor() const noexcept { return file_; }

 private:
  memory_file(int file, std::byte* bytes, std::size_t capacity)
      : file_(file), bytes_(bytes), mapped_(capacity), space_(capacity, alignment) {}

  int file_;
  std::byte* bytes_;
  std::size_t mapped_;
  space space_;
};
static_assert(host_addressable_medium<memory_file>);

// --- A codec: each row (one token of one head) as 8-bit integers with one exponent, which is half of fp16.
//
// Format: for each row its exponent e, one byte, and its elements, one byte each: n stands for n * 2^e. The exponent
// is the least with which the row's largest element fits, so that encoding what was decoded gives the same bytes.

struct block_float {
  static constexpr std::uint32_t format_id = 0x6d796266;  // no other codec has it, and it never changes
  static constexpr std::string_view name = "block_float";
  static constexpr bool lossless = false;
  static constexpr std::uint8_t loss = 20;  // rank: worse than q8_0 (16), better than q4_0 (64)
  static constexpr bool fixed_rate = true;
  static constexpr bool attendable = false;  // attention does not read it in place

  static result<void> supports(const layer_group& group) noexcept {
    for (const plane& p : {group.k, group.v})
      if (p.present() && p.type != element::fp16)
        return fail(errc::invalid_argument, "block_float encodes fp16 only");
    return {};
  }
  static std::size_t max_encoded_size(const layer_group& group) noexcept {
    return (rows(group, group.k) * (group.k.dim + 1) + rows(group, group.v) * (group.v.dim + 1)) *
           group.layers_per_block;
  }

  static result<std::size_t> encode(const layer_group& group, const_bytes raw, mutable_bytes out) noexcept {
    if (raw.size() != group.block_bytes() || out.size() < max_encoded_size(group))
      return fail(errc::invalid_argument, "a block or its encoding has not the size that its group says");
    const std::byte* from = raw.data();
    std::byte* to = out.data();
    for (std::uint32_t layer = 0; layer < group.layers_per_block; ++layer)
      for (const plane& p : {group.k, group.v})
        for (std::size_t row = 0; row < rows(group, p); ++row) {
          encode_row(from, to, p.dim);
          from += p.dim * sizeof(fp16);
          to += p.dim + 1;
        }
    return max_encoded_size(group);
  }

  // Accepts whatever a disk may hold. Sizes are checked before anything is read, and values as they come.
  static result<void> decode(const layer_group& group, const_bytes in, mutable_bytes raw) noexcept {
    if (raw.size() != group.block_bytes())
      return fail(errc::invalid_argument, "a block has not the size that its group says");
    if (in.size() != max_encoded_size(group))
      return fail(errc::corrupt, "a block_float block has another size than its group's");
    const std::byte* from = in.data();
    std::byte* to = raw.data();
    for (std::uint32_t layer = 0; layer < group.layers_per_block; ++layer)
      for (const plane& p : {group.k, group.v})
        for (std::size_t row = 0; row < rows(group, p); ++row) {
          if (!decode_row(from, to, p.dim))
            return fail(errc::corrupt, "a block_float block has a number that fp16 cannot hold");
          from += p.dim + 1;
          to += p.dim * sizeof(fp16);
        }
    return {};
  }

 private:
  static constexpr int least = -24,
                       most = 9;  // exponents: fp16's smallest number, and 127 * 2^9 is below its largest
  static constexpr float limit = 127;

  // In either order of pages the elements of a row are contiguous.
  static std::size_t rows(const layer_group& group, const plane& p) noexcept {
    return std::size_t{p.heads} * group.tokens;
  }
  static float element_at(const std::byte* row, std::uint32_t d) noexcept {
    fp16 x;
    std::memcpy(&x, row + d * sizeof x, sizeof x);
    const float value = to_float(x);
    return value == value ? std::clamp(value, -65504.0f, 65504.0f) : 0.0f;  // no infinities, no NaN
  }
  static void encode_row(const std::byte* from, std::byte* to, std::uint32_t dim) noexcept {
    float largest = 0;
    for (std::uint32_t d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(element_at(from, d)));
    int exponent = least;
    while (exponent < most && std::nearbyint(std::ldexp(largest, -exponent)) > limit) ++exponent;
    *to++ = static_cast<std::byte>(exponent);
    const float scale = std::ldexp(1.0f, -exponent);
    for (std::uint32_t d = 0; d < dim; ++d) {
      const float n = std::clamp(std::nearbyint(element_at(from, d) * scale), -limit, limit);
      *to++ = static_cast<std::byte>(static_cast<int>(n));
    }
  }
  static bool decode_row(const std::byte* from, std::byte* to, std::uint32_t dim) noexcept {
    const int exponent = static_cast<std::int8_t>(*from++);
    if (exponent < least || exponent > most) return false;
    const float scale = std::ldexp(1.0f, exponent);
    for (std::uint32_t d = 0; d < dim; ++d) {
      const int n = static_cast<std::int8_t>(*from++);
      if (n < -127) return false;
      const fp16 x = to_fp16(static_cast<float>(n) * scale);
      std::memcpy(to + d * sizeof x, &x, sizeof x);
    }
    return true;
  }
};
static_assert(codec<block_float>);

// --- A policy: victims are drawn by lot. It needs no order of use, and on a scan over more blocks than a tier holds
// it keeps some of them until they are needed again, where lru keeps none.

class random_victim {
 public:
  static constexpr std::string_view name = "random_victim";
  struct options {
    std::uint32_t seed = 1;  // the same seed, the same victims
  };
  // Kept for each block, in an array that the cache owns: here its place among those that may leave.
  struct block_state {
    std::uint32_t place = 0;
  };

  explicit random_victim(options o) : random_(o.seed | 1u) {}

  // The one place where a policy may allocate.
  void bind(std::span<block_state> states) {
    states_ = states;
    candidates_.reserve(states.size());
  }
  void admit(std::uint32_t i, const block_info&) noexcept {
    states_[i].place = static_cast<std::uint32_t>(candidates_.size());
    candidates_.push_back(i);
  }
  void remove(std::uint32_t i) noexcept {
    const std::uint32_t last = candidates_.back();
    candidates_[states_[i].place] = last;
    states_[last].place = states_[i].place;
    candidates_.pop_back();
    if (drawn_ == i) drawn_ = index_link::none;
  }
  void touch(std::uint32_t, const block_use&) noexcept {}
  std::uint32_t victim() noexcept {
    if (drawn_ == index_link::none && !candidates_.empty()) {
      random_ ^= random_ << 13;
      random_ ^= random_ >> 17;
      random_ ^= random_ << 5;
      drawn_ = candidates_[random_ % candidates_.size()];
    }
    return drawn_;  // the same one until it leaves or is pinned
  }
  void advance_step(std::uint64_t) noexcept {}

 private:
  std::span<block_state> states_;
  std::vector<std::uint32_t> candidates_;
  std::uint32_t drawn_ = index_link::none;
  std::uint32_t random_;
};
static_assert(eviction_policy<random_victim>);

// --- Composed with Terrace's own. Between the last two tiers the encoded bytes travel as they are.

using kv_cache = tiered_cache<tier<ram>,                       // hot: fp16, attention reads it in place
                              tier<memory_file, block_float>,  // warm: half the bytes
                              tier<nvme, block_float>,         // cool
                              random_victim>;

#if !defined(TERRACE_WITHOUT_MAIN)  // the tests of these three have a main of their own

constexpr std::uint32_t layers = 4, heads = 8, kv_heads = 2, dim = 64, tokens = 32;
constexpr std::uint32_t filled = 1024, decoded = 64;

int fail(const error& e) { return std::fprintf(stderr, "%s\n", e.message().c_str()), 1; }

// Stands in for the model. The numbers fit into eight bits, so that the codec gives them back as they were.
fp16 element_of_kv(std::uint32_t layer, bool values, std::uint32_t head, std::uint64_t position,
                   std::uint32_t d) {
  const std::uint64_t x = (((layer * 2 + values) * kv_heads + head) * 4096 + position) * dim + d;
  return to_fp16(static_cast<float>(static_cast<int>((x * 2654435761u >> 8) % 255) - 127) / 64);
}
void write(const reservation& room) {
  for (std::uint32_t layer = 0; layer < layers; ++layer)
    for (const bool values : {false, true}) {
      const plane_rows rows = values ? room.v(layer) : room.k(layer);
      for (std::uint32_t t = 0; t < room.tokens(); ++t)
        for (std::uint32_t head = 0; head < kv_heads; ++head)
          for (std::uint32_t d = 0; d < dim; ++d)
            rows.row<fp16>(t, head)[d] = element_of_kv(layer, values, head, room.first_position() + t, d);
    }
}
// Whether a block has the bytes that were written, wherever it has been since.
bool as_written(const layer_group& group, const leased_block& block, std::uint32_t layer, std::size_t depth) {
  const std::byte* at = block.data;
  for (const bool values : {false, true})
    for (std::uint32_t head = 0; head < kv_heads; ++head)
      for (std::uint32_t t = 0; t < tokens; ++t)
        for (std::uint32_t d = 0; d < dim; ++d, at += sizeof(fp16)) {
          const fp16 x = element_of_kv(layer, values, head, depth * group.tokens + t, d);
          if (std::memcmp(at, &x, sizeof x) != 0) return false;
        }
  return true;
}

int main() {
  context ctx{{.codec_threads = 1}};
  const kv_layout layout{{{.layers = layers, .tokens = tokens, .k = {kv_heads, dim}, .v = {kv_heads, dim}}}};
  auto cache = kv_cache::open(ctx, layout, {.capacity = 1_MiB}, {.capacity = 512_KiB}, {.capacity = 4_MiB},
                              {.seed = 7});
  if (!cache) return fail(cache.error());

  auto sequence = cache->make_sequence();
  for (std::uint32_t n = 0; n < filled; n += tokens) {
    auto room = sequence.reserve(tokens);
    if (!room) return fail(room.error());
    write(*room);
    sequence.commit(std::move(*room), tokens);
  }

  const std::vector<float> query(heads * dim, 0.125f);
  std::vector<float> out(heads * dim);
  for (std::uint32_t step = 1; step <= decoded; ++step) {
    cache->advance_step(step);
    auto token = sequence.reserve(1);
    if (!token) return fail(token.error());
    write(*token);
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      auto done = ctx.sync_wait(stream(*cache, sequence, *token, layer, query, out));
      if (!done) return fail(done.error());
    }
    sequence.commit(std::move(*token), 1);
  }

  std::size_t blocks = 0, wrong = 0;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    const std::span<const block_id> row(sequence.pages().rows[layer]);
    for (std::size_t depth = 0; depth < sequence.pages().sealed(layer); ++depth, ++blocks) {
      auto held = ctx.sync_wait(cache->acquire(row.subspan(depth, 1)));
      if (!held) return fail(held.error());
      if (!as_written(layout.groups[0], (*held)[0], layer, depth)) ++wrong;
    }
  }

  for (const tier_stats& t : cache->stats().tiers)
    std::printf("%-11.*s %-11.*s %5zu KiB resident, %5llu hits, %5llu loads\n",
                static_cast<int>(t.medium.size()), t.medium.data(), static_cast<int>(t.codec.size()),
                t.codec.data(), t.resident_bytes >> 10, static_cast<unsigned long long>(t.hits),
                static_cast<unsigned long long>(t.loads));
  std::printf("%zu blocks of %u tokens, %zu of them not as they were written\n", blocks, tokens, wrong);
  return wrong == 0 ? 0 : 1;
}

#endif
