#include "attention_runner/llama.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "attention_runner/prompt.hpp"
#include "attention_runner/scoring.hpp"
#include "catch.hpp"
#include "checkpoint_files.hpp"
#include "dense_backend.hpp"

using namespace runner;

namespace {

std::filesystem::path shipped_model() {
#ifdef TERRACE_MODEL_DIR
  return TERRACE_MODEL_DIR;
#else
  return std::filesystem::path(__FILE__).parent_path() / "../../examples/model";
#endif
}
const llama_weights& shipped_weights() {
  static const auto weights = llama_weights::load(shipped_model());
  REQUIRE(weights);
  return *weights;
}
std::string refusal(const toy_checkpoint& toy) {
  temporary_directory directory;
  toy.write(directory);
  auto weights = llama_weights::load(directory.path());
  return weights ? std::string() : weights.error().sentence;
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Logits of all tokens, fed in chunks of the given sizes in turn.
std::vector<float> in_chunks(const llama_weights& weights, std::span<const std::uint32_t> tokens,
                             const std::vector<std::size_t>& sizes,
                             const parallel_for& parallel = serial_for) {
  llama model(weights, parallel);
  dense_backend kv(weights.config);
  std::vector<float> all;
  for (std::size_t i = 0; !tokens.empty(); ++i) {
    const auto chunk = tokens.first(std::min(tokens.size(), sizes[i % sizes.size()]));
    auto logits = model.forward(chunk, kv.committed(), kv, logits_for::all);
    REQUIRE(logits);
    all.insert(all.end(), logits->begin(), logits->end());
    tokens = tokens.subspan(chunk.size());
  }
  return all;
}
void two_threads(std::size_t n, const std::function<void(std::size_t)>& body) {
  std::thread other([&] {
    for (std::size_t i = n / 2; i < n; ++i) body(i);
  });
  for (std::size_t i = n / 2; i-- > 0;) body(i);
  other.join();
}
std::vector<std::uint32_t> some_tokens(std::size_t count, std::uint32_t vocab_size) {
  std::vector<std::uint32_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i)
    tokens[i] = static_cast<std::uint32_t>(i * i * 31 + i * 7) % vocab_size;
  return tokens;
}

/// A Llama written down once more, straight from its definition: double, one token after the other, nothing
/// packed, keys and values rounded to fp16 as a cache holds them.
class plain_llama {
 public:
  explicit plain_llama(const toy_checkpoint& toy) : toy_(toy) {}

  std::vector<double> next(std::uint32_t token) {
    const auto& c = toy_.config;
    const std::size_t heads = c["num_attention_heads"], kv_heads = c["num_key_value_heads"],
                      dim = c["head_dim"];
    const std::size_t hidden = c["hidden_size"], layers = c["num_hidden_layers"];
    const double position = static_cast<double>(position_++);
    const auto& embedding = toy_.tensors.at("model.embed_tokens.weight");
    std::vector<double> x(hidden);
    for (std::size_t i = 0; i < hidden; ++i) x[i] = double{embedding[token * hidden + i]};
    for (std::size_t l = 0; l < layers; ++l) {
      const std::string p = "model.layers." + std::to_string(l) + ".";
      const auto normed = norm(x, p + "input_layernorm.weight");
      auto q = times(p + "self_attn.q_proj.weight", normed), k = times(p + "self_attn.k_proj.weight", normed);
      auto v = times(p + "self_attn.v_proj.weight", normed);
      for (std::size_t h = 0; h < heads; ++h) turn(&q[h * dim], dim, position);
      for (std::size_t h = 0; h < kv_heads; ++h) turn(&k[h * dim], dim, position);
      for (auto* plane : {&k, &v})
        for (double& value : *plane) value = double{to_float(terrace::to_fp16(static_cast<float>(value)))};
      keys_[l].push_back(k);
      values_[l].push_back(v);
      std::vector<double> attended(heads * dim);
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t kv_head = h / (heads / kv_heads);
        double total = 0;
        for (std::size_t t = 0; t < keys_[l].size(); ++t) {
          double score = 0;
          for (std::size_t i = 0; i < dim; ++i) score += q[h * dim + i] * keys_[l][t][kv_head * dim + i];
          const double weight = std::exp(score / std::sqrt(static_cast<double>(dim)));
          total += weight;
          for (std::size_t i = 0; i < dim; ++i)
            attended[h * dim + i] += weight * values_[l][t][kv_head * dim + i];
        }
        for (std::size_t i = 0; i < dim; ++i) attended[h * dim + i] /= total;
      }
      add(x, times(p + "self_attn.o_proj.weight", attended));
      const auto second = norm(x, p + "post_attention_layernorm.weight");
      auto gate = times(p + "mlp.gate_proj.weight", second), up = times(p + "mlp.up_proj.weight", second);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      add(x, times(p + "mlp.down_proj.weight", gate));
    }
    return times("lm_head.weight", norm(x, "model.norm.weight"));
  }

