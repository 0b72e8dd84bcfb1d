#pragma once
#include <cstdint>

namespace terrace {

/// How a model rotates its keys: rotary position embedding (Su et al., "RoFormer", 2021). Each of the dim / 2 pairs
/// of elements is rotated by position * theta^(-2 i / dim), where i is the number of the pair.
struct rope {
  enum class pairing : std::uint8_t {
    halves,     ///< element i with i + dim / 2: HuggingFace's Llama
    neighbours  ///< element 2 i with 2 i + 1: GPT-J, and llama.cpp's Llama
  };
  std::uint32_t theta = 0;  ///< 0: keys are not rotated, or it is not known how; less than 2^23
  pairing pairs = pairing::halves;
  friend constexpr bool operator==(const rope&, const rope&) noexcept = default;
};

}  // namespace terrace
