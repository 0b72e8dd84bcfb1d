// What the runner's selection reads of the shipped model's KV, as prefetchers see it.
#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "attention_runner/attend_mode.hpp"
#include "attention_runner/ladder.hpp"
#include "attention_runner/llama.hpp"
#include "attention_runner/prompt.hpp"
#include "catch.hpp"
#include "terrace/prefetch/adaptive.hpp"
#include "terrace/prefetch/attention_pattern.hpp"
#include "terrace/prefetch/layer_ahead.hpp"
#include "terrace/prefetch/sliding_window.hpp"

using namespace runner;

namespace {

struct prediction_count {
  std::size_t predicted = 0, used = 0, rows = 0;
  double used_share() const { return static_cast<double>(used) / static_cast<double>(predicted); }
};

// Passes everything on to a prefetcher, and counts which of the blocks that it asked for the next row read.
template <class P>
class judged {
 public:
  static constexpr std::string_view name = "judged";
  judged(P p, prediction_count& to) : p_(std::move(p)), to_(&to) {}

  void observe(const terrace::row_use& use) {
    asked_ = std::exchange(next_, {});
    p_.observe(use);
    next_.resize(16);
    next_.resize(p_.suggest(next_));
  }
  std::size_t suggest(std::span<terrace::prefetch_wish>) { return 0; }  // everything is in memory
  void attended(const terrace::row_use& use, std::span<const float> shares) {
    p_.attended(use, shares);
    if (!use.selected) return;
    ++to_->rows;
    for (const terrace::prefetch_wish& wish : std::exchange(asked_, {})) {
      CHECK(wish.row == use.row);
      to_->predicted += wish.blocks;
      for (std::size_t b = wish.first; b < std::min<std::size_t>(shares.size(), wish.first + wish.blocks);
           ++b)
        to_->used += shares[b] > 0 ? 1 : 0;
    }
  }

 private:
  P p_;
  prediction_count* to_;
  std::vector<terrace::prefetch_wish> asked_,
      next_;  // about the row that is attended now, and about the one after
};

}  // namespace

// With few blocks chosen the choice changes more from step to step: of four by each head, half is gone at the next.
TEST_CASE("of what adaptive asks for, at least 85% is read by the model's own top-k attention") {
  constexpr std::uint32_t context = 4096, steps = 256, chunk = 512, blocks = 16;
  const auto weights = llama_weights::load(TERRACE_MODEL_DIR);
  REQUIRE(weights);
  const auto text = load_prompt_bytes(std::string(TERRACE_MODEL_DIR) + "/heldout_bible.txt",
                                      weights->config.vocab_size, context + steps);
  REQUIRE(text);
  const terrace::plane p{weights->config.num_key_value_heads, weights->config.head_dim};
  const terrace::kv_layout layout{
      .groups = {{.layers = weights->config.num_hidden_layers, .tokens = 32, .k = p, .v = p}}};

  const auto [attend, least] = GENERATE(table<std::string, double>({{"top-k=4", 0.85}, {"top-k=16", 0.85}}));
  CAPTURE(attend);
  terrace::context ctx{{.codec_threads = 1}};
  using resident = terrace::tiered_cache<terrace::tier<terrace::ram>, terrace::lru>;
  auto cache = resident::open(ctx, layout, {.capacity = 160 * 4 * layout.largest_block()});
  REQUIRE(cache);
  ladder kv(std::make_shared<resident>(std::move(*cache)), weights->config.num_hidden_layers);
  prediction_count found;
  kv.use(judged(
      terrace::adaptive(terrace::layer_ahead({.blocks = blocks}), terrace::sliding_window({.blocks = blocks}),
                        terrace::attention_pattern({.blocks = blocks})),
      found));
  kv.select_by(*parse_attend(attend));

  llama model(*weights, [&](std::size_t n, const std::function<void(std::size_t)>& body) {
    ctx.parallel_for(n, [&](std::size_t i) noexcept { body(i); });
  });
  const std::span<const std::uint32_t> tokens(*text);
  for (std::uint32_t at = 0; at < context; at += chunk)
    REQUIRE(model.forward(tokens.subspan(at, chunk), at, kv, logits_for::none));
  CHECK(found.rows == 0);
  kv.selector()->start();
  for (std::uint32_t at = context; at < context + steps; ++at)
    REQUIRE(model.forward(tokens.subspan(at, 1), at, kv, logits_for::none));
  CHECK(found.rows == steps * weights->config.num_hidden_layers);
  CHECK(found.predicted > found.rows);  // it does foretell something
  CAPTURE(found.predicted, found.used);
  CHECK(found.used_share() >= least);
  CHECK(kv.selector()->result().share_read() < 0.5);
}
