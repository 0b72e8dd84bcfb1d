#pragma once
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "terrace/core/index_list.hpp"

namespace terrace {

/// A tournament over dense indices (Knuth, The Art of Computer Programming 3, 5.4.1, "tree of winners"): each has a
/// key or none, and the one with the highest key wins. Eight keys that lie side by side are a match, whose winner's
/// key goes on to the next round, until a last match decides.
///
/// Unlike in a heap, an index never moves: nothing has to be read to find its key, nor written when another's key
/// changes. What a change reads in each round is at an address that depends only on the index, so the processor can
/// fetch all of it at once; and the later rounds, each an eighth of the size of the one before, stay in its caches.
///
/// `set` and `erase` are O(log n), and stop at the first match whose winner's key stays the same; `top` is O(1) or
/// O(log n), everything else O(1). 8 bytes per index, and a seventh of that for the matches. Only `reserve`
/// allocates.
template <class Key>
requires(std::integral<Key> || std::floating_point<Key>) class winner_tree {
  static_assert(sizeof(Key) == 8, "eight keys of a match are to fill a cache line");

 public:
  /// The key of an index that has none: lower than any that may be set.
  static constexpr Key absent = std::numeric_limits<Key>::has_infinity ? -std::numeric_limits<Key>::infinity()
                                                                       : std::numeric_limits<Key>::lowest();

  /// Makes room for the indices below `capacity`; existing ones keep their keys. O(capacity).
  void reserve(std::size_t capacity) {
    if (capacity <= capacity_) return;
    std::vector<match> first(matches_.begin(), matches_.begin() + static_cast<std::ptrdiff_t>(rounds_[1]));
    capacity_ = capacity;
    last_round_ = 0;
    std::size_t matches = matches_of(capacity), all = matches;
    rounds_[1] = static_cast<std::uint32_t>(all);
    while (matches > 1) {
      matches = matches_of(matches);
      all += matches;
      rounds_[++last_round_ + 1] = static_cast<std::uint32_t>(all);
    }
    first.resize(all);
    matches_ = std::move(first);
    winner_ = unknown;
    for (std::uint32_t round = 0; round < last_round_; ++round)
      for (std::uint32_t m = 0; m < rounds_[round + 1] - rounds_[round]; ++m)
        matches_[rounds_[round + 1] + m / players].keys[m % players] = matches_[rounds_[round] + m].highest();
  }

  bool contains(std::uint32_t i) const noexcept { return matches_[i / players].keys[i % players] != absent; }
  /// Gives `i` this key. Preconditions: there is room for `i`; `key` is a number above `absent`.
  void set(std::uint32_t i, Key key) noexcept { change(i, key); }
  /// Removes the key of `i`. Precondition: there is room for `i`.
  void erase(std::uint32_t i) noexcept { change(i, absent); }

  /// The index with the highest key, the lowest index among equals, or `index_link::none`. It is remembered until a
  /// change may affect it: O(log n) after that, O(1) until then.
  std::uint32_t top() noexcept {
    if (winner_ == unknown) winner_ = find_winner();
    return winner_;
  }

 private:
  static constexpr std::uint32_t players = 8, unknown = index_link::none - 1;
  struct alignas(64) match {
    std::array<Key, players> keys;
    match() noexcept { keys.fill(absent); }
    Key highest() const noexcept {  // in three steps, not seven dependent ones
      const auto higher = [](Key a, Key b) { return a > b ? a : b; };
      return higher(higher(higher(keys[0], keys[1]), higher(keys[2], keys[3])),
                    higher(higher(keys[4], keys[5]), higher(keys[6], keys[7])));
    }
    // Precondition: `highest` is what it says.
    std::uint32_t first_with(Key highest) const noexcept {
      return [&]<std::uint32_t... player>(std::integer_sequence<std::uint32_t, player...>) {
        std::uint32_t first = 0;
        ((first = keys[players - 1 - player] >= highest ? players - 1 - player : first), ...);
        return first;
      }
      (std::make_integer_sequence<std::uint32_t, players>());
    }
  };
  static constexpr std::size_t matches_of(std::size_t contestants) noexcept {
    return (contestants + players - 1) / players;
  }

  void change(std::uint32_t at, Key key) noexcept {
    for (std::uint32_t round = 0;; ++round) {
      match& m = matches_[rounds_[round] + at / players];
      const Key before = std::exchange(m.keys[at % players], key);
      if (round == last_round_) break;
      at /= players;
      const Key won = matches_[rounds_[round + 1] + at / players].keys[at % players];
      if (key < won && before < won) return;  // a loser, before and now
      if (key <= won) {
        key = m.highest();
        if (key == won) break;  // another index may now be the first among equals
      }
    }
    winner_ = unknown;
  }
  std::uint32_t find_winner() const noexcept {
    const Key highest = matches_.empty() ? absent : matches_.back().highest();
    if (highest == absent) return index_link::none;
    std::uint32_t at = 0;
    for (std::uint32_t round = last_round_ + 1; round-- > 0;)
      at = at * players + matches_[rounds_[round] + at].first_with(highest);
    return at;
  }

  std::vector<match> matches_;              // by round, the indices' own keys first
  std::array<std::uint32_t, 13> rounds_{};  // where each begins, and the end of the last one
  std::size_t capacity_ = 0;
  std::uint32_t last_round_ = 0;
  std::uint32_t winner_ = unknown;
};

}  // namespace terrace
