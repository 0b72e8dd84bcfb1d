#pragma once
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "terrace/execution/context.hpp"
#include "terrace/execution/for_each.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/medium.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// How thoroughly `medium_conformance` looks.
struct medium_conformance_options {
  std::uint32_t seed = 1;
  unsigned rounds = 20;                          ///< of reserving, writing, reading back and releasing
  std::size_t in_flight = 16;                    ///< transfers at once
  std::size_t largest = std::size_t{256} << 10;  ///< bytes of the largest extent
  std::chrono::seconds patience{60};             ///< how long a transfer that was stopped may take to end
};

namespace examining {

/// The bytes of one extent in transit, followed by a margin that no transfer may touch. They are a function of a
/// stamp, so that a byte of another extent, or of an earlier time, is noticed.
template <medium M>
class stamped_run {
 public:
  explicit stamped_run(extent e)
      : at_(e), size_(align_up(e.bytes, M::alignment)), bytes_(make(size_ + margin)) {
    std::memset(bytes_.get() + size_, 0x5c, margin);
  }
  extent at() const noexcept { return at_; }
  /// The whole extent, up to the multiple of the alignment that a transfer moves.
  mutable_bytes all() noexcept { return {bytes_.get(), size_}; }

  void fill(std::uint32_t stamp) noexcept {
    stamp_ = stamp;
    for (std::size_t i = 0; i < size_; ++i) bytes_[i] = expected(i);
  }
  void spoil() noexcept { std::memset(bytes_.get(), 0xa7, size_); }
  bool intact() const noexcept {
    for (std::size_t i = 0; i < at_.bytes; ++i)
      if (bytes_[i] != expected(i)) return false;
    return true;
  }
  bool margin_intact() const noexcept {
    return std::all_of(bytes_.get() + size_, bytes_.get() + size_ + margin,
                       [](std::byte b) { return b == std::byte{0x5c}; });
  }

 private:
  static constexpr std::size_t margin = 64;
  static constexpr std::align_val_t aligned{std::max<std::size_t>(M::alignment, 64)};
  struct aligned_delete {
    void operator()(std::byte* p) const noexcept { ::operator delete[](p, aligned); }
  };
  using storage = std::unique_ptr<std::byte[], aligned_delete>;
  static storage make(std::size_t n) { return storage(new (aligned) std::byte[n]); }
  std::byte expected(std::size_t i) const noexcept {
    std::uint32_t x = (static_cast<std::uint32_t>(i / 4) ^ (stamp_ << 16) ^ stamp_) * 0x9e3779b9u;
    x ^= x >> 15;
    return static_cast<std::byte>(x >> (8 * (i % 4)));
  }

  extent at_;
  std::size_t size_;
  storage bytes_;
  std::uint32_t stamp_ = 0;
};

/// Takes whatever a transfer completes with, and can be asked to stop it.
struct stoppable_receiver {
  using receiver_concept = ex::receiver_t;
  ex::inplace_stop_source* stop;
  bool* ended;
  void set_value() noexcept { *ended = true; }
  template <class E>
  void set_error(E&&) noexcept {
    *ended = true;
  }
  void set_stopped() noexcept { *ended = true; }
  auto get_env() const noexcept { return ex::prop{ex::get_stop_token, stop->get_token()}; }
};

template <medium M>
class medium_examination {
 public:
  using verdict = std::optional<std::string>;

  medium_examination(context& ctx, M& m, const medium_conformance_options& how)
      : context_(ctx), medium_(m), how_(how), random_(how.seed) {}

  verdict run() {
    for (auto check : {&medium_examination::constants, &medium_examination::what_does_not_fit,
                       &medium_examination::full_and_empty_again, &medium_examination::random_runs,
                       &medium_examination::prefixes, &medium_examination::stopping,
                       &medium_examination::other_capacities, &medium_examination::resizing_in_use})
      if (auto violated = (this->*check)()) return violated;
    return {};
  }

 private:
  using run_list = std::vector<stamped_run<M>>;

