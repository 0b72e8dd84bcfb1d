#pragma once
// Texts that a prefix index knows, and sequences that begin with them. Part of testing/simulator.hpp.
#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "terrace/testing/simulator.hpp"

namespace terrace {
inline namespace TERRACE_EX {

namespace detail {
// A token is identified by its stamp, whose low bits are its number in the vocabulary.
inline std::vector<token_id> text_of(const std::vector<std::uint64_t>& stamps) {
  std::vector<token_id> text;
  for (const std::uint64_t stamp : stamps) text.push_back(static_cast<token_id>(stamp));
  return text;
}
}  // namespace detail

inline void simulator::insert(const simulated_operation& o) {
  const simulated_sequence* const s = pick_sequence(o.a);
  if (s == nullptr || s->stamps.empty()) return;
  const std::vector<token_id> text = detail::text_of(s->stamps);
  const std::uint64_t tenant = o.b % most_tenants;
  const std::uint64_t known = prefixes_->insert(s->tokens, text, tenant);
  if (known % prefixes_->chunk_tokens() != 0 || known > text.size())
    violate("a prefix index knows a part of a chunk");
  // Lost blocks are not found, unless another sequence has inserted the same text.
  bool lost = false;
  for (const auto& row : s->tokens.pages().rows)
    for (const block_id id : row)
      lost = lost || !id.valid() ||
             (control().record(id.index).now == block_record::phase::sealed && !cache().resident(id));
  if (const std::uint64_t match = prefixes_->match(text, tenant); match > known || (match < known && !lost))
    violate("a prefix index does not know what it was told");
  if (texts_.size() < most_texts)
    texts_.push_back(s->stamps);
  else
    texts_[o.c % most_texts] = s->stamps;
}

// A text that was inserted once, whole or not, perhaps with one token replaced: from there on nothing is known of it.
inline void simulator::adopt(const simulated_operation& o) {
  if (sequences_.size() >= most_sequences || texts_.empty()) return;
  std::vector<std::uint64_t> stamps = texts_[o.a % texts_.size()];
  if (o.b % 4 == 0) stamps.resize(o.b / 4 % (stamps.size() + 1));
  std::size_t known_at_most = stamps.size();
  if (o.b % 4 == 1 && !stamps.empty()) stamps[known_at_most = o.b / 4 % stamps.size()] = stamps_.next();
  const std::vector<token_id> text = detail::text_of(stamps);
  const std::uint64_t tenant = o.c % most_tenants;
  const std::uint64_t foreseen = prefixes_->match(text, tenant);
  sequences_.push_back({cache().make_sequence(), {}});
  simulated_sequence& s = sequences_.back();
  const std::uint64_t known = prefixes_->adopt(s.tokens, text, tenant);
  counts.adopted += known;
  if (known != foreseen) violate("a prefix index has found another prefix than it said");
  if (known > known_at_most) violate("a prefix index has taken one text for another");
  if (s.tokens.length() != known) return violate("a sequence has not the tokens that a prefix index knows");
  s.stamps.assign(stamps.begin(), stamps.begin() + static_cast<std::ptrdiff_t>(known));
  // Whoever asked for them while no sequence referred to them may be told that they are gone.
  for (const auto& row : s.tokens.pages().rows)
    std::for_each(row.begin(), row.end(), [&](block_id id) { excuse(id); });
  const auto rest = static_cast<std::uint32_t>(stamps.size() - known);
  if (o.c / 2 % 2 == 0 || rest == 0) return;
  begin_reservation(s, rest, stamps.data() + known);
  if (s.open) end_reservation(s, rest);
}

}  // namespace TERRACE_EX
}  // namespace terrace
