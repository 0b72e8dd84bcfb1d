#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "terrace/prefetch/prefetcher.hpp"

namespace terrace {

/// Runs several prefetchers in shadow and follows the one whose predictions are used most. At each row, each says
/// what it would ask for, and the next row that the same sequence attends shows how much of that was used. Only the
/// predictions of the followed one are loaded: nothing if it asks for nothing, and nothing while less than `least` of
/// the best one's predictions are used. One that has asked for nothing in fifty rows is not followed. Among equals,
/// the first listed is followed.
///
///     cache.use(adaptive(layer_ahead{}, attention_pattern{}));
///
/// A predicted block counts as used if attention read it: any block that it saw, or, where it reads a selection,
/// those that drew a share of the mass (prefetcher.hpp). Usefulness is used blocks over predicted ones, over the last
/// hundred or so rows. Rows that are read whole and rows of which a selection is read are judged separately:
/// usefulness starts at 1 for the former, as most prefetchers are right about them, and at 0 for the latter. Memory
/// is allocated at the start: for each prefetcher about 550 bytes for each of 64 sequences; of two sequences that
/// share a place, one is not measured. `observe` costs what the prefetchers cost, and O(wishes).
template <prefetcher... Ps>
class adaptive {
  static_assert(sizeof...(Ps) != 0, "adaptive needs at least one prefetcher to follow");

 public:
  static constexpr std::string_view name = "adaptive";
  /// The lowest usefulness that is followed.
  static constexpr float least = 0.5f;

  adaptive() : adaptive(Ps{}...) {}
  explicit adaptive(Ps... each) : each_(std::move(each)...) {
    for (shadow& s : shadows_) s.pending.resize(places);
  }

  void observe(const row_use& use) {
    selected_ = use.selected;
    for (shadow& s : shadows_) judge(s, use);
    std::size_t i = 0;
    std::apply([&](auto&... p) { (predict(p, shadows_[i++], use), ...); }, each_);
    choose();
  }
  void attended(const row_use& use, std::span<const float> shares) {
    std::apply(
        [&](auto&... p) {
          const auto tell = [&](auto& one) {
            if constexpr (attention_watching_prefetcher<std::remove_reference_t<decltype(one)>>)
              one.attended(use, shares);
          };
          (tell(p), ...);
        },
        each_);
    for (shadow& s : shadows_)
      if (s.asked.about(use) && s.asked.step == use.step)
        score(s.tallies[1], std::exchange(s.asked, {}), use.row, [&](const prefetch_wish& wish) {
          std::uint32_t used = 0;
          for (std::size_t b = wish.first; b < std::min<std::size_t>(shares.size(), wish.first + wish.blocks);
               ++b)
            used += shares[b] > 0 ? 1 : 0;
          return used;
        });
  }
  std::size_t suggest(std::span<prefetch_wish> out) noexcept {
    if (chosen_ == sizeof...(Ps)) return 0;
    const prediction& p = shadows_[chosen_].latest;
    const std::size_t count = std::min<std::size_t>(p.count, out.size());
    std::copy_n(p.wishes.begin(), count, out.begin());
    return count;
  }

  /// The prefetcher that it follows now; "none" if none is useful.
  std::string_view following() const noexcept {
    constexpr std::array<std::string_view, sizeof...(Ps) + 1> names{Ps::name..., "none"};
    return names[chosen_];
  }
  /// The share of the i-th prefetcher's recent predictions that were used, in rows like the last one.
  float usefulness(std::size_t i) const noexcept { return shadows_[i].usefulness(selected_); }

 private:
  static constexpr std::size_t places = 64, most_wishes = 16;
  static constexpr float memory = 0.98f;
  static constexpr std::uint32_t patience = 50;

  // What was predicted at one row of a sequence.
  struct prediction {
    std::uint32_t sequence = 0;
    std::uint64_t step = 0;  // of `asked`: of the row that it is about
    std::uint32_t count = 0;
    bool open = false;
    std::array<prefetch_wish, most_wishes> wishes{};
    bool about(const row_use& use) const noexcept { return open && sequence == use.sequence; }
  };
  struct shadow {
    std::vector<prediction> pending;  // by sequence
    prediction asked;                 // about a row of which it is not yet known what attention reads
    prediction latest;
    struct tally {
      float predicted = 0, used = 0;
    };
    std::array<tally, 2> tallies{};        // of rows that are read whole, and of those that are read in part
    std::uint32_t silent_rows = patience;  // since it last asked for anything
    float usefulness(bool selected) const noexcept {
      const tally& t = tallies[selected ? 1 : 0];
      return (t.used + (selected ? 0.0f : 1.0f)) / (t.predicted + 1);
    }
    // It asks for something now, or did so recently: then its silence means that nothing is worth asking for.
    bool speaks() const noexcept { return silent_rows < patience; }
  };

  // Judges what was predicted for this row: now, or, if a selection is read, once it has been attended.
  static void judge(shadow& s, const row_use& use) {
    prediction& p = s.pending[use.sequence % places];
    if (!p.about(use)) return;
    p.open = false;
    if (use.selected) {
      s.asked = p;
      s.asked.open = true;
      s.asked.step = use.step;
      return;
    }
    score(s.tallies[0], p, use.row, [&](const prefetch_wish& wish) {
      return wish.first >= use.blocks ? 0 : std::min(wish.blocks, use.blocks - wish.first);
    });
  }
  template <class Used>
  static void score(typename shadow::tally& t, const prediction& p, std::uint32_t row, Used used_of) {
    std::uint32_t predicted = 0, used = 0;
    for (const prefetch_wish& wish : std::span(p.wishes).first(p.count)) {
      predicted += wish.blocks;
      if (wish.row == row) used += used_of(wish);
    }
    t.predicted = t.predicted * memory + static_cast<float>(predicted);
    t.used = t.used * memory + static_cast<float>(used);
  }
  template <class P>
  static void predict(P& p, shadow& s, const row_use& use) {
    p.observe(use);
    s.latest.sequence = use.sequence;
    s.latest.count = static_cast<std::uint32_t>(p.suggest(std::span(s.latest.wishes)));
    s.latest.open = s.latest.count != 0;
    s.silent_rows = s.latest.open ? 0 : std::min(s.silent_rows + 1, patience);
    s.pending[use.sequence % places] = s.latest;
  }
  void choose() noexcept {
    chosen_ = sizeof...(Ps);
    for (std::size_t i = 0; i < sizeof...(Ps); ++i) {
      const float useful = usefulness(i);
      if (!shadows_[i].speaks() || useful < least) continue;
      if (chosen_ == sizeof...(Ps) || useful > usefulness(chosen_)) chosen_ = i;
    }
  }

  std::tuple<Ps...> each_;
  std::array<shadow, sizeof...(Ps)> shadows_;
  std::size_t chosen_ = sizeof...(Ps);
  bool selected_ = false;  // attention reads a selection of the row observed last
};

}  // namespace terrace