  verdict constants() {
    if (std::string_view(M::name).empty()) return "a medium has a name";
    if (!std::has_single_bit(std::size_t{M::alignment})) return "alignment is a power of two";
    if (std::size_t{M::granularity} == 0) return "granularity is at least one byte";
    if (medium_.capacity() == 0) return "a medium to be examined has room for something";
    if (medium_.used() != 0) return "nothing is used before anything is reserved";
    return {};
  }

  verdict what_does_not_fit() {
    if (medium_.reserve(medium_.capacity() + 1)) return "nothing larger than the capacity can be reserved";
    return medium_.used() == 0 ? verdict{} : "a reservation that failed uses nothing";
  }

  // A full medium gives nothing more, and gives all of its room again once that has been released.
  verdict full_and_empty_again() {
    const std::size_t piece =
        std::clamp(align_up(medium_.capacity() / 64, M::alignment), M::alignment, how_.largest);
    std::size_t first_count = 0;
    for (int round = 0; round < 3; ++round) {
      std::vector<extent> held;
      while (auto e = medium_.reserve(piece)) {
        held.push_back(*e);
        if (held.size() * piece > medium_.capacity()) return "no more can be reserved than the capacity";
      }
      if (held.empty()) return "an empty medium has room for a small extent";
      if (round == 0) first_count = held.size();
      if (held.size() != first_count) return "what is released can be reserved again";
      const std::size_t one = random_() % held.size();
      medium_.release(held[one]);
      const auto again = medium_.reserve(piece);
      if (!again) return "a full medium has room again once an extent is released";
      held[one] = *again;
      std::shuffle(held.begin(), held.end(), random_);
      for (const extent& e : held) medium_.release(e);
      if (medium_.used() != 0) return "nothing is used once everything is released";
    }
    return {};
  }

  // Extents come and go. Those that are held are written and read back in random order, many at once.
  verdict random_runs() {
    run_list held;
    std::uint32_t stamp = how_.seed;
    for (unsigned round = 0; round < how_.rounds; ++round) {
      const std::size_t kept = held.size();
      while (held.size() < kept + 8)
        if (auto violated = reserve_one(held); violated || medium_full_) {
          if (violated) return violated;
          break;
        }
      for (std::size_t i = kept; i < held.size(); ++i) held[i].fill(++stamp);
      // The new ones are written while the others are read: neither may disturb the other.
      for (std::size_t i = 0; i < kept; ++i) held[i].spoil();
      auto both = context_.sync_wait(
          ex::when_all(transfer<false>(held, kept, held.size()), transfer<true>(held, 0, kept)));
      if (!both) return "a transfer succeeds: " + error(both.error()).message();
      if (auto violated = compare(held, 0, kept)) return violated;

      std::shuffle(held.begin(), held.end(), random_);
      for (auto& r : held) r.spoil();
      auto reads = context_.sync_wait(transfer<true>(held, 0, held.size()));
      if (!reads) return "a read succeeds: " + error(reads.error()).message();
      if (auto violated = compare(held, 0, held.size())) return violated;
      for (std::size_t i = held.size() / 2; i > 0; --i) {
        medium_.release(held.back().at());
        held.pop_back();
      }
    }
    return release(held);
  }

  // A transfer moves as much as its buffer holds, from the beginning of the extent on.
  verdict prefixes() {
    const std::size_t whole = std::min(M::alignment * 4, medium_.capacity());
    if (whole < 2 * M::alignment) return {};
    run_list held;
    auto e = medium_.reserve(whole);
    if (!e) return "an empty medium has room for a small extent";
    held.emplace_back(*e);
    stamped_run<M>& r = held.front();
    r.fill(1);
    if (!context_.sync_wait(medium_.write(*e, r.all()))) return "a write succeeds";
    if (!context_.sync_wait(medium_.write(*e, r.all().first(M::alignment))))
      return "a write of the first bytes of an extent succeeds";
    r.spoil();
    bool on_owner = false;
    auto part = ex::then(medium_.read(*e, r.all().first(M::alignment)),
                         [&]() noexcept { on_owner = context_.on_owner_thread(); });
    if (!context_.sync_wait(std::move(part))) return "a read of the first bytes of an extent succeeds";
    if (!on_owner) return "transfers complete on the owner of the context";
    if (std::any_of(r.all().begin() + static_cast<std::ptrdiff_t>(M::alignment), r.all().end(),
                    [](std::byte b) { return b != std::byte{0xa7}; }))
      return "a read fills no more than its buffer";
    if (!context_.sync_wait(medium_.read(*e, r.all()))) return "a read succeeds";
    if (!r.intact()) return "a write of the first bytes of an extent leaves the others as they were";
    return release(held);
  }

