#pragma once
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "terrace/core/bytes.hpp"
#include "terrace/medium/disk_format.hpp"
#include "terrace/testing/seeded_random.hpp"

namespace terrace {

/// What goes wrong with a transfer of a faulty device.
enum class fault : std::uint8_t {
  none,
  io_error,        ///< nothing is moved, and it reports EIO
  no_space,        ///< nothing is moved, and it reports ENOSPC
  short_transfer,  ///< only the first part is moved, and it reports EIO
  bit_flip,        ///< one bit is wrong, and it reports success
  torn,            ///< only the first part is moved, and it reports success
  stall,           ///< it ends later than it should, by faulty_device::stall
};

/// What a device is asked for.
enum class device_call : std::uint8_t { read, write, sync };

/// The probability of each random fault; other transfers succeed. `no_space` is only for writes; of the others a sync
/// can suffer only io_error and stall.
struct fault_rates {
  double io_error = 0, no_space = 0, short_transfer = 0, bit_flip = 0, torn = 0, stall = 0;
};

/// The disk below a `faulty` medium: bytes that stay when the medium is closed, what it has been told to do wrong, and
/// what it has seen. The test owns it; it outlives the media that are opened over it, one after the other.
///
/// A call is judged when it is started: first by the script, which names it by its number, then by the rates. It ends
/// after a random time between `shortest` and `longest`, on the clock of the medium's context; if these differ, calls
/// may end in a different order than they were started. Owner thread only.
class faulty_device {
 public:
  using duration = std::chrono::steady_clock::duration;

  explicit faulty_device(std::size_t capacity, std::uint64_t seed = 1)
      : random_(seed), bytes_(capacity), durable_(capacity) {}
  faulty_device(const faulty_device&) = delete;

  // --- What it does wrong.

  duration shortest{0}, longest{0};       ///< how long a call takes
  duration stall{std::chrono::hours(1)};  ///< how much longer one that stalls takes
  fault_rates rates;                      ///< apply to what the script does not name
  bool hold = false;                      ///< calls that start now end when faulty::let_go says so
  bool heeds_stop = true;  ///< a transfer that is asked to stop ends then; else it runs to its end

  /// The `nth` next call of that kind suffers `what`; 0 is the next one. `part`, of 256, says how much of a short or
  /// torn transfer is moved, and which bit flips.
  void script(device_call call, std::uint64_t nth, fault what, std::uint8_t part = 128) {
    scripted_[{call, seen_[index(call)].begun + nth}] = {what, part};
  }
  void clear_script() { scripted_.clear(); }

  // --- What it has seen.

  struct counts {
    std::uint64_t begun = 0;
    std::uint64_t succeeded = 0;  ///< reported success, rightly or not
    std::uint64_t failed = 0;     ///< reported failure
  };
  const counts& seen(device_call call) const noexcept { return seen_[index(call)]; }
  /// Faults so far, counted when the call ends. A stall counts when it begins.
  std::uint64_t faults() const noexcept { return faults_; }
  /// Calls that have been started and have not ended, and how many of these stall.
  std::size_t in_flight() const noexcept { return in_flight_; }
  std::size_t stalled() const noexcept { return stalled_; }
  std::size_t capacity() const noexcept { return bytes_.size(); }

  /// Called for each fault: for a stall when the call starts, for all others before the call reports how it ended.
  /// `at` is the offset of the extent; a sync has none.
  std::function<void(device_call call, std::uint64_t at, fault what)> on_fault;

  /// Called when a call has begun, and when it is about to end: points where whoever waits for it may change its
  /// mind.
  std::function<void(device_call call)> on_progress;

  /// Corrupts these bytes, until they are written again or the power fails.
  void spoil(std::uint64_t at, std::size_t bytes) noexcept {
    for (std::size_t i = 0; i < bytes; ++i) bytes_[static_cast<std::size_t>(at) + i] ^= std::byte{0x55};
  }

  // --- Power.

  /// The power fails. What was durable stays; of each write since the last sync the old bytes are there, or the new
  /// ones, or part of both; a sync under way may have got anywhere. From now on every call fails, until a medium is
  /// opened over the device: then the power is back.
  void cut_power();
  bool has_power() const noexcept { return powered_; }

 private:
  friend class faulty_calls;

  struct verdict {
    fault what = fault::none;
    std::uint8_t part = 128;
  };
  struct run {
    std::uint64_t offset;
    std::size_t bytes;
  };
  using labels = std::map<std::uint64_t, extent_header>;  // by offset
  // What a sync will have made durable when it succeeds.
  struct sync_image {
    std::vector<run> runs;
    std::vector<std::byte> bytes;  // of the runs, one after the other
    labels headers;
    std::uint64_t number = 0;  // of the sync
  };

  static constexpr std::size_t index(device_call call) noexcept { return static_cast<std::size_t>(call); }

