#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/cache/acquire.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/kv_store.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Sets the cache in which new paged tensors live, for as long as the scope exists. Scopes of one thread nest: the
/// innermost counts, and they must end in the reverse of the order in which they began. A scope must end before its
/// cache.
class memory_scope {
 public:
  explicit memory_scope(kv_store& cache) noexcept
      : cache_(&cache.control()), outer_(std::exchange(innermost_, this)) {}
  memory_scope(const memory_scope&) = delete;
  ~memory_scope() {
    TERRACE_ASSERT(innermost_ == this,
                   "memory scopes must end in the reverse of the order in which they began");
    innermost_ = outer_;
  }

  /// The cache of this thread's innermost scope, nullptr outside of any.
  static planner* current() noexcept { return innermost_ == nullptr ? nullptr : innermost_->cache_; }

 private:
  static inline thread_local memory_scope* innermost_ = nullptr;

  planner* cache_;
  memory_scope* outer_;
};

/// A pinned page: a lease of one block, with its contents as elements.
template <element_type T>
class page_lease : public lease {
 public:
  page_lease() = default;
  page_lease(lease held, std::size_t elements) noexcept : lease(std::move(held)), elements_(elements) {}

  /// The page's elements, valid until the lease is released.
  std::span<const T> values() const noexcept {
    if (empty()) return {};
    return {reinterpret_cast<const T*>((*this)[0].data), elements_};
  }

 private:
  std::size_t elements_ = 0;
};

/// The sender that `paged_tensor::page` returns. Completes on the owner with set_value(page_lease<T>),
/// set_error(block_error) or set_stopped(), as an acquire does (cache/acquire.hpp).
template <element_type T>
class page_sender {
 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(page_lease<T>), ex::set_error_t(block_error),
                                     ex::set_stopped_t()>{};
  }

  /// If `block` is not valid, the sender fails with `why`.
  page_sender(planner& owner, block_id block, std::size_t elements, const char* why) noexcept
      : what_{&owner, block, elements, why} {}

 private:
  struct arguments {
    planner* owner;
    block_id block;
    std::size_t elements;
    const char* why;
  };

 public:
  template <class R>
  class operation {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(const arguments& what, R r)
        : what_(what),
          receiver_(std::move(r)),
          acquire_(acquire_sender(*what.owner, {&what_.block, 1}).connect(inner{this})) {}
    operation(operation&&) = delete;

    void start() noexcept {
      if (what_.block.valid()) return acquire_.start();
      ex::set_error(std::move(receiver_), block_error(error{errc::invalid_argument, what_.why}));
    }

   private:
    struct inner {
      using receiver_concept = ex::receiver_t;
      operation* self;
      void set_value(lease held) noexcept {
        ex::set_value(std::move(self->receiver_), page_lease<T>(std::move(held), self->what_.elements));
      }
      void set_error(block_error e) noexcept { ex::set_error(std::move(self->receiver_), std::move(e)); }
      void set_stopped() noexcept { ex::set_stopped(std::move(self->receiver_)); }
      ex::env_of_t<R> get_env() const noexcept { return ex::get_env(self->receiver_); }
    };
    arguments what_;
    R receiver_;
    acquire_sender::operation<inner> acquire_;
  };

  template <class R>
  operation<R> connect(R receiver) const {
    return operation<R>(what_, std::move(receiver));
  }

 private:
  arguments what_;
};

/// A large one-dimensional tensor, activations or weights, cut into pages that move between tiers as KV blocks do:
/// each page is a block of a group that `tensor_pages` made for the cache's layout.
///
///     auto weights = paged_tensor<fp16>::make(*cache, elements);
///     if (auto stored = weights->store(values); !stored) return propagate(stored.error());
///     auto page = ctx.sync_wait(weights->page(3));       // page->values(): a span, pinned in place
///
/// A page comes into being when it is first written; reading one before that is an error. Pages are immutable once
/// sealed: writing one again makes a new block, which replaces the old one when it is sealed. Lossy codecs below tier
/// 0 degrade tensors as they do KV, and a lease tells how much.
///
/// Move-only; its blocks are let go when it ends. It must end before its cache. Owner thread only.
template <element_type T>
class paged_tensor {
 public:
  /// A tensor of `elements` elements, none of them written yet. If there are several groups of pages for T, it takes
  /// the one that wastes least, then the one with the largest pages. It takes no room in any tier yet. Errors:
  /// invalid_argument if the cache's layout has no pages for T, or the tensor would have more pages than can be
  /// counted. O(pages).
  static result<paged_tensor> make(kv_store& cache, std::size_t elements) {
    return make(cache.control(), elements);
  }
  /// The same in the cache of the innermost memory_scope; invalid_argument outside of any.
  static result<paged_tensor> make(std::size_t elements) {
    planner* const owner = memory_scope::current();
    if (owner == nullptr)
      return fail(errc::invalid_argument,
                  "outside of a memory_scope a paged tensor must be told which cache it lives in");
    return make(*owner, elements);
  }

