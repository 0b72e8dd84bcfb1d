#pragma once
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "input_file.hpp"
#include "runner_error.hpp"

namespace runner {

/// The shape of a Llama model, with the names and defaults of HuggingFace's `LlamaConfig`.
struct model_config {
  std::uint32_t vocab_size = 0;
  std::uint32_t hidden_size = 0;
  std::uint32_t intermediate_size = 0;
  std::uint32_t num_hidden_layers = 0;
  std::uint32_t num_attention_heads = 0;
  std::uint32_t num_key_value_heads = 0;  ///< divides num_attention_heads
  std::uint32_t head_dim = 0;             ///< even
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  bool tie_word_embeddings = false;

  /// Floats of one token's queries, and of its keys or values.
  std::uint32_t q_size() const noexcept { return num_attention_heads * head_dim; }
  std::uint32_t kv_size() const noexcept { return num_key_value_heads * head_dim; }

  /// Reads config.json out of a checkpoint's directory.
  static outcome<model_config> read(const std::filesystem::path& directory);
  /// Reads the text of a config.json; `file` begins the sentence of an error. Refuses what this runner would
  /// compute wrongly: other architectures and activations, biases, scaled RoPE, and sizes that contradict
  /// each other.
  static outcome<model_config> parse(std::string_view text, const std::string& file);
};

namespace detail {

/// Takes values out of a config.json and remembers the first that cannot be used.
class config_reader {
 public:
  config_reader(const nlohmann::json& object, const std::string& file) : object_(object), file_(file) {}

  /// A size from 1 to 2^24: large enough that no model is refused, small enough that a product of two fits 64 bits.
  std::uint32_t size(const char* key, std::uint32_t fallback = 0) {
    constexpr std::uint64_t largest = std::uint64_t{1} << 24;
    const auto* value = find(key);
    if (value == nullptr && fallback != 0) return fallback;
    if (value == nullptr) return complain(std::string("gives no ") + key), 0;
    const bool fits = value->is_number_unsigned() && *value >= 1u && *value <= largest;
    if (!fits) complain(std::string("gives a ") + key + " that is not a size from 1 to 16777216");
    return fits ? value->get<std::uint32_t>() : 0;
  }
  double positive(const char* key, double fallback) {
    const auto* value = find(key);
    if (value == nullptr) return fallback;
    const double number = value->is_number() ? value->get<double>() : 0.0;
    if (!(number > 0 && std::isfinite(number)))
      complain(std::string("gives a ") + key + " that is not a positive number");
    return number;
  }
  bool flag(const char* key, bool fallback) {
    const auto* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) complain(std::string("gives a ") + key + " that is neither true nor false");
    return value->is_boolean() && value->get<bool>();
  }
  void only(const char* key, std::string_view supported) {
    const auto* value = find(key);
    // A list may be nested deeper than the stack can follow: it is not shown.
    if (value != nullptr && *value != supported)
      complain(std::string("has the ") + key + " " +
               (value->is_structured() ? "of a list or an object"
                                       : in_quotes(value->dump(-1, ' ', true, replace))) +
               ", and only " + std::string(supported) + " is supported");
  }
  /// The value at `key`, or null where there is none (JSON's null counts as none).
  const nlohmann::json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  void require(bool condition, std::string otherwise) {
    if (!condition) complain(std::move(otherwise));
  }
  const std::string& problem() const noexcept { return problem_; }

 private:
  static constexpr auto replace = nlohmann::json::error_handler_t::replace;
  void complain(std::string what) {
    if (problem_.empty()) problem_ = file_ + " " + std::move(what);
  }

  const nlohmann::json& object_;
  const std::string& file_;
  std::string problem_;
};

}  // namespace detail

inline outcome<model_config> model_config::read(const std::filesystem::path& directory) {
  constexpr std::uint64_t longest = 1 << 20;
  auto input = input_file::open(directory / "config.json");
  if (!input) return terrace::failure{std::move(input.error())};
  auto text = input->read_text(longest);
  if (!text) return terrace::failure{std::move(text.error())};
  return parse(*text, input->name());
}

inline outcome<model_config> model_config::parse(std::string_view text, const std::string& file) {
  const auto object = nlohmann::json::parse(text, nullptr, false);
  if (!object.is_object()) return refuse(file + " is not a JSON object");
  detail::config_reader from(object, file);

  from.only("model_type", "llama");
  from.only("hidden_act", "silu");
  from.require(!from.flag("attention_bias", false), "has attention_bias, which is not supported");
  from.require(!from.flag("mlp_bias", false), "has mlp_bias, which is not supported");
  from.require(from.find("rope_scaling") == nullptr, "has rope_scaling, which is not supported");
  from.require(from.find("rope_parameters") == nullptr,
               "has rope_parameters, and only a plain rope_theta is supported");

  model_config config;
  config.vocab_size = from.size("vocab_size");
  config.hidden_size = from.size("hidden_size");
  config.intermediate_size = from.size("intermediate_size");
  config.num_hidden_layers = from.size("num_hidden_layers");
  config.num_attention_heads = from.size("num_attention_heads");
  config.num_key_value_heads = from.size("num_key_value_heads", config.num_attention_heads);
  config.rms_norm_eps = from.positive("rms_norm_eps", config.rms_norm_eps);
  config.rope_theta = from.positive("rope_theta", config.rope_theta);
  config.tie_word_embeddings = from.flag("tie_word_embeddings", config.tie_word_embeddings);
  if (!from.problem().empty()) return refuse(from.problem());

  const bool whole = config.hidden_size % config.num_attention_heads == 0;
  from.require(whole || from.find("head_dim") != nullptr,
               "has a hidden_size that num_attention_heads does not divide");
  config.head_dim = from.size("head_dim", config.hidden_size / config.num_attention_heads);
  from.require(config.head_dim % 2 == 0, "has an odd head_dim, which RoPE cannot rotate");
  from.require(config.num_attention_heads % config.num_key_value_heads == 0,
               "has num_attention_heads that num_key_value_heads does not divide");
  from.require(std::uint64_t{config.num_attention_heads} * config.head_dim <= std::uint64_t{1} << 24,
               "has more than 16777216 floats in a token's queries");
  if (!from.problem().empty()) return refuse(from.problem());
  return config;
}

}  // namespace runner
