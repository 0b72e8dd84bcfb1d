#pragma once
// The functions of sequence.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/sequence.hpp"

namespace terrace {
inline namespace TERRACE_EX {

// A new open block for a position of a row, at its end or in place of another block. If `contents` is given, it is
// copied into the block, which takes over its fidelity `quality`. Empty while a slot is about to come free.
TERRACE_BODY result<std::optional<block_id>> sequence::open_like(const page_table& p, std::size_t row,
                                                                 std::size_t position,
                                                                 const std::byte* contents,
                                                                 fidelity quality) {
  const std::uint32_t parent = position == 0 ? block_id::no_index : p.rows[row][position - 1].index;
  const auto block =
      p.owner->try_open_block(static_cast<std::uint16_t>(p.group_index(row)), static_cast<std::uint16_t>(row),
                              parent, static_cast<std::uint32_t>(position), p.turn);
  if (!block) return propagate(block.error());
  if (!*block) return std::nullopt;
  const std::uint32_t own = **block;
  if (contents != nullptr)
    if (auto copied = p.owner->copy_hot(p.owner->open_data(own), contents, p.group(row).block_bytes());
        !copied) {
      p.owner->drop_ref(own);
      return propagate(copied.error());
    }
  p.owner->lower_fidelity(own, quality);
  return p.owner->id_of(own);
}

// --- Reservations.

TERRACE_BODY result<void> reservation_room::begin() {
  page_table& p = *pages_;
  if (p.reserved) return fail(errc::invalid_argument, "a sequence has one reservation at a time");
  if (p.suspended)
    return fail(errc::invalid_argument, "a sequence that is suspended has to be resumed before it goes on");
  if (tokens_ == 0) return fail(errc::invalid_argument, "a reservation needs at least one token");
  if (p.open_bytes(tokens_) > p.owner->hot_capacity())
    return fail(errc::out_of_capacity, "tier 0 is smaller than the blocks of so many new tokens");
  p.reserved = true;
  ++p.changes;
  return {};
}

// Skips what an earlier call has taken already.
TERRACE_BODY result<bool> reservation_room::take() {
  page_table& p = *pages_;
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    if (auto own = make_tail_own(row); !own || !*own) return own;
    const std::uint64_t needed = (p.length + tokens_ + p.group(row).tokens - 1) / p.group(row).tokens;
    while (p.rows[row].size() < needed) {
      const auto block = sequence::open_like(p, row, p.rows[row].size(), nullptr);
      if (!block) return propagate(block.error());
      if (!*block) return false;
      p.rows[row].push_back(**block);
    }
  }
  return true;
}

// Copy on write: an open tail that another sequence shares is replaced by a copy; if nothing is kept, the shared tail
// comes back.
TERRACE_BODY result<bool> reservation_room::make_tail_own(std::size_t row) {
  page_table& p = *pages_;
  auto& blocks = p.rows[row];
  if (blocks.size() <= p.sealed(row)) return true;
  const block_id shared = blocks.back();
  if (p.owner->record(shared.index).refs == 1) return true;
  const auto own = sequence::open_like(p, row, blocks.size() - 1, p.owner->open_data(shared.index),
                                       p.owner->copy(shared.index, 0).quality);
  if (!own) return propagate(own.error());
  if (!*own) return false;
  blocks.back() = **own;
  p.replaced[row] = shared;
  return true;
}

TERRACE_BODY void reservation::end(std::uint32_t keep) {
  if (pages_ == nullptr) return;
  page_table& p = *std::exchange(pages_, nullptr);
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    auto& blocks = p.rows[row];
    const std::uint64_t tokens = p.group(row).tokens;
    const std::uint64_t used = (p.length + keep + tokens - 1) / tokens;
    for (; blocks.size() > used; blocks.pop_back()) p.owner->drop_ref(blocks.back().index);
    for (std::uint64_t i = p.length / tokens; i < (p.length + keep) / tokens; ++i)
      p.owner->seal(blocks[i].index);
  }
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    block_id shared = std::exchange(p.replaced[row], block_id{});
    if (!shared.valid()) continue;
    if (keep == 0) std::swap(shared, p.rows[row].back());
    p.owner->drop_ref(shared.index);
  }
  p.length += keep;
  p.reserved = false;
  ++p.changes;
  p.owner->wake();
}

TERRACE_BODY result<void> reservation::copy_to(restoration& lost) const {
  const page_table& p = *pages_;
  if (&lost.control() != p.owner)
    return fail(errc::invalid_argument, "a block is computed anew by a sequence of its own cache");
  const block_range range = lost.range();
  if (range.first_token < first_ || range.first_token + range.tokens > first_ + tokens_)
    return fail(errc::invalid_argument, "not all tokens of the block that is computed anew are reserved");
  const block_record& r = p.owner->record(lost.id().index);
  if (r.row >= p.rows.size())
    return fail(errc::invalid_argument, "a tensor's page is no sequence's to compute");
  return p.owner->copy_hot(lost.data().data(), p.owner->open_data(p.rows[r.row][r.depth].index),
                           lost.data().size());
}