  paged_tensor(paged_tensor&& other) noexcept
      : owner_(other.owner_),
        group_(other.group_),
        row_(other.row_),
        size_(std::exchange(other.size_, 0)),
        pages_(std::move(other.pages_)) {
    other.pages_.clear();
  }
  paged_tensor& operator=(paged_tensor&& other) noexcept {
    paged_tensor incoming(std::move(other));
    std::swap(owner_, incoming.owner_);
    std::swap(group_, incoming.group_);
    std::swap(row_, incoming.row_);
    std::swap(size_, incoming.size_);
    pages_.swap(incoming.pages_);
    return *this;
  }
  ~paged_tensor() { clear(); }

  /// Elements of the tensor; its pages; elements of a full page; elements of page `i`: the last page may have fewer.
  std::size_t size() const noexcept { return size_; }
  std::size_t pages() const noexcept { return pages_.size(); }
  std::size_t page_elements() const noexcept { return group().k.dim; }
  std::size_t page_size(std::size_t i) const noexcept {
    return std::min(page_elements(), size_ - i * page_elements());
  }
  /// Whether page `i` can be read. Precondition: i < pages().
  bool written(std::size_t i) const noexcept { return pages_[i].sealed.valid(); }

  /// Brings page `i` and pins it: a sender of a page_lease<T>. It reads the page as it is now. If the
  /// page is sealed anew before it completes, it may be lost instead: nothing else refers to the old contents. Errors:
  /// invalid_argument for a page that does not exist or was never sealed, otherwise those of acquire.
  page_sender<T> page(std::size_t i) const noexcept {
    if (i >= pages()) return {*owner_, {}, 0, "a paged tensor was asked for a page that it does not have"};
    return {*owner_, pages_[i].sealed, page_size(i), "this page of a tensor was never written"};
  }

  /// The elements of page `i` for writing, in tier 0, until `seal(i)` or `discard(i)`; until then, asking again gives
  /// the same span. Their initial contents are unspecified. Until it is sealed, reads still see the old page. May
  /// drive the context. Errors: invalid_argument for a page that does not exist; out_of_capacity if tier 0 has no
  /// slot and none can be freed. Then nothing has changed.
  result<std::span<T>> write(std::size_t i) {
    if (i >= pages())
      return fail(errc::invalid_argument, "a paged tensor was asked for a page that it does not have");
    if (pages_[i].open == block_id::no_index) {
      const auto block = open(i);
      if (!block) return propagate(block.error());
      if (pages_[i].open == block_id::no_index)
        pages_[i].open = *block;
      else  // somebody has asked for it while this call drove the context
        owner_->drop_ref(*block);
    }
    return contents(i, pages_[i].open);
  }
  /// Makes what was written the contents of page `i`. Precondition: write(i) succeeded, and the page was not sealed
  /// or discarded since.
  void seal(std::size_t i) {
    TERRACE_ASSERT(i < pages() && pages_[i].open != block_id::no_index,
                   "a page of a tensor was sealed that is not being written");
    const std::uint32_t block = std::exchange(pages_[i].open, block_id::no_index);
    owner_->seal(block);
    replace(i, block);
    owner_->wake();
  }
  /// Drops what was written to page `i` and not sealed; the page is as it was. Precondition: i < pages().
  void discard(std::size_t i) {
    if (const std::uint32_t block = std::exchange(pages_[i].open, block_id::no_index);
        block != block_id::no_index)
      owner_->drop_ref(block);
  }
  /// Lets go of every page: the tensor is then unwritten, as after `make`.
  void clear() noexcept {
    for (std::size_t i = 0; i < pages(); ++i) {
      discard(i);
      if (const block_id old = std::exchange(pages_[i].sealed, {}); old.valid()) owner_->drop_ref(old.index);
    }
  }

  /// Makes the tensor equal to `values`, page by page, while full pages move to farther tiers: a tensor may be much
  /// larger than tier 0. Drives the context. Errors: invalid_argument for the wrong number of elements;
  /// out_of_capacity if the tiers have no room for the new contents besides the old (`clear()` first to free that
  /// room). Then nothing has changed. O(size).
  result<void> store(std::span<const T> values) {
    if (values.size() != size_)
      return fail(errc::invalid_argument, "a tensor is stored from as many elements as it has");
    std::vector<std::uint32_t> fresh;
    fresh.reserve(pages());
    for (std::size_t i = 0; i < pages(); ++i) {
      auto block = open(i);
      if (!block) {
        for (const std::uint32_t done : fresh) owner_->drop_ref(done);
        return propagate(block.error());
      }
      std::ranges::copy(values.subspan(i * page_elements(), page_size(i)), contents(i, *block).begin());
      owner_->seal(*block);
      owner_->wake();
      fresh.push_back(*block);
      owner_->owner().poll();
    }
    for (std::size_t i = 0; i < pages(); ++i) {
      discard(i);
      replace(i, fresh[i]);
    }
    return {};
  }

