#pragma once
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

/// A directory of its own for one test, gone with it.
class temporary_directory {
 public:
  temporary_directory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "terrace-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;
  ~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const noexcept { return path_; }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }

 private:
  std::filesystem::path path_;
};

/// The bytes of a safetensors file: the header's length in 8 bytes, the header, the data.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  std::string out;
  for (unsigned i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return out + header + data;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// A checkpoint with random weights, made shape by shape, as a test wants it.
class toy_checkpoint {
 public:
  nlohmann::json config;

  void add(const std::string& name, std::vector<std::uint64_t> shape, float scale = 0.3f) {
    std::uint64_t elements = 1;
    for (const std::uint64_t n : shape) elements *= n;
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(elements);
    for (float& value : values) value = normal(random_);
    header_[name] = {
        {"dtype", "F32"}, {"shape", shape}, {"data_offsets", {data_.size(), data_.size() + elements * 4}}};
    data_ += bytes_of(values);
    tensors[name] = std::move(values);
  }
  void write(const temporary_directory& directory) const {
    directory.write("config.json", config.dump());
    directory.write("model.safetensors", safetensors_bytes(header_.dump(), data_));
  }
  std::map<std::string, std::vector<float>> tensors;

 private:
  std::mt19937 random_{7};
  nlohmann::json header_ = nlohmann::json::object();
  std::string data_;
};

/// Sizes of a small Llama that no vector length divides, with several query heads a KV head.
struct toy_sizes {
  std::uint64_t vocabulary = 100, hidden = 20, intermediate = 70, q_heads = 6, kv_heads = 2, head_dim = 10;
};

/// A small Llama of two layers, with a separate output layer.
inline toy_checkpoint toy_llama(const toy_sizes& n = {}) {
  toy_checkpoint toy;
  toy.config = {{"model_type", "llama"},
                {"vocab_size", n.vocabulary},
                {"hidden_size", n.hidden},
                {"intermediate_size", n.intermediate},
                {"num_hidden_layers", 2},
                {"num_attention_heads", n.q_heads},
                {"num_key_value_heads", n.kv_heads},
                {"head_dim", n.head_dim},
                {"rms_norm_eps", 1e-5},
                {"rope_theta", 500.0},
                {"hidden_act", "silu"},
                {"tie_word_embeddings", false}};
  toy.add("model.embed_tokens.weight", {n.vocabulary, n.hidden}, 1.0f);
  toy.add("lm_head.weight", {n.vocabulary, n.hidden}, 1.0f);
  toy.add("model.norm.weight", {n.hidden}, 1.0f);
  for (const std::string prefix : {"model.layers.0.", "model.layers.1."}) {
    toy.add(prefix + "input_layernorm.weight", {n.hidden}, 1.0f);
    toy.add(prefix + "self_attn.q_proj.weight", {n.q_heads * n.head_dim, n.hidden});
    toy.add(prefix + "self_attn.k_proj.weight", {n.kv_heads * n.head_dim, n.hidden});
    toy.add(prefix + "self_attn.v_proj.weight", {n.kv_heads * n.head_dim, n.hidden});
    toy.add(prefix + "self_attn.o_proj.weight", {n.hidden, n.q_heads * n.head_dim});
    toy.add(prefix + "post_attention_layernorm.weight", {n.hidden}, 1.0f);
    toy.add(prefix + "mlp.gate_proj.weight", {n.intermediate, n.hidden});
    toy.add(prefix + "mlp.up_proj.weight", {n.intermediate, n.hidden});
    toy.add(prefix + "mlp.down_proj.weight", {n.hidden, n.intermediate});
  }
  return toy;
}