  // A transfer that is asked to stop ends all the same, and the extent can be used afterwards.
  verdict stopping() {
    run_list held;
    if (auto violated = reserve_one(held)) return violated;
    stamped_run<M>& r = held.front();
    r.fill(2);
    ex::inplace_stop_source stop;
    bool written = false, read = false;
    {
      auto operation = ex::connect(medium_.write(r.at(), r.all()), stoppable_receiver{&stop, &written});
      ex::start(operation);
      stop.request_stop();
      if (!wait_for(written)) return never_ended();
    }
    {
      auto operation = ex::connect(medium_.read(r.at(), r.all()), stoppable_receiver{&stop, &read});
      ex::start(operation);
      if (!wait_for(read)) return never_ended();
    }
    r.fill(3);
    if (!context_.sync_wait(medium_.write(r.at(), r.all()))) return "a write after a stopped one succeeds";
    r.spoil();
    if (!context_.sync_wait(medium_.read(r.at(), r.all()))) return "a read after a stopped one succeeds";
    if (auto violated = compare(held, 0, 1)) return violated;
    return release(held);
  }

  // For a medium that has resize(): all of the capacity can be reserved, and no more.
  verdict other_capacities() {
    if constexpr (resizable_medium<M>) {
      const std::size_t usual = medium_.capacity();
      for (const std::size_t asked : {usual / 2, usual * 2, std::size_t{0}, usual}) {
        const std::size_t before = medium_.capacity();
        if (!medium_.resize(asked)) {
          if (asked <= before) return "lowering the capacity succeeds";
          if (medium_.capacity() != before) return "a resize that failed changes nothing";
          continue;
        }
        if (medium_.capacity() > asked) return "capacity() is at most what was asked for";
        if (asked >= usual && medium_.capacity() < usual) return "capacity() is what was asked for";
        std::vector<extent> held;
        const std::size_t piece = std::max(usual / 16 / M::alignment, std::size_t{1}) * M::alignment;
        while (auto e = medium_.reserve(piece)) {
          held.push_back(*e);
          if (medium_.used() > medium_.capacity()) return "used() is at most capacity()";
        }
        if (held.size() < medium_.capacity() / (2 * piece)) return "all of the capacity can be reserved";
        for (const extent& e : held) medium_.release(e);
        if (medium_.used() != 0) return "nothing is used once everything is released";
      }
      if (medium_.capacity() != usual) return "a capacity that was lowered can be raised again";
    }
    return {};
  }

  // Whatever happens to the capacity, what is reserved stays as it is, transfers in flight included.
  verdict resizing_in_use() {
    if constexpr (resizable_medium<M>) {
      const std::size_t usual = medium_.capacity();
      run_list held;
      std::uint32_t stamp = how_.seed;
      for (unsigned round = 0; round < how_.rounds; ++round) {
        const std::size_t kept = held.size();
        for (int i = 0; i < 8; ++i) {
          if (auto violated = reserve_one(held)) return violated;
          if (medium_full_) break;
        }
        for (std::size_t i = kept; i < held.size(); ++i) held[i].fill(++stamp);
        auto changed = ex::then(ex::just(), [&]() noexcept {
          return medium_.resize(round % 4 == 3 ? usual : random_() % (usual + 1)).has_value();
        });
        if (!context_.sync_wait(ex::when_all(transfer<false>(held, kept, held.size()), std::move(changed))))
          return "a write succeeds while the capacity changes";
        if (medium_.used() >= medium_.capacity() && medium_.reserve(1))
          return "nothing can be reserved while more is used than the capacity";
        std::shuffle(held.begin(), held.end(), random_);
        for (auto& r : held) r.spoil();
        if (!context_.sync_wait(transfer<true>(held, 0, held.size()))) return "a read succeeds";
        if (auto violated = compare(held, 0, held.size())) return violated;
        for (std::size_t i = held.size() / 3; i > 0; --i) {
          medium_.release(held.back().at());
          held.pop_back();
        }
      }
      if (!medium_.resize(usual)) return "a capacity that was lowered can be raised again";
      return release(held);
    }
    return {};
  }