  /// Calls f(i, std::span<const T>) for each page in order, while the following pages are loaded ahead, as many as
  /// tier 0 has room for. Drives the context. Errors: invalid_argument if a page was never written, and then f was
  /// not called; otherwise a block_error, and f was called for the pages before. O(size).
  template <class F>
  basic_result<void, block_error> for_each_page(F f) const {
    for (const page_state& p : pages_)
      if (!p.sealed.valid())
        return failed(error{errc::invalid_argument, "a tensor was read of which a page was never written"});
    for (std::size_t i = 0; i < pages(); ++i) {
      auto held = owner_->owner().sync_wait(page(i));
      if (!held) return failed(std::move(held.error()));
      prefetch_behind(i);
      f(i, held->values());
    }
    return {};
  }
  /// Copies the whole tensor to `out`. Errors: those of for_each_page, and invalid_argument for the wrong number of
  /// elements.
  basic_result<void, block_error> read(std::span<T> out) const {
    if (out.size() != size_)
      return failed(error{errc::invalid_argument, "a tensor is read into as many elements as it has"});
    return for_each_page([&](std::size_t i, std::span<const T> values) {
      std::ranges::copy(values, out.subspan(i * page_elements(), values.size()).begin());
    });
  }

 private:
  struct page_state {
    block_id sealed;                          // what is read
    std::uint32_t open = block_id::no_index;  // what is being written
  };

  paged_tensor(planner& owner, std::uint16_t group, std::uint16_t row, std::size_t size, std::size_t pages)
      : owner_(&owner), group_(group), row_(row), size_(size), pages_(pages) {}

  static result<paged_tensor> make(planner& owner, std::size_t elements) {
    const auto& groups = owner.layout().groups;
    std::optional<std::size_t> best;
    std::size_t row = 0, row_of_best = 0, pages_of_best = 0, room_of_best = 0;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      row += std::max(groups[g].block_rows(), 1u);  // tensors come after all rows of layers in a step's order
      if (!groups[g].holds_tensors() || groups[g].k.type != element_of<T>) continue;
      const std::size_t page = groups[g].k.dim;
      const std::size_t pages = elements / page + (elements % page != 0 ? 1 : 0);
      const std::size_t room = pages * page;
      if (best && (room > room_of_best || (room == room_of_best && pages > pages_of_best))) continue;
      best = g;
      row_of_best = row - 1;
      pages_of_best = pages;
      room_of_best = room;
    }
    if (!best)
      return fail(errc::invalid_argument,
                  "the cache's layout has no tensor_pages for elements of this tensor's type");
    if (pages_of_best > std::numeric_limits<std::uint32_t>::max())
      return fail(errc::invalid_argument, "a tensor of that size has more pages than can be counted");
    return paged_tensor(owner, static_cast<std::uint16_t>(*best), static_cast<std::uint16_t>(row_of_best),
                        elements, pages_of_best);
  }

  static failure<block_error> failed(block_error why) noexcept {
    return failure<block_error>{std::move(why)};
  }
  const layer_group& group() const noexcept { return owner_->layout().groups[group_]; }

  // A new block for page `i`. Whatever lies past the tensor's end is zeroed: it is encoded and stored too.
  result<std::uint32_t> open(std::size_t i) {
    auto block = owner_->open_block(group_, row_, block_id::no_index, static_cast<std::uint32_t>(i));
    if (block) {
      const std::size_t used = page_size(i) * sizeof(T);
      std::memset(owner_->open_data(*block) + used, 0, group().block_bytes() - used);
    }
    return block;
  }
  std::span<T> contents(std::size_t i, std::uint32_t block) const noexcept {
    return {reinterpret_cast<T*>(owner_->open_data(block)), page_size(i)};
  }
  void replace(std::size_t i, std::uint32_t block) {
    const block_id old = std::exchange(pages_[i].sealed, owner_->id_of(block));
    if (old.valid()) owner_->drop_ref(old.index);
  }

  // At most a quarter of tier 0: prefetched blocks are not pinned, and must not push one another out.
  void prefetch_behind(std::size_t i) const {
    std::array<block_id, 8> next;
    const std::size_t room = owner_->hot_capacity() / (4 * group().block_bytes());
    const std::size_t count = std::min({next.size(), room, pages() - i - 1});
    for (std::size_t k = 0; k < count; ++k) next[k] = pages_[i + 1 + k].sealed;
    owner_->prefetch(std::span(next).first(count), lease_form::raw);
  }

  planner* owner_;
  std::uint16_t group_;  // of the layout
  std::uint16_t row_;    // where policies rank its blocks
  std::size_t size_;
  std::vector<page_state> pages_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
