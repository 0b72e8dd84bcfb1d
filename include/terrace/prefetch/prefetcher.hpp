#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

namespace terrace {

/// A row of blocks that attention is about to stream: one row of layers of one sequence, or of all sequences of a
/// batch. A batch is identified by its first sequence's number, and each of its blocks is counted once.
struct row_use {
  std::uint32_t sequence = 0;
  std::uint32_t row = 0;     ///< the row of layers being streamed
  std::uint32_t rows = 1;    ///< rows that the model has in total
  std::uint32_t blocks = 0;  ///< blocks of the row that attention sees
  std::uint64_t step = 0;
  bool selected = false;  ///< attention reads only some of these blocks: `attended` says which
};

/// Blocks that will be wanted: `blocks` consecutive ones of a row, beginning with `first`. Only blocks that attention
/// sees are numbered, in the order in which it streams them: in a row with a window and sinks, the first ones are the
/// sinks, and those that the window has passed have no number.
struct prefetch_wish {
  std::uint32_t row = 0;
  std::uint32_t first = 0;
  std::uint32_t blocks = 0;
  std::uint64_t at_step = 0;
  bool absent = false;  ///< count only blocks that attention cannot read now, skipping those that are here
};

/// A prefetcher is told what was used and says what comes next, most urgent first.
///
/// - `name`
/// - `observe(row_use)`: a row begins to be streamed. Called once per row and step, by the owner.
/// - `suggest(out) -> std::size_t`: writes at most out.size() wishes, most urgent first, and returns how
///   many. The cache loads as many of their blocks as bandwidth, staging and free-to-leave slots allow, in
///   that order, and skips those that attention can read already. It drops wishes that it could not start:
///   the next row brings new ones. A prefetch never waits; it evicts what the policy of tier 0 would evict first,
///   but never a block that is pinned, or that another prefetch loaded and nobody has used yet. A prefetch started
///   for a sequence that has gone is dropped.
/// Neither allocates. The cache counts whether wishes were used, wasted or late.
template <class P>
concept prefetcher = std::move_constructible<P> &&
    requires(P p, const row_use& use, std::span<prefetch_wish> out) {
  { P::name } -> std::convertible_to<std::string_view>;
  p.observe(use);
  { p.suggest(out) } -> std::convertible_to<std::size_t>;
};

/// A prefetcher that wants to know what attention looked at. `attended(use, shares)`: this row has been attended;
/// shares[i] is the share of the softmax mass that the i-th visible block drew, averaged over query heads (and
/// sequences), or 0 if it was not read. Other rows may come between it and the row's `observe`. It allocates nothing.
/// Not called when many queries attend at once: shares are not computed then.
template <class P>
concept attention_watching_prefetcher = prefetcher<P> &&
    requires(P p, const row_use& use, std::span<const float> shares) {
  p.attended(use, shares);
};

/// Holds any prefetcher: it is chosen at run time, and called once per row, not once per block.
class any_prefetcher {
 public:
  any_prefetcher() = default;
  template <class P>
  requires(!std::same_as<P, any_prefetcher> && prefetcher<P>) any_prefetcher(P p)
      : self_(std::make_unique<model<P>>(std::move(p))) {}

  explicit operator bool() const noexcept { return self_ != nullptr; }
  std::string_view name() const noexcept { return self_ ? self_->name() : "none"; }
  void observe(const row_use& use) {
    if (self_) self_->observe(use);
  }
  std::size_t suggest(std::span<prefetch_wish> out) { return self_ ? self_->suggest(out) : 0; }
  /// Whether it wants to know what attention looked at.
  bool watches() const noexcept { return self_ != nullptr && self_->watches(); }
  void attended(const row_use& use, std::span<const float> shares) {
    if (self_) self_->attended(use, shares);
  }

 private:
  struct face {
    virtual ~face() = default;
    virtual std::string_view name() const noexcept = 0;
    virtual void observe(const row_use&) = 0;
    virtual std::size_t suggest(std::span<prefetch_wish>) = 0;
    virtual bool watches() const noexcept = 0;
    virtual void attended(const row_use&, std::span<const float>) = 0;
  };
  template <class P>
  struct model final : face {
    explicit model(P p) : p_(std::move(p)) {}
    std::string_view name() const noexcept override { return P::name; }
    void observe(const row_use& use) override { p_.observe(use); }
    std::size_t suggest(std::span<prefetch_wish> out) override { return p_.suggest(out); }
    bool watches() const noexcept override { return attention_watching_prefetcher<P>; }
    void attended([[maybe_unused]] const row_use& use,
                  [[maybe_unused]] std::span<const float> shares) override {
      if constexpr (attention_watching_prefetcher<P>) p_.attended(use, shares);
    }
    P p_;
  };
  std::unique_ptr<face> self_;
};

}  // namespace terrace
