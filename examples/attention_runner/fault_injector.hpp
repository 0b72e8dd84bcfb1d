#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "terrace/core/mix64.hpp"
#include "terrace/terrace.hpp"

namespace runner {

/// Makes a share of the stored copies unreadable for good (--inject): each copy of a block that is not in tier 0 is
/// looked at once, and a hash of its place and a seed decides whether it is lost. A block that was computed anew and
/// stored again is spared. Forks of a sequence share one injector, as they share blocks.
class fault_injector {
 public:
  explicit fault_injector(double rate, std::uint64_t seed = 1) noexcept
      : threshold_(std::ldexp(rate, 53)), seed_(seed) {}

  /// Looks at the blocks of a sequence; O(blocks). What is being read or moved now is looked at the next time.
  void look_at(terrace::kv_store& cache, const terrace::sequence& tokens) {
    if (threshold_ == 0) return;
    const terrace::page_table& pages = tokens.pages();
    const std::size_t tiers = cache.control().tiers();
    for (std::uint32_t row = 0; row < pages.rows.size(); ++row)
      for (std::uint32_t i = 0; i < pages.sealed(row); ++i) {
        const terrace::block_id id = pages.rows[row][i];
        if (!id.valid() || settled(id).spared) continue;
        for (std::size_t tier = 1; tier < tiers; ++tier) {
          const bool alone = !cache.control().copy(id.index, 0).present();
          const terrace::block_copy& copy = cache.control().copy(id.index, tier);
          if (!alone || copy.now() != terrace::block_copy::state::resident || copy.pins != 0) continue;
          std::uint32_t& seen = settled(id).seen;
          if ((seen >> tier & 1) != 0) continue;
          seen |= 1u << tier;
          if (unlucky(row, i, tier)) static_cast<void>(cache.report_damaged(id, tier));
        }
      }
  }
  /// This block has been computed anew.
  void spare(terrace::block_id id) { settled(id).spared = true; }

 private:
  struct block_state {
    std::uint32_t generation = 0;
    std::uint32_t seen = 0;  // tiers, a bit each
    bool spared = false;
  };
  block_state& settled(terrace::block_id id) {
    if (id.index >= blocks_.size()) blocks_.resize(id.index + 1);
    block_state& s = blocks_[id.index];
    if (s.generation != id.generation) s = {.generation = id.generation};
    return s;
  }
  // The highest 53 bits of a hash of the place, read as a number in [0, 1).
  bool unlucky(std::uint64_t row, std::uint64_t block, std::uint64_t tier) const noexcept {
    const std::uint64_t place = (row << 40 | block << 8 | tier) * 0x9e3779b97f4a7c15u;
    return static_cast<double>(terrace::mix64(seed_ + place) >> 11) < threshold_;
  }

  double threshold_;
  std::uint64_t seed_;
  std::vector<block_state> blocks_;
};

}  // namespace runner