// --- The other verbs of a sequence.

TERRACE_BODY result<sequence> sequence::fork(std::uint32_t number, std::uint64_t tokens) const {
  const page_table& p = *pages_;
  if (tokens > p.length)
    return fail(errc::invalid_argument, "a sequence cannot share more tokens than it has");
  for (std::size_t row = 0; row < p.rows.size(); ++row)
    if (tokens % p.group(row).tokens != 0)
      return fail(errc::invalid_argument, "shared tokens must fill whole blocks");
  sequence copy(*p.owner, number);
  copy.pages_->length = tokens;
  copy.pages_->turn = p.turn;
  for (std::size_t row = 0; row < p.rows.size(); ++row)
    for (std::uint64_t i = 0; i < tokens / p.group(row).tokens; ++i) {
      const block_id id = copy.pages_->rows[row].emplace_back(p.rows[row][i]);
      if (id.valid()) p.owner->add_ref(id.index);
    }
  return copy;
}

TERRACE_BODY sequence sequence::fork(std::uint32_t number) const {
  TERRACE_ASSERT(!pages_->reserved, "a sequence cannot be forked while a reservation is open");
  sequence copy;
  copy.pages_ = std::make_unique<page_table>(*pages_);
  copy.pages_->number = number;
  for (const auto& row : copy.pages_->rows)
    for (const block_id id : row)
      if (id.valid()) copy.pages_->owner->add_ref(id.index);
  return copy;
}

// Whether these blocks can become the sequence's next ones.
TERRACE_BODY result<void> sequence::check_shared(std::uint64_t tokens,
                                                 std::span<const block_id> blocks) const {
  const page_table& p = *pages_;
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    const std::uint64_t size = p.group(row).tokens;
    if (tokens % size != 0 || p.length % size != 0)
      return fail(errc::invalid_argument, "shared tokens must fill whole blocks");
    if (tokens / size > blocks.size())
      return fail(errc::invalid_argument, "there are fewer shared blocks than the shared tokens take");
    const auto of_row = blocks.first(static_cast<std::size_t>(tokens / size));
    blocks = blocks.subspan(of_row.size());
    for (const block_id id : of_row) {
      if (!id.valid()) return fail(errc::invalid_argument, "a block that was forgotten cannot be shared");
      const block_record* const found = p.owner->find_record(id);
      if (found == nullptr) return fail(errc::lost, "a block that was to be shared is gone");
      if (found->now != block_record::phase::sealed)
        return fail(errc::invalid_argument, "a block can be shared when it is sealed");
      if (found->row != row || found->group != p.group_index(row))
        return fail(errc::invalid_argument, "a block was to be shared in another row than its own");
    }
  }
  if (!blocks.empty())
    return fail(errc::invalid_argument, "there are more shared blocks than the shared tokens take");
  return {};
}

TERRACE_BODY result<void> sequence::append_shared(std::uint64_t tokens, std::span<const block_id> blocks) {
  page_table& p = *pages_;
  if (p.reserved)
    return fail(errc::invalid_argument,
                "blocks cannot be appended to a sequence while its reservation is open");
  if (auto good = check_shared(tokens, blocks); !good) return good;
  ++p.changes;
  std::size_t next = 0;
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    const std::uint64_t size = p.group(row).tokens;
    for (std::uint64_t n = 0; n < tokens / size; ++n) {
      const block_id id = blocks[next++];
      p.owner->add_ref(id.index);
      p.rows[row].push_back(id);
      p.turn = std::max(p.turn, p.owner->record(id.index).turn + 1);
    }
  }
  p.length += tokens;
  return {};
}

// --- Cuts.

TERRACE_BODY result<void> sequence_cut::begin() {
  page_table& p = *pages_;
  const std::uint64_t tokens = tokens_.value_or(p.length);
  if (p.reserved)
    return fail(errc::invalid_argument, "a sequence cannot be cut while its reservation is open");
  if (tokens > p.length)
    return fail(errc::invalid_argument, "a sequence cannot be cut to more tokens than it has");
  std::vector<block_id> ids;
  std::size_t copies = 0, source = 0;  // bytes of tier 0 that all copies take, and what is copied at a time
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    if (tokens % p.group(row).tokens == 0) continue;
    const block_id id = p.rows[row][tokens / p.group(row).tokens];
    if (!id.valid())
      return fail(errc::invalid_argument, "a sequence cannot be cut inside of what it has forgotten");
    if (p.owner->record(id.index).now == block_record::phase::open) continue;
    cuts_.push_back({row, id});
    ids.push_back(id);
    copies += p.group(row).block_bytes();
    if (p.owner->needs_slot(id, lease_form::raw)) source = std::max(source, p.group(row).block_bytes());
  }
  if (copies + source > p.owner->hot_capacity()) {
    cuts_.clear();
    return fail(errc::out_of_capacity, "tier 0 is smaller than the open blocks and one to copy");
  }
  tokens_ = tokens;
  p.reserved = true;
  p.owner->prefetch(ids, lease_form::raw);
  return {};
}

