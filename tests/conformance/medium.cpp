#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/archetypes.hpp"
#include "terrace/testing/medium_conformance.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

// Each is one requirement short of a medium. What a member hides is what the model lacks.
struct without_options : medium_archetype {
 private:
  using medium_archetype::options;
};
struct name_is_no_text : medium_archetype {
  static constexpr int name = 1;
};
struct reach_is_a_flag : medium_archetype {
  static constexpr bool addressable = false;
};
struct persistence_is_text : medium_archetype {
  struct unclear {};
  static constexpr unclear persistent{};
};
struct alignment_is_text : medium_archetype {
  static constexpr const char* alignment = "4096";
};
struct granularity_is_text : medium_archetype {
  static constexpr const char* granularity = "4096";
};
struct reserve_always_succeeds : medium_archetype {
  extent reserve(std::size_t);
};
struct reserve_gives_an_offset : medium_archetype {
  std::optional<std::size_t> reserve(std::size_t);
};
struct release_may_throw : medium_archetype {
  void release(extent);
};
struct read_blocks : medium_archetype {
  result<void> read(extent, mutable_bytes);
};
struct write_blocks : medium_archetype {
  result<void> write(extent, const_bytes);
};
struct write_wants_mutable_bytes : medium_archetype {
  decltype(ex::just()) write(extent, mutable_bytes);
};
struct capacity_is_for_owners : medium_archetype {
  std::size_t capacity();
};
struct used_is_for_owners : medium_archetype {
  std::size_t used();
};

template <class M, class C = identity>
concept makes_a_tier = requires {
  typename tier<M, C>;
};

// Media all right, but not addressable by the host.
struct addressable_by_a_device : host_medium_archetype {
  static constexpr reach addressable = reach::device;
};
struct without_address : medium_archetype {
  static constexpr reach addressable = reach::host;
};
struct address_is_untyped : host_medium_archetype {
  void* address(extent) noexcept;
};
struct address_may_throw : host_medium_archetype {
  std::byte* address(extent);
};
struct without_sync : medium_archetype {
  static constexpr bool persistent = true;
};
template <class Base>
struct syncing : Base {
  decltype(ex::just()) sync();
  bool keeps() const;
  bool label(extent, const extent_header&);
  void unlabel(extent) noexcept;
  void scan(bool (*)(extent, const extent_header&));
};
using with_sync = syncing<without_sync>;
using forgetful_with_sync = syncing<medium_archetype>;

static_assert(makes_a_tier<medium_archetype> && makes_a_tier<host_medium_archetype>);
static_assert(!medium<int>);
static_assert(!medium<without_options> && !makes_a_tier<without_options>);
static_assert(!medium<name_is_no_text> && !makes_a_tier<name_is_no_text>);
static_assert(!medium<reach_is_a_flag> && !medium<persistence_is_text>);
static_assert(!medium<alignment_is_text> && !medium<granularity_is_text>);
static_assert(!medium<reserve_always_succeeds> && !medium<reserve_gives_an_offset>);
static_assert(!medium<release_may_throw>);
static_assert(!medium<read_blocks> && !medium<write_blocks> && !medium<write_wants_mutable_bytes>);
static_assert(!medium<capacity_is_for_owners> && !medium<used_is_for_owners>);

static_assert(medium<addressable_by_a_device> && !host_addressable_medium<addressable_by_a_device>);
static_assert(medium<without_address> && !host_addressable_medium<without_address> &&
              !makes_a_tier<without_address>);
static_assert(medium<address_is_untyped> && !host_addressable_medium<address_is_untyped>);
static_assert(medium<address_may_throw> && !host_addressable_medium<address_may_throw>);

// As far as they have no resize(), or one that cannot say that there is no room.
struct resize_says_nothing : medium_archetype {
  void resize(std::size_t);
};
static_assert(resizable_medium<ram> && resizable_medium<nvme> && resizable_medium<directory>);
static_assert(!resizable_medium<medium_archetype> && !resizable_medium<resize_says_nothing>);

struct register_says_whether : medium_archetype {
  bool register_buffer(mutable_bytes);
};
static_assert(buffer_registering_medium<nvme> && !buffer_registering_medium<ram>);
static_assert(!buffer_registering_medium<register_says_whether>);

static_assert(!persistent_medium<medium_archetype> && !persistent_medium<without_sync>);
static_assert(persistent_medium<with_sync> && !persistent_medium<forgetful_with_sync>);

