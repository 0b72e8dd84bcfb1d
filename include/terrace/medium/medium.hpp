#pragma once
#include <concepts>
#include <cstddef>
#include <optional>
#include <string_view>

#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/medium/extent.hpp"

namespace terrace {

class context;
struct extent_header;

/// Who can read a medium's bytes at an address.
enum class reach : unsigned char { nobody, host, device };

/// A medium is where bytes live and how they are read and written. It knows nothing of codecs, policies or tokens.
///
/// Traits, all constant expressions:
/// - `name`         what statistics call it
/// - `addressable`  who can read its bytes in place; then `address(extent)` gives them and nothing is copied
/// - `persistent`   whether its bytes can outlive the process; then it is a persistent_medium (below)
/// - `alignment`    a power of two: every extent begins at a multiple of it, and so must the buffers of read
///   and write; their lengths are multiples of it too (staging and slots are cut accordingly)
/// - `granularity`  the smallest transfer that runs at the medium's speed, in bytes: a hint for sizing blocks
///
/// Operations, all called by the owner of the context:
/// - `open(context&, options) -> result<std::unique_ptr<M>>`. Required by tiered_cache::open, not by the concept.
///   Leaves nothing behind if it fails. A medium does not move: transfers in flight refer to it. It is closed after
///   the last of them has completed.
/// - `options` has a `capacity` in bytes.
/// - `reserve(bytes) -> std::optional<extent>`: room for `bytes` > 0, or nothing. Never waits. O(1). Extents
///   are of any size, so that what a codec saves is capacity.
/// - `release(extent) noexcept`: O(1). Precondition: no transfer of that extent is in flight. Bytes that were never
///   written read as anything.
/// - `read(extent, mutable_bytes) -> sender`, `write(extent, const_bytes) -> sender`: transfer the first
///   bytes of the extent, as many as the buffer holds. Complete on the owner with set_value() when all bytes
///   are in place, set_error(error) when they are not, set_stopped() once the medium has let go of the
///   buffer. Extent and buffer must stay until then, whatever a stop token says.
/// - `capacity()`, `used()`: bytes; `used` includes what is lost to rounding up.
template <class M>
concept medium = requires(M& m, const M& c, std::size_t bytes, extent e, mutable_bytes into, const_bytes from,
                          typename M::options o) {
  { o.capacity } -> std::convertible_to<std::size_t>;
  { M::name } -> std::convertible_to<std::string_view>;
  { M::addressable } -> std::convertible_to<reach>;
  { M::persistent } -> std::convertible_to<bool>;
  { M::alignment } -> std::convertible_to<std::size_t>;
  { M::granularity } -> std::convertible_to<std::size_t>;
  { m.reserve(bytes) } -> std::same_as<std::optional<extent>>;
  { m.release(e) }
  noexcept;
  { m.read(e, into) } -> ex::sender;
  { m.write(e, from) } -> ex::sender;
  { c.capacity() } -> std::convertible_to<std::size_t>;
  { c.used() } -> std::convertible_to<std::size_t>;
};

/// A medium whose capacity can change while it is in use: `resize(bytes) -> result<void>`. On success `capacity()` is
/// `bytes`, rounded down to whole units of the medium; on failure nothing has changed. `bytes` may be less than
/// `used()`, even 0: then `reserve` gives nothing until enough has been released. Nothing moves and no data is lost;
/// the system gets back what lies beyond the capacity, or beyond what is used if that is more, as far as it takes it.
/// `bytes` may be more than at opening, as far as there is room. May be called while transfers are in flight; may
/// block as the system does.
template <class M>
concept resizable_medium = medium<M> && requires(M& m, std::size_t bytes) {
  { m.resize(bytes) } -> std::same_as<result<void>>;
};

/// A medium that reads faster in order: `reserve_behind(before, bytes)` reserves like `reserve`, directly behind the
/// extent `before` if possible; without `before`, where others can follow. The cache passes a block's neighbour in
/// its row: the two are read one after the other, by one call to the system, which makes one transfer of them.
template <class M>
concept ordered_medium = medium<M> && requires(M& m, std::optional<extent> before, std::size_t bytes) {
  { m.reserve_behind(before, bytes) } -> std::same_as<std::optional<extent>>;
};

/// A medium that benefits from knowing which memory transfers use repeatedly: `register_buffer(memory)`. The cache
/// names its staging buffers, once, before the first transfer; they stay until the medium is closed. A medium that
/// cannot use this ignores it.
template <class M>
concept buffer_registering_medium = medium<M> && requires(M& m, mutable_bytes memory) {
  { m.register_buffer(memory) } -> std::same_as<void>;
};

/// A medium whose bytes a device reads in place: `address(extent)` is the device's. `copy_within(to, from, bytes)`
/// copies between two of its addresses, in order with the engine's own work there.
template <class M>
concept device_addressable_medium = medium<M> && M::addressable ==
                                    reach::device&& requires(M& m, extent e, std::byte* at) {
  { m.address(e) }
  noexcept->std::same_as<std::byte*>;
  { m.copy_within(at, at, std::size_t{}) } -> std::same_as<result<void>>;
};

/// A medium whose bytes the host reads in place.
template <class M>
concept host_addressable_medium = medium<M> && M::addressable == reach::host&& requires(M& m, extent e) {
  { m.address(e) }
  noexcept->std::same_as<std::byte*>;
};

/// A medium whose extents can outlive the process, where its options say `keep` (docs/on-disk-format.md):
/// - `options::contents` what the store must hold; a store that holds something else is refused at opening
/// - `keeps()`           whether this one was opened with `keep`; if not, none of the following is called
/// - `scan(visitor)`     once, before anything else: calls visitor(extent, const extent_header&) -> bool for each
///   extent with a header that was found at opening. True takes it: it is reserved. False releases it. O(extents)
/// - `label(extent, const extent_header&) -> bool` gives a written extent a header, in memory, until the extent is
///   released or unlabelled; false if there is no room for one. O(1)
/// - `unlabel(extent)`   removes the header, in memory; no effect if there is none. O(1)
/// - `sync() -> sender`  set_value() when every write that completed, and every header given or removed, before it
///   was started survives a crash of the machine; set_error(error) when they may not, with errc::unavailable if no
///   later sync will succeed either
/// The tier, not the medium, says what is in a header.
template <class M>
concept persistent_medium = medium<M> && M::persistent &&
    requires(M& m, const M& c, extent e, const extent_header& h,
             bool (*visitor)(extent, const extent_header&)) {
  { c.keeps() } -> std::same_as<bool>;
  { m.sync() } -> ex::sender;
  { m.label(e, h) } -> std::same_as<bool>;
  { m.unlabel(e) }
  noexcept;
  m.scan(visitor);
};

}  // namespace terrace