  bool wait_for(const bool& ended) {
    const auto deadline = context::clock::now() + how_.patience;
    while (!ended && context_.wait(deadline)) {
    }
    return ended;
  }
  // The operation still has its buffer, so nothing can be given back and the test cannot go on.
  [[noreturn]] static verdict never_ended() {
    std::fputs("terrace: a transfer that was asked to stop never ends\n", stderr);
    std::abort();
  }

  verdict reserve_one(run_list& held) {
    const std::size_t most = std::min(how_.largest, std::max<std::size_t>(medium_.capacity() / 16, 1));
    const std::size_t bytes = 1 + random_() % (random_() % 4 == 0 ? most : 1 + most / 16);
    const std::size_t before = medium_.used();
    const auto e = medium_.reserve(bytes);
    medium_full_ = !e;
    if (!e) return medium_.used() == before ? verdict{} : "a reservation that failed uses nothing";
    if (e->bytes != bytes) return "an extent says how many bytes were asked for";
    if (e->offset % M::alignment != 0) return "an extent begins at a multiple of the alignment";
    if (medium_.used() < before + bytes) return "used() counts every byte that is reserved";
    if (medium_.used() > medium_.capacity()) return "used() is at most capacity()";
    if constexpr (host_addressable_medium<M>)
      if (reinterpret_cast<std::uintptr_t>(medium_.address(*e)) % M::alignment != 0)
        return "an address is a multiple of the alignment";
    held.emplace_back(*e);
    return {};
  }

  // Reads or writes the runs [first, last), several at once.
  template <bool Reading>
  auto transfer(run_list& runs, std::size_t first, std::size_t last) {
    return for_each(last - first, how_.in_flight, [this, &runs, first](std::size_t i) noexcept {
      stamped_run<M>& r = runs[first + i];
      if constexpr (Reading)
        return medium_.read(r.at(), r.all());
      else
        return medium_.write(r.at(), r.all());
    });
  }

  verdict compare(run_list& runs, std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) {
      if (!runs[i].intact()) return "what is read is what was written last";
      if (!runs[i].margin_intact()) return "a read fills no more than its buffer";
      if constexpr (host_addressable_medium<M>)
        if (std::memcmp(medium_.address(runs[i].at()), runs[i].all().data(), runs[i].at().bytes) != 0)
          return "an address shows what was written";
    }
    return {};
  }

  verdict release(run_list& held) {
    for (auto& r : held) medium_.release(r.at());
    held.clear();
    return medium_.used() == 0 ? verdict{} : "nothing is used once everything is released";
  }

  context& context_;
  M& medium_;
  medium_conformance_options how_;
  std::mt19937 random_;
  bool medium_full_ = false;
};

}  // namespace examining

/// Tests an open medium against its contract (medium/medium.hpp) and returns the first sentence of it that does not
/// hold, or nothing. Works in any test framework: `CHECK(!medium_conformance(ctx, *m))`.
///
/// Preconditions: on the owner of `ctx`, on which `m` was opened; nothing is reserved in `m`, and its capacity is at
/// least 16 times its alignment. What `m` held is overwritten; afterwards it is empty again, unless a sentence was
/// returned. A transfer that never completes is waited for forever, but one that was asked to stop ends the program
/// after `how.patience`. Moves about rounds * capacity bytes.
template <medium M>
std::optional<std::string> medium_conformance(context& ctx, M& m,
                                              const medium_conformance_options& how = {}) {
  return examining::medium_examination<M>(ctx, m, how).run();
}

}  // namespace TERRACE_EX
}  // namespace terrace