// A model of the concept that breaks the contract in the way that it is asked for.
class faulty : public medium_archetype {
 public:
  enum class fault {
    none,
    overlaps,
    no_bound,
    leaks,
    misaligned,
    forgets_size,
    reads_beyond,
    erases_the_rest,
    swaps,
    refuses_less,
    refuses_more_and_is_less,
    says_more,
    ignores_what_is_used,
    moves
  };
  struct options {
    std::size_t capacity = 0;
    fault what = fault::none;
  };
  faulty(std::size_t capacity, fault what) : medium_archetype(capacity), what_(what) {}

  std::optional<extent> reserve(std::size_t bytes) {
    if (what_ == fault::no_bound && bytes < capacity())
      return extent{0, static_cast<std::uint32_t>(bytes), 0};
    if (what_ == fault::ignores_what_is_used && space_.overhang() != 0) return extent{0, 1, 0};
    auto e = space_.reserve(bytes);
    if (e && what_ == fault::overlaps && e->offset > 64) e->offset -= 64;
    if (e && what_ == fault::misaligned) ++e->offset;
    if (e && what_ == fault::forgets_size) e->bytes = static_cast<std::uint32_t>(align_up(bytes, alignment));
    return e;
  }
  void release(extent e) noexcept {
    if (what_ == fault::no_bound || (what_ == fault::leaks && e.node % 4 == 3)) return;
    if (what_ == fault::overlaps && e.offset != 0) e.offset += 64;
    if (what_ == fault::misaligned) --e.offset;
    space_.release(e);
  }
  result<void> resize(std::size_t bytes) {
    const bool lower = bytes <= capacity();
    if (what_ == fault::refuses_less && lower) return fail(errc::unavailable, "");
    if (what_ == fault::refuses_more_and_is_less && !lower) space_.resize(0);
    if (!lower && bytes > room) return fail(errc::out_of_memory, "");
    space_.resize(bytes);
    if (what_ == fault::says_more) space_.resize(std::min(room, bytes + 64));
    if (what_ == fault::moves && space_.overhang() != 0)
      std::memmove(bytes_.get(), bytes_.get() + 64, room - 64);
    return {};
  }
  auto read(extent e, mutable_bytes into) {
    const std::size_t more = what_ == fault::reads_beyond ? 1 : 0;
    return copy(at(e), into.data(), into.size() + more);
  }
  auto write(extent e, const_bytes from) {
    if (what_ == fault::erases_the_rest && from.size() < e.bytes) std::memset(at(e), 0, e.bytes);
    return copy(from.data(), at(e), from.size());
  }

 private:
  std::byte* at(extent e) noexcept {
    const bool wrong = what_ == fault::swaps && e.offset % 256 == 64;
    return bytes_.get() + e.offset - (wrong ? 64 : 0);
  }
  static constexpr std::size_t room = 64_KiB;
  fault what_;
};
static_assert(resizable_medium<faulty>);

std::string broken(faulty::fault what) {
  context ctx;
  faulty m(64_KiB, what);
  return medium_conformance(ctx, m).value_or("");
}

// How each model is opened with `capacity` bytes.
template <class M>
struct opened {
  context ctx;
  std::unique_ptr<M> medium;
  explicit opened(std::size_t capacity) {
    auto made = M::open(ctx, {.capacity = capacity});
    REQUIRE(made);
    medium = std::move(*made);
  }
};
template <>
struct opened<scripted> {
  context ctx;
  medium_script script;
  std::unique_ptr<scripted> medium;
  explicit opened(std::size_t capacity)
      : medium(std::move(*scripted::open(ctx, {.capacity = capacity, .script = &script}))) {}
};

}  // namespace

TEMPLATE_TEST_CASE("a medium keeps its contract", "", ram, nvme, directory, scripted, medium_archetype,
                   host_medium_archetype) {
  for (const std::size_t capacity : {64_KiB, 1_MiB, 8_MiB + 4096}) {
    CAPTURE(capacity);
    opened<TestType> o(capacity);
    const auto violated = medium_conformance(o.ctx, *o.medium);
    INFO(violated.value_or(""));
    CHECK_FALSE(violated);
  }
}

