// What each codec makes of a real model's KV: how many times smaller it gets, and the loss in bits per byte over
// held-out text. Every whole block goes through the codec once, when it is full; attention reads what came back. Each
// text is read in windows of --window tokens, all of them or the first --windows; the second half of each window is
// scored.
//
//     build/bench/kv_loss [--windows N] [--window TOKENS] [--json FILE]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "llama.hpp"
#include "model_config.hpp"
#include "scoring.hpp"
#include "terrace/attention/attend.hpp"
#include "terrace/codec/any_codec.hpp"
#include "terrace/codec/chain.hpp"
#include "terrace/codec/ecsq.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/codec/zstd.hpp"

namespace {

using namespace terrace;

[[noreturn]] void give_up(const char* why) {
  std::fprintf(stderr, "kv_loss: %s\n", why);
  std::exit(1);
}

constexpr std::uint32_t block_tokens = 64;

// The KV of one context in memory, a block after the other for each layer.
class coded_kv final : public runner::kv_backend {
 public:
  coded_kv(const runner::model_config& c, const any_codec& codec)
      : codec_(codec),
        shape_{.q_heads = c.num_attention_heads, .kv_heads = c.num_key_value_heads, .dim = c.head_dim},
        group_{.layers = 1,
               .tokens = block_tokens,
               .k = {c.num_key_value_heads, c.head_dim},
               .v = {c.num_key_value_heads, c.head_dim}},
        layers_(c.num_hidden_layers) {}

  result<void> reserve(std::uint32_t tokens) override {
    reserved_ = tokens;
    const std::size_t blocks = (tokens_ + tokens + block_tokens - 1) / block_tokens;
    for (auto& layer : layers_) layer.resize(blocks * group_.block_bytes());
    return {};
  }
  std::span<fp16> k(std::uint32_t layer, std::uint32_t token, std::uint32_t head) override {
    return row(layer, token, head, group_.k, 0);
  }
  std::span<fp16> v(std::uint32_t layer, std::uint32_t token, std::uint32_t head) override {
    return row(layer, token, head, group_.v, group_.v_offset());
  }
  result<void> attend(std::uint32_t layer, std::span<const float> q, std::span<float> out) override {
    if (auto good = tile_.load(shape_, q, tokens_); !good) return good;
    if (auto good = state_.reset(tile_.rows(), group_.v_dim()); !good) return good;
    const std::uint32_t all = tokens_ + reserved_;
    for (std::uint32_t first = 0; first < all; first += block_tokens) {
      const block_view block{.group = &group_,
                             .data = layers_[layer].data() + first / block_tokens * group_.block_bytes(),
                             .first_position = first,
                             .tokens = std::min(block_tokens, all - first)};
      for (std::uint32_t head = 0; head < shape_.kv_heads; ++head)
        terrace::attend(tile_, block, state_, head, 0, tile_.size());
    }
    for (std::size_t r = 0; r < tile_.rows(); ++r)
      for (std::size_t d = 0; d < group_.v_dim(); ++d)
        out[r * group_.v_dim() + d] = state_.o(r)[d] / state_.l(r);
    return {};
  }
  result<void> commit(std::uint32_t tokens) override {
    const std::uint32_t before = tokens_ / block_tokens;
    tokens_ += tokens;
    for (std::uint32_t b = before; b < tokens_ / block_tokens; ++b)
      for (auto& layer : layers_) {
        const mutable_bytes block =
            mutable_bytes(layer).subspan(b * group_.block_bytes(), group_.block_bytes());
        room_.resize(codec_.max_encoded_size(group_));
        const auto written = codec_.encode(group_, block, room_);
        if (!written) return propagate(written.error());
        if (auto back = codec_.decode(group_, const_bytes(room_).first(*written), block); !back) return back;
        encoded_ += *written;
        raw_ += block.size();
      }
    return {};
  }

  std::size_t encoded_bytes() const noexcept { return encoded_; }
  std::size_t raw_bytes() const noexcept { return raw_; }
  const layer_group& group() const noexcept { return group_; }

 private:
  std::span<fp16> row(std::uint32_t layer, std::uint32_t token, std::uint32_t head, const plane& p,
                      std::size_t at) {
    const std::uint32_t position = tokens_ + token;
    std::byte* const first = layers_[layer].data() + position / block_tokens * group_.block_bytes() + at +
                             head * group_.head_stride(p) + position % block_tokens * group_.token_stride(p);
    return {reinterpret_cast<fp16*>(first), p.dim};
  }