TERRACE_BODY result<bool> sequence_cut::take() {
  for (; opened_ < cuts_.size(); ++opened_) {
    cut_block& cut = cuts_[opened_];
    const auto own = sequence::open_like(*pages_, cut.row, *tokens_ / pages_->group(cut.row).tokens, nullptr);
    if (!own) return propagate(own.error());
    if (!*own) return false;
    cut.to = **own;
  }
  return true;
}

TERRACE_BODY result<void> sequence_cut::copy(const leased_block& from) {
  planner& owner = control();
  const cut_block& cut = cuts_[copied_++];
  owner.lower_fidelity(cut.to.index, from.quality);
  return owner.copy_hot(owner.open_data(cut.to.index), from.data, pages_->group(cut.row).block_bytes());
}

TERRACE_BODY void sequence_cut::finish() {
  page_table& p = *pages_;
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    const std::uint64_t size = p.group(row).tokens;
    auto& blocks = p.rows[row];
    for (; blocks.size() > (*tokens_ + size - 1) / size; blocks.pop_back())
      if (blocks.back().valid()) p.owner->drop_ref(blocks.back().index);
  }
  for (const cut_block& cut : cuts_) {
    block_id& last = p.rows[cut.row].back();
    if (last.valid()) p.owner->drop_ref(last.index);
    last = cut.to;
  }
  p.length = *tokens_;
  p.reserved = p.suspended = false;
  ++p.changes;
  p.owner->wake();
}

TERRACE_BODY void sequence_cut::drop_copies() {
  for (cut_block& cut : cuts_)
    if (const block_id own = std::exchange(cut.to, block_id{}); own.valid())
      pages_->owner->drop_ref(own.index);
}

TERRACE_BODY void sequence_cut::give_up() {
  drop_copies();
  pages_->reserved = false;
  pages_->owner->wake();
}

TERRACE_BODY basic_result<void, block_error> sequence::truncate(std::uint64_t tokens) {
  return pages_->owner->owner().sync_wait(truncate_async(tokens));
}

TERRACE_BODY result<std::size_t> sequence::suspend() {
  page_table& p = *pages_;
  if (p.reserved)
    return fail(errc::invalid_argument, "a sequence cannot be suspended while its reservation is open");
  std::size_t blocks = 0;
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    if (p.rows[row].size() == p.sealed(row)) continue;
    p.suspended = true;
    const std::uint32_t tail = p.rows[row].back().index;
    if (p.owner->record(tail).now != block_record::phase::open || p.owner->record(tail).refs != 1) continue;
    p.owner->seal(tail);
    ++blocks;
  }
  ++p.changes;
  p.owner->wake();
  return blocks;
}

// --- What it forgets, and what it knows.

TERRACE_BODY void sequence::forget(std::uint64_t first, std::uint64_t last,
                                   std::optional<std::size_t> group) {
  page_table& p = *pages_;
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    if (group && p.group_index(row) != *group) continue;
    const std::uint64_t size = p.group(row).tokens;
    const std::uint64_t end = std::min<std::uint64_t>(last / size, p.sealed(row));
    for (std::uint64_t i = first / size + (first % size != 0 ? 1 : 0); i < end; ++i) {
      const block_id id = std::exchange(p.rows[row][i], block_id{});
      if (!id.valid()) continue;
      ++p.changes;
      p.owner->drop_ref(id.index);
    }
  }
}

TERRACE_BODY hint_outcome sequence::hint(std::uint64_t first, std::uint64_t last, const terrace::hint& h,
                                         std::optional<std::size_t> group) {
  const page_table& p = *pages_;
  std::vector<block_id> blocks;
  bool partial = last > p.length;
  for (std::size_t row = 0; row < p.rows.size(); ++row) {
    if (group && p.group_index(row) != *group) continue;
    const std::uint64_t size = p.group(row).tokens;
    const std::uint64_t end = std::min<std::uint64_t>(last / size, p.sealed(row));
    for (std::uint64_t i = first / size + (first % size != 0 ? 1 : 0); i < end; ++i)
      if (p.rows[row][i].valid()) blocks.push_back(p.rows[row][i]);
    partial = partial || first % size != 0 || last % size != 0 || last / size > p.sealed(row);
  }
  return p.owner->hint_blocks(blocks, h, partial);
}

TERRACE_BODY void sequence::release() noexcept {
  if (pages_ == nullptr) return;
  TERRACE_ASSERT(!pages_->reserved, "a sequence was released while a reservation is open");
  for (auto& row : pages_->rows) {
    for (const block_id id : row)
      if (id.valid()) pages_->owner->drop_ref(id.index);
    row.clear();
  }
  pages_->length = 0;
  pages_->turn = 0;
  pages_->suspended = false;
  ++pages_->changes;
  pages_->owner->wake();
}

}  // namespace TERRACE_EX
}  // namespace terrace
