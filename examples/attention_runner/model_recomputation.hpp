#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ladder.hpp"
#include "llama.hpp"

namespace runner {

/// Computes lost blocks of a model's KV anew: feeds their tokens once more through the layers before theirs, over a
/// sequence that shares what lies before them. What the model computes for a token does not depend on its chunk, nor
/// do attention's bits depend on where blocks are: in a lossless ladder the block is what it was, bit for bit. In a
/// lossy one it is what the model makes of the KV as it is stored now.
class model_recomputation final : public recomputation {
 public:
  /// `history` holds the tokens so far. `model` must not be the one in whose forward pass blocks are found lost,
  /// because it computes one chunk at a time. Both are referred to.
  model_recomputation(llama& model, const std::vector<std::uint32_t>& history) noexcept
      : model_(model), history_(history) {}

  terrace::result<void> compute(ladder& kv, block_place place) override {
    const std::uint32_t tokens = kv.block_tokens(), first = place.index * tokens;
    const std::unique_ptr<ladder> past = kv.past_of(place.index);
    if (past == nullptr)
      return terrace::fail(terrace::errc::lost,
                           "what a lost block would be computed from has been forgotten");
    if (auto computed =
            model_.keys_and_values(std::span(history_).subspan(first, tokens), first, *past, place.layer);
        !computed) {
      kv.find_lost_too(*past);
      return computed;
    }
    // The same tokens' blocks of the lower layers have been computed on the way, whether they are lost or not.
    for (std::uint32_t layer = 0; layer <= place.layer; ++layer)
      if (auto stored = kv.restore({layer, place.index},
                                   [&](terrace::restoration& to) { return past->reserved().copy_to(to); });
          !stored)
        return stored;
    return {};
  }

 private:
  llama& model_;
  const std::vector<std::uint32_t>& history_;
};

}  // namespace runner