  const any_codec& codec_;
  attention_shape shape_;
  layer_group group_;
  std::vector<std::vector<std::byte>> layers_;
  std::vector<std::byte> room_;
  query_tile tile_;
  partial_state state_;
  std::uint32_t tokens_ = 0, reserved_ = 0;
  std::size_t encoded_ = 0, raw_ = 0;
};

struct outcome {
  double bits = 0;
  std::size_t scored = 0, raw = 0, encoded = 0;
};
outcome score(runner::llama& model, const any_codec& codec, std::span<const std::uint32_t> text,
              std::size_t window, std::size_t windows) {
  outcome found;
  const std::size_t vocab = model.config().vocab_size;
  for (std::size_t at = 0; windows != 0 && at + window < text.size(); at += window, --windows) {
    coded_kv kv(model.config(), codec);
    for (std::size_t i = 0; i < window; i += block_tokens) {
      const auto logits = model.forward(text.subspan(at + i, block_tokens), static_cast<std::uint32_t>(i), kv,
                                        runner::logits_for::all);
      if (!logits) give_up(logits.error().text);
      for (std::size_t t = 0; i >= window / 2 && t < block_tokens; ++t, ++found.scored)
        found.bits += runner::surprisal_bits(logits->subspan(t * vocab, vocab), text[at + i + t + 1]);
    }
    found.raw += kv.raw_bytes();
    found.encoded += kv.encoded_bytes();
  }
  return found;
}

std::vector<std::uint32_t> read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) give_up("a held-out text cannot be read");
  std::vector<std::uint32_t> text;
  for (std::istreambuf_iterator<char> c(in), end; c != end; ++c)
    text.push_back(static_cast<unsigned char>(*c));
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t window = 2048, windows = ~std::size_t{0};
  std::FILE* json = nullptr;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) give_up("each of --window, --windows and --json needs a value");
    if (flag == "--window")
      window = std::strtoul(argv[i + 1], nullptr, 10) / block_tokens * block_tokens;
    else if (flag == "--windows")
      windows = std::strtoul(argv[i + 1], nullptr, 10);
    else if (flag == "--json") {
      json = std::fopen(argv[i + 1], "w");
      if (json == nullptr) give_up("the JSON file cannot be written");
    } else
      give_up("it knows --window, --windows and --json");
  }
  if (window == 0) give_up("a window has at least 64 tokens");
  const auto weights = runner::llama_weights::load(TERRACE_MODEL_DIR);
  if (!weights) give_up("the model cannot be loaded");
  runner::llama model(*weights);
  const std::string folder = TERRACE_MODEL_DIR "/";
  const std::vector<std::vector<std::uint32_t>> texts{read(folder + "heldout_bible.txt"),
                                                      read(folder + "heldout_jargon.txt")};

  constexpr rope turned{.theta = 100000};
  if (weights->config.rope_theta != turned.theta)
    give_up("the model turns its keys otherwise than this assumes");
  const std::vector<std::pair<const char*, any_codec>> codecs{
      {"identity", any_codec::of<identity>()},
      {"zstd", any_codec::of<zstd<>>()},
      {"fp8", any_codec::of<fp8>()},
      {"q8_0", any_codec::of<q8_0>()},
      {"q4_0", any_codec::of<q4_0>()},
      {"q4_0, zstd", any_codec::of<chain<q4_0, zstd<>>>()},
      {"ecsq 0.4, 0.4", any_codec::of<ecsq<turned, 4, 4>>()},
      {"ecsq 0.8, 0.7", any_codec::of<ecsq<turned, 8, 7>>()},
      {"ecsq 1.2, 1.0", any_codec::of<ecsq<turned, 12, 10>>()},
      {"ecsq 1.5, 1.2", any_codec::of<ecsq<turned, 15, 12>>()},
      {"ecsq 1.2, 1.0 without RoPE", any_codec::of<ecsq<rope{}, 12, 10>>()},
  };
  if (json != nullptr) std::fputs("[", json);
  std::printf("%-28s %8s %10s %9s\n", "codec", "ratio", "bits/byte", "loss");
  double baseline = 0;
  for (const auto& [name, codec] : codecs) {
    outcome sum;
    for (const auto& text : texts) {
      const outcome one = score(model, codec, text, window, windows);
      sum.bits += one.bits;
      sum.scored += one.scored;
      sum.raw += one.raw;
      sum.encoded += one.encoded;
    }
    if (sum.scored == 0) give_up("the texts are shorter than a window");
    const double bits = sum.bits / static_cast<double>(sum.scored);
    if (baseline == 0) baseline = bits;
    const double ratio = static_cast<double>(sum.raw) / static_cast<double>(sum.encoded);
    const double loss = bits / baseline - 1;
    std::printf("%-28s %8.3f %10.6f %+8.3f%%\n", name, ratio, bits, 100 * loss);
    std::fflush(stdout);
    if (json != nullptr)
      std::fprintf(json,
                   "%s\n{\"codec\": \"%s\", \"ratio\": %.6g, \"bits_per_byte\": %.9g, \"loss\": %.6g, "
                   "\"scored\": %zu}",
                   name == codecs.front().first ? "" : ",", name, ratio, bits, loss, sum.scored);
  }
  if (json != nullptr) {
    std::fputs("\n]\n", json);
    std::fclose(json);
  }
}