 private:
  static void add(std::vector<double>& x, const std::vector<double>& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  std::vector<double> times(const std::string& name, const std::vector<double>& x) const {
    const auto& w = toy_.tensors.at(name);
    std::vector<double> y(w.size() / x.size());
    for (std::size_t i = 0; i < w.size(); ++i) y[i / x.size()] += double{w[i]} * x[i % x.size()];
    return y;
  }
  std::vector<double> norm(std::vector<double> x, const std::string& name) const {
    double mean = 0;
    for (const double value : x) mean += value * value / static_cast<double>(x.size());
    const double scale = 1 / std::sqrt(mean + toy_.config["rms_norm_eps"].get<double>());
    for (std::size_t i = 0; i < x.size(); ++i) x[i] *= scale * double{toy_.tensors.at(name)[i]};
    return x;
  }
  void turn(double* x, std::size_t dim, double position) const {
    for (std::size_t i = 0; i < dim / 2; ++i) {
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(dim);
      const double angle = position * std::pow(toy_.config["rope_theta"].get<double>(), exponent);
      const double a = x[i], b = x[i + dim / 2];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + dim / 2] = b * std::cos(angle) + a * std::sin(angle);
    }
  }

  const toy_checkpoint& toy_;
  std::size_t position_ = 0;
  std::map<std::size_t, std::vector<std::vector<double>>> keys_, values_;
};

}  // namespace

TEST_CASE("the shipped model foretells held-out text as its README says") {
  const auto& weights = shipped_weights();
  auto text = load_prompt_bytes(shipped_model() / "heldout_bible.txt", weights.config.vocab_size, 1 << 20);
  REQUIRE(text);
  for (const std::size_t at : {std::size_t{0}, std::size_t{68'948}, std::size_t{172'370}}) {
    const auto window = std::span(*text).subspan(at, 512);
    const auto logits = in_chunks(weights, window, {512});
    const double bits = bits_per_byte(std::span(logits).subspan(255 * 256, 256 * 256), window.last(256));
    CAPTURE(at, bits);
    CHECK(bits > 1.3);
    CHECK(bits < 1.9);
  }
}

TEST_CASE("logits are those of the definition, for sizes that nothing divides") {
  const auto toy = toy_llama();
  temporary_directory directory;
  toy.write(directory);
  auto weights = llama_weights::load(directory.path());
  REQUIRE(weights);
  const auto tokens = some_tokens(40, 100);
  const auto logits = in_chunks(*weights, tokens, {17});
  plain_llama reference(toy);
  double worst = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto expected = reference.next(tokens[i]);
    for (std::size_t c = 0; c < expected.size(); ++c)
      worst = std::max(worst, std::abs(expected[c] - double{logits[i * expected.size() + c]}));
  }
  CHECK(worst < 0.01);  // a key may round to the other fp16 neighbour; logits here are of the order of 5
}

TEST_CASE("chunks and threads do not change a bit") {
  const auto& weights = shipped_weights();
  const auto tokens = some_tokens(150, 256);
  const auto whole = in_chunks(weights, tokens, {150});
  for (const auto& sizes : std::vector<std::vector<std::size_t>>{{1}, {7, 64, 2}, {149, 1}}) {
    const auto logits = in_chunks(weights, tokens, sizes);
    CHECK(std::memcmp(logits.data(), whole.data(), whole.size() * sizeof(float)) == 0);
  }
  const auto threaded = in_chunks(weights, tokens, {150}, two_threads);
  CHECK(std::memcmp(threaded.data(), whole.data(), whole.size() * sizeof(float)) == 0);
}

TEST_CASE("logits are given for the tokens that were asked for") {
  const auto& weights = shipped_weights();
  const auto tokens = some_tokens(9, 256);
  const auto all = in_chunks(weights, tokens, {9});
  llama model(weights);
  dense_backend one(weights.config), other(weights.config);
  auto last = model.forward(tokens, 0, one, logits_for::last);
  REQUIRE(last);
  REQUIRE(last->size() == 256);
  CHECK(std::equal(last->begin(), last->end(), all.end() - 256));
  auto none = model.forward(tokens, 0, other, logits_for::none);
  REQUIRE(none);
  CHECK(none->empty());
}

