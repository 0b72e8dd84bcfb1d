#pragma once
#include <compare>
#include <cstdint>

namespace terrace {

/// Names one block. The index is dense, so that per-block data can live in plain arrays; the generation distinguishes
/// the block from earlier ones with the same, recycled index.
struct block_id {
  std::uint32_t index = 0xffffffffu;
  std::uint32_t generation = 0;

  static constexpr std::uint32_t no_index = 0xffffffffu;
  constexpr bool valid() const noexcept { return index != no_index; }
  friend constexpr bool operator==(block_id, block_id) noexcept = default;
  friend constexpr auto operator<=>(block_id, block_id) noexcept = default;
};

/// The identity of a block's contents, no matter who computed them or when: a 128-bit hash of the tokens up to its
/// end, its row of layers, and the model. Two blocks with the same key have the same contents. All zeros means no
/// key.
struct block_key {
  std::uint64_t low = 0, high = 0;

  constexpr bool valid() const noexcept { return (low | high) != 0; }
  friend constexpr bool operator==(block_key, block_key) noexcept = default;
  friend constexpr auto operator<=>(block_key, block_key) noexcept = default;
};

/// How far a copy is from what the engine wrote: 0 is exact, larger is worse. A block that has passed through
/// several lossy codecs is as good as the worst of them.
struct fidelity {
  std::uint8_t loss = 0;

  constexpr bool exact() const noexcept { return loss == 0; }
  /// The fidelity of this copy after it has passed through a codec of the given loss.
  constexpr fidelity through(std::uint8_t codec_loss) const noexcept {
    return {loss > codec_loss ? loss : codec_loss};
  }
  friend constexpr bool operator==(fidelity, fidelity) noexcept = default;
  friend constexpr bool operator<(fidelity a, fidelity b) noexcept {
    return a.loss > b.loss;
  }  // worse < better
  friend constexpr bool operator>(fidelity a, fidelity b) noexcept { return b < a; }
  friend constexpr bool operator<=(fidelity a, fidelity b) noexcept { return !(b < a); }
  friend constexpr bool operator>=(fidelity a, fidelity b) noexcept { return !(a < b); }
};

}  // namespace terrace