  verdict judge(device_call call) {
    const std::uint64_t number = seen_[index(call)].begun++;
    if (const auto found = scripted_.find({call, number}); found != scripted_.end()) {
      const verdict v = found->second;
      scripted_.erase(found);
      return v;
    }
    const auto part = static_cast<std::uint8_t>(random_.next());
    const bool sync = call == device_call::sync;
    if (random_.chance(rates.io_error)) return {fault::io_error, part};
    if (call == device_call::write && random_.chance(rates.no_space)) return {fault::no_space, part};
    if (!sync && random_.chance(rates.short_transfer)) return {fault::short_transfer, part};
    if (!sync && random_.chance(rates.bit_flip)) return {fault::bit_flip, part};
    if (!sync && random_.chance(rates.torn)) return {fault::torn, part};
    if (random_.chance(rates.stall)) return {fault::stall, part};
    return {};
  }
  duration takes() {
    const auto spread = static_cast<std::size_t>((longest - shortest).count());
    return shortest + duration(spread == 0 ? 0 : static_cast<duration::rep>(random_.below(spread + 1)));
  }
  void tell(device_call call, std::uint64_t at, fault what) {
    ++faults_;
    if (on_fault) on_fault(call, at, what);
  }

  // A sync covers what those under way cover, as it may be the first to succeed.
  sync_image begin_sync() {
    sync_image image{std::exchange(dirty_, {}), {}, headers_, ++syncs_};
    for (const sync_image* other : syncing_)
      image.runs.insert(image.runs.end(), other->runs.begin(), other->runs.end());
    for (const run& r : image.runs)
      image.bytes.insert(image.bytes.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(r.offset),
                         bytes_.begin() + static_cast<std::ptrdiff_t>(r.offset + r.bytes));
    return image;
  }
  void apply_bytes(const sync_image& image) noexcept {
    const std::byte* from = image.bytes.data();
    for (const run& r : image.runs) {
      std::memcpy(durable_.data() + r.offset, from, r.bytes);
      from += r.bytes;
    }
  }
  void end_sync(sync_image& image, bool well) {
    if (image.number < durable_sync_) return;  // a later one has succeeded
    if (well) {
      apply_bytes(image);
      durable_headers_ = std::move(image.headers);
      durable_sync_ = image.number;
    } else {
      dirty_.insert(dirty_.end(), image.runs.begin(), image.runs.end());
    }
  }
  void restore_power() {
    if (std::exchange(powered_, true)) return;
    bytes_ = durable_;
    headers_ = durable_headers_;
    dirty_.clear();
  }

  seeded_random random_;
  std::vector<std::byte> bytes_, durable_;
  labels headers_, durable_headers_;
  std::uint64_t sequence_ = 0;              // of headers
  std::optional<store_contents> contents_;  // once it has been a store
  std::vector<run> dirty_;                  // writes begun or ended since the last sync began
  std::vector<sync_image*> syncing_;        // syncs under way
  std::map<std::pair<device_call, std::uint64_t>, verdict> scripted_;
  counts seen_[3];
  std::uint64_t syncs_ = 0, durable_sync_ = 0;  // begun; the latest that succeeded
  std::uint64_t faults_ = 0;
  std::size_t in_flight_ = 0, stalled_ = 0;
  bool powered_ = true;
};

inline void faulty_device::cut_power() {
  if (!std::exchange(powered_, false)) return;
  constexpr std::size_t sector = 64;  // smaller than a disk's, so that small blocks tear too
  for (const sync_image* image : syncing_) {
    if (image->number < durable_sync_) continue;
    if (random_.below(2) == 0) {  // its bytes had not all arrived: they are like those of any other write
      dirty_.insert(dirty_.end(), image->runs.begin(), image->runs.end());
      continue;
    }
    apply_bytes(*image);
    labels mixed;
    const labels* const sides[]{&durable_headers_, &image->headers};
    for (const labels* side : sides)
      for (const auto& [offset, header] : *side)
        if (random_.below(2) == 0) mixed.insert_or_assign(offset, header);
    for (const auto& [offset, header] : durable_headers_)  // what did not change is there whatever happens
      if (const auto same = image->headers.find(offset);
          same != image->headers.end() && same->second == header)
        mixed.insert_or_assign(offset, header);
    durable_headers_ = std::move(mixed);
  }
  for (const run& r : dirty_) {
    const std::size_t outcome = random_.below(3);  // old, new, or sector by sector
    for (std::size_t at = 0; outcome != 0 && at < r.bytes; at += sector)
      if (outcome == 1 || random_.below(2) == 0)
        std::memcpy(durable_.data() + r.offset + at, bytes_.data() + r.offset + at,
                    std::min(sector, r.bytes - at));
  }
}

}  // namespace terrace