TEST_CASE("a chunk that fails is not committed") {
  const auto& weights = shipped_weights();
  llama model(weights);
  dense_backend kv(weights.config);
  const std::vector<std::uint32_t> good{1, 2, 3}, bad{1, 256};
  REQUIRE(model.forward(good, 0, kv, logits_for::none));
  auto empty = model.forward({}, 3, kv, logits_for::last);
  REQUIRE_FALSE(empty);
  CHECK(empty.error().code == terrace::errc::invalid_argument);
  auto outside = model.forward(bad, 3, kv, logits_for::last);
  REQUIRE_FALSE(outside);
  CHECK(outside.error().code == terrace::errc::invalid_argument);
  kv.failing_layer = 2;
  auto lost = model.forward(good, 3, kv, logits_for::last);
  REQUIRE_FALSE(lost);
  CHECK(lost.error().code == terrace::errc::lost);
  CHECK(kv.committed() == 3);

  SECTION("and may be computed once more, to the same bits") {
    kv.failing_layer = 0xffffffffu;
    auto again = model.forward(good, 3, kv, logits_for::last);
    REQUIRE(again);
    const auto expected = in_chunks(weights, std::vector<std::uint32_t>{1, 2, 3, 1, 2, 3}, {6});
    CHECK(std::equal(again->begin(), again->end(), expected.end() - 256));
  }
}

TEST_CASE("NaN in one chunk does not reach the next") {
  temporary_directory directory;
  toy_llama().write(directory);
  auto weights = llama_weights::load(directory.path());
  REQUIRE(weights);
  const auto tokens = some_tokens(5, 100);
  llama model(*weights);
  dense_backend bad(weights->config), good(weights->config);
  bad.poisoned = true;
  REQUIRE(model.forward(tokens, 0, bad, logits_for::all));
  auto logits = model.forward(tokens, 0, good, logits_for::all);
  REQUIRE(logits);
  const auto expected = in_chunks(*weights, tokens, {5});
  CHECK(std::equal(logits->begin(), logits->end(), expected.begin(), expected.end()));
}

TEST_CASE("a config.json that contradicts the tensors is refused") {
  REQUIRE(refusal(toy_llama()).empty());
  struct lie {
    const char* key;
    nlohmann::json value;
    std::string says;
  };
  const lie lies[] = {
      {"hidden_size", 24, "[100, 20], and config.json asks for [100, 24]"},
      {"vocab_size", 1 << 24, "config.json asks for [16777216, 20]"},
      {"num_attention_heads", 4, "q_proj"},
      {"num_key_value_heads", 1, "k_proj"},
      {"head_dim", 20, "q_proj"},
      {"intermediate_size", 64, "gate_proj"},
      {"num_hidden_layers", 3, "asks for \"model.layers.2"},
      {"num_hidden_layers", 1 << 24, "asks for \"model.layers.2"},
      {"num_hidden_layers", 1, "does not account for"},
  };
  for (const lie& l : lies) {
    CAPTURE(l.key, l.value.dump());
    auto toy = toy_llama();
    toy.config[l.key] = l.value;
    CHECK(contains(refusal(toy), l.says));
  }
}

TEST_CASE("a checkpoint with a tensor too few, or one too many, is refused") {
  toy_checkpoint few;
  few.config = toy_llama().config;
  few.add("model.embed_tokens.weight", {100, 20});
  CHECK(contains(refusal(few), "model.norm.weight"));

  auto many = toy_llama();
  many.add("model.layers.0.self_attn.q_proj.bias", {60});
  CHECK(contains(refusal(many), "q_proj.bias\", which config.json does not account for"));

  auto harmless = toy_llama();
  harmless.add("model.layers.0.self_attn.rotary_emb.inv_freq", {5});
  CHECK(refusal(harmless).empty());

  auto broken = toy_llama();
  broken.config["num_hidden_layers"] = 3;
  for (const auto& [name, values] : toy_llama().tensors) {
    const std::string first = "model.layers.0.";
    if (!name.starts_with(first)) continue;
    const std::uint64_t columns = values.size() == 20                  ? 0
                                  : name.ends_with("down_proj.weight") ? 70
                                  : name.ends_with("o_proj.weight")    ? 60
                                                                       : 20;
    const bool infinite = name.ends_with("down_proj.weight");
    const auto shape = columns == 0 ? std::vector<std::uint64_t>{20}
                                    : std::vector<std::uint64_t>{values.size() / columns, columns};
    broken.add("model.layers.2." + name.substr(first.size()), shape, infinite ? INFINITY : 1.0f);
  }
  CHECK(contains(refusal(broken), "\"model.layers.2.mlp.down_proj.weight\" in"));
  CHECK(contains(refusal(broken), "not finite"));
}

TEST_CASE("positions far out are as exact as near ones") {
  rope_table rope(64, 100000.0);
  for (const std::uint32_t first : {0u, 65'000u, 4'000'000u}) {
    rope.prepare(first, 300, two_threads);
    std::vector<float> x(64, 1.0f), y(64);
    rope.rotate(299, x.data(), y.data());
    for (std::size_t i = 0; i < 32; ++i) {
      const double angle = (first + 299.0) * std::pow(100000.0, -static_cast<double>(i) / 32);
      REQUIRE(std::abs(double{y[i]} - (std::cos(angle) - std::sin(angle))) < 1e-6);
      REQUIRE(std::abs(double{y[i + 32]} - (std::cos(angle) + std::sin(angle))) < 1e-6);
    }
  }
}