TEST_CASE("nvme keeps its contract where threads stand in for io_uring") {
  ::setenv("TERRACE_NO_IO_URING", "1", 1);
  opened<nvme> o(1_MiB);
  ::unsetenv("TERRACE_NO_IO_URING");
  REQUIRE_FALSE(o.medium->uses_io_uring());
  const auto violated = medium_conformance(o.ctx, *o.medium);
  INFO(violated.value_or(""));
  CHECK_FALSE(violated);
}

TEST_CASE("the suite names the sentence that a medium breaks") {
  using fault = faulty::fault;
  CHECK(broken(fault::none).empty());
  CHECK(broken(fault::overlaps) == "what is read is what was written last");
  CHECK(broken(fault::swaps) == "what is read is what was written last");
  CHECK(broken(fault::no_bound) == "no more can be reserved than the capacity");
  CHECK(broken(fault::leaks) == "nothing is used once everything is released");
  CHECK(broken(fault::misaligned) == "an extent begins at a multiple of the alignment");
  CHECK(broken(fault::forgets_size) == "an extent says how many bytes were asked for");
  CHECK(broken(fault::reads_beyond) == "a read fills no more than its buffer");
  CHECK(broken(fault::erases_the_rest) ==
        "a write of the first bytes of an extent leaves the others as they were");
  CHECK(broken(fault::refuses_less) == "lowering the capacity succeeds");
  CHECK(broken(fault::refuses_more_and_is_less) == "a resize that failed changes nothing");
  CHECK(broken(fault::says_more) == "capacity() is at most what was asked for");
  CHECK(broken(fault::ignores_what_is_used) ==
        "nothing can be reserved while more is used than the capacity");
  CHECK(broken(fault::moves) == "what is read is what was written last");
}

namespace {
// Sees whether its transfers use what was registered.
class buffer_observer : public medium_archetype {
 public:
  static inline std::vector<mutable_bytes> registered;
  static inline int transfers = 0, elsewhere = 0;
  explicit buffer_observer(std::size_t capacity) : medium_archetype(capacity) {}
  static result<std::unique_ptr<buffer_observer>> open(context&, options o) {
    return std::make_unique<buffer_observer>(o.capacity);
  }
  void register_buffer(mutable_bytes memory) { registered.push_back(memory); }
  auto read(extent e, mutable_bytes into) {
    look(into);
    return medium_archetype::read(e, into);
  }
  auto write(extent e, const_bytes from) {
    look(from);
    return medium_archetype::write(e, from);
  }

 private:
  static void look(const_bytes buffer) {
    ++transfers;
    if (registered.empty() || buffer.data() < registered[0].data() ||
        buffer.data() + buffer.size() > registered[0].data() + registered[0].size())
      ++elsewhere;
  }
};
static_assert(buffer_registering_medium<buffer_observer>);
}  // namespace

TEST_CASE("a cache registers its staging buffers where the medium wants to know") {
  using cache_type = tiered_cache<tier<ram>, tier<buffer_observer, codec_archetype>, lru>;
  constexpr std::size_t block = pattern::block_bytes;
  buffer_observer::registered.clear();
  context ctx;
  auto cache = cache_type::open(ctx, pattern::layout(), {.capacity = 64 * block}, {.capacity = 256 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 60; ++i) REQUIRE(pattern::append(s, 16, 2, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  CHECK(buffer_observer::registered.size() == 1);
  CHECK(buffer_observer::transfers > 0);
  CHECK(buffer_observer::elsewhere == 0);
}

TEST_CASE("a cache runs over a medium that has nothing but the concept") {
  using cache_type =
      tiered_cache<tier<ram>, tier<host_medium_archetype>, tier<medium_archetype, codec_archetype>, lru>;
  constexpr std::size_t block = pattern::block_bytes;
  context ctx;
  auto cache = cache_type::open(ctx, pattern::layout(), {.capacity = 24 * block}, {.capacity = 16 * block},
                                {.capacity = 256 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 60; ++i) REQUIRE(pattern::append(s, 16, 2, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  for (std::uint32_t row = 0; row < 2; ++row) {
    const auto ids = pattern::sealed(s, row);
    for (std::size_t i = 0; i + 4 <= ids.size(); i += 4) {
      auto held = ctx.sync_wait(cache->acquire(std::span(ids).subspan(i, 4)));
      REQUIRE(held);
      for (std::size_t b = 0; b < 4; ++b)
        CHECK(pattern::holds(cache->layout().groups[0], (*held)[b].data, row, i + b, 1, 16));
    }
  }
  CHECK(cache->stats().tiers[2].loads > 0);
}
