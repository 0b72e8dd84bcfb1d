#include "attention_runner/model_config.hpp"

#include <nlohmann/json.hpp>
#include <string>

#include "catch.hpp"
#include "checkpoint_files.hpp"

using nlohmann::json;
using runner::model_config;

namespace {

json small() {
  return {{"vocab_size", 256},      {"hidden_size", 64},        {"intermediate_size", 96},
          {"num_hidden_layers", 2}, {"num_attention_heads", 4}, {"model_type", "llama"}};
}
std::string refusal(const std::string& text) {
  auto config = model_config::parse(text, "FILE");
  return config ? std::string() : config.error().sentence;
}

}  // namespace

TEST_CASE("what config.json leaves out has the default of LlamaConfig") {
  auto config = model_config::parse(small().dump(), "FILE");
  REQUIRE(config);
  CHECK(config->num_key_value_heads == 4);
  CHECK(config->head_dim == 16);
  CHECK(config->rms_norm_eps == 1e-6);
  CHECK(config->rope_theta == 10000);
  CHECK_FALSE(config->tie_word_embeddings);
  CHECK(config->q_size() == 64);
}

TEST_CASE("what config.json gives is taken") {
  json given = small();
  given.update({{"num_key_value_heads", 2},
                {"head_dim", 32},
                {"rms_norm_eps", 1e-5},
                {"rope_theta", 500000},
                {"tie_word_embeddings", true},
                {"rope_scaling", nullptr}});
  auto config = model_config::parse(given.dump(), "FILE");
  REQUIRE(config);
  CHECK(config->head_dim == 32);
  CHECK(config->q_size() == 128);
  CHECK(config->kv_size() == 64);
  CHECK(config->rms_norm_eps == 1e-5);
  CHECK(config->rope_theta == 500000);
  CHECK(config->tie_word_embeddings);
}

TEST_CASE("what this runner would compute wrongly is refused, by name") {
  struct change {
    const char* key;
    json value;
    std::string says;
  };
  const change changes[] = {
      {"hidden_size", nullptr, "no hidden_size"},
      {"hidden_size", 0, "hidden_size"},
      {"hidden_size", -64, "hidden_size"},
      {"hidden_size", 64.5, "hidden_size"},
      {"hidden_size", "64", "hidden_size"},
      {"hidden_size", 1ull << 40, "hidden_size"},
      {"hidden_size", 66, "does not divide"},
      {"hidden_size", 12, "odd head_dim"},
      {"num_hidden_layers", 0, "num_hidden_layers"},
      {"num_key_value_heads", 3, "num_key_value_heads"},
      {"num_key_value_heads", 8, "num_key_value_heads"},
      {"head_dim", 1 << 24, "more than 16777216"},
      {"rms_norm_eps", 0, "rms_norm_eps"},
      {"rope_theta", "big", "rope_theta"},
      {"tie_word_embeddings", 1, "tie_word_embeddings"},
      {"hidden_act", "gelu", "only silu"},
      {"hidden_act", 7, "only silu"},
      {"hidden_act", json::array({json::array()}), "of a list or an object, and only silu"},
      {"model_type", "qwen2", "only llama"},
      {"attention_bias", true, "attention_bias"},
      {"mlp_bias", true, "mlp_bias"},
      {"rope_scaling", {{"rope_type", "yarn"}}, "rope_scaling"},
      {"rope_parameters", {{"rope_theta", 1e6}}, "rope_parameters"},
  };
  for (const change& c : changes) {
    json changed = small();
    changed[c.key] = c.value;
    CAPTURE(changed.dump());
    const std::string sentence = refusal(changed.dump());
    CHECK(sentence.find(c.says) != std::string::npos);
    CHECK(sentence.find("FILE") == 0);
  }
}

TEST_CASE("what is no JSON object is refused") {
  for (const std::string text : {"", "{", "[]", "7", "{\"a\":1}x", "\xff"}) {
    CAPTURE(text);
    CHECK(refusal(text).find("FILE is not a JSON object") == 0);
  }
  CHECK(refusal(std::string(100'000, '[')).find("FILE is not a JSON object") == 0);
  CHECK_FALSE(refusal("{}").empty());
}

TEST_CASE("a config.json that is absent or enormous is refused") {
  temporary_directory directory;
  CHECK_FALSE(model_config::read(directory.path()));
  directory.write("config.json", std::string((1 << 20) + 1, ' '));
  auto config = model_config::read(directory.path());
  REQUIRE_FALSE(config);
  CHECK(config.error().sentence.find("larger than") != std::string::npos);
}
