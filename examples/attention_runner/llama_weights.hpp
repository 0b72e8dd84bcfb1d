#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "aligned_vector.hpp"
#include "gemm.hpp"
#include "model_config.hpp"
#include "safetensors.hpp"
#include "terrace/core/bytes.hpp"

namespace runner {

/// One decoder layer. Matrices that take the same input are merged into one, with their columns side by side.
struct llama_layer {
  aligned_vector<float> attention_norm;  ///< padded with zeros to whole panels, as activations are
  packed_matrix qkv;                     ///< columns [q_size | kv_size | kv_size]
  packed_matrix output;
  aligned_vector<float> mlp_norm;
  packed_matrix gate_up;  ///< gate from column 0 on, up from column `padded(intermediate_size)` on
  packed_matrix down;
};

/// A Llama model in memory: float weights, packed for `gemm`. Immutable once loaded; several contexts may
/// share it.
struct llama_weights {
  model_config config;
  packed_matrix
      embedding;  ///< column t is the embedding of token t, which is also how a tied output layer needs it
  packed_matrix lm_head;  ///< empty where it is tied to the embedding
  aligned_vector<float> final_norm;
  std::vector<llama_layer> layers;

  /// Floats in a row of activations of that size: whole panels.
  static std::size_t padded(std::size_t size) noexcept { return terrace::align_up(size, panel_columns); }
  const packed_matrix& output_layer() const noexcept {
    return config.tie_word_embeddings ? embedding : lm_head;
  }

  /// Loads config.json and the *.safetensors of `directory`, with HuggingFace's names. All names and shapes are
  /// checked against the configuration before anything is allocated: a tensor that is missing, has another shape, or
  /// is not accounted for is refused. Needs the memory of the weights and one panel.
  static outcome<llama_weights> load(const std::filesystem::path& directory);
};

namespace detail {

/// Where the tensors of a model lie in its checkpoint, found by the names that HuggingFace gives them.
class llama_sources {
 public:
  struct layer {
    const tensor_info *attention_norm, *q, *k, *v, *output, *mlp_norm, *gate, *up, *down;
  };
  const tensor_info* embedding = nullptr;
  const tensor_info* lm_head = nullptr;
  const tensor_info* final_norm = nullptr;
  std::vector<layer> layers;

  static outcome<llama_sources> find(const safetensors& checkpoint, const model_config& config) {
    llama_sources found;
    const std::uint64_t hidden = config.hidden_size, middle = config.intermediate_size,
                        vocab = config.vocab_size;
    const auto take = [&](const std::string& name, std::vector<std::uint64_t> shape) {
      return found.take(checkpoint, name, std::move(shape));
    };
    found.embedding = take("model.embed_tokens.weight", {vocab, hidden});
    found.final_norm = take("model.norm.weight", {hidden});
    if (!config.tie_word_embeddings) found.lm_head = take("lm_head.weight", {vocab, hidden});
    for (std::uint32_t i = 0; i < config.num_hidden_layers && found.problem_.empty(); ++i) {
      const std::string prefix = "model.layers." + std::to_string(i) + ".";
      found.layers.push_back({
          .attention_norm = take(prefix + "input_layernorm.weight", {hidden}),
          .q = take(prefix + "self_attn.q_proj.weight", {config.q_size(), hidden}),
          .k = take(prefix + "self_attn.k_proj.weight", {config.kv_size(), hidden}),
          .v = take(prefix + "self_attn.v_proj.weight", {config.kv_size(), hidden}),
          .output = take(prefix + "self_attn.o_proj.weight", {hidden, config.q_size()}),
          .mlp_norm = take(prefix + "post_attention_layernorm.weight", {hidden}),
          .gate = take(prefix + "mlp.gate_proj.weight", {middle, hidden}),
          .up = take(prefix + "mlp.up_proj.weight", {middle, hidden}),
          .down = take(prefix + "mlp.down_proj.weight", {hidden, middle}),
      });
    }
    if (found.problem_.empty()) found.refuse_the_rest(checkpoint);
    if (!found.problem_.empty()) return refuse(found.problem_);
    return found;
  }

 private:
  const tensor_info* take(const safetensors& checkpoint, const std::string& name,
                          std::vector<std::uint64_t> shape) {
    const tensor_info* tensor = checkpoint.find(name);
    if (tensor == nullptr) {
      complain("config.json asks for " + in_quotes(name) + ", which no .safetensors file holds");
    } else if (tensor->shape != shape) {
      complain(checkpoint.file_of(*tensor) + " holds " + in_quotes(name) + " as " + text_of(tensor->shape) +
               ", and config.json asks for " + text_of(shape));
    }
    taken_.insert(tensor);
    return tensor;
  }
  /// A model tensor that nothing used is a layer or a bias that config.json does not mention. The frequencies of
  /// RoPE, which old checkpoints store, follow from rope_theta.
  void refuse_the_rest(const safetensors& checkpoint) {
    for (const auto& [name, tensor] : checkpoint.tensors()) {
      const bool of_model = name.starts_with("model.") && !name.ends_with(".rotary_emb.inv_freq");
      if (of_model && !taken_.contains(&tensor))
        complain(checkpoint.file_of(tensor) + " holds " + in_quotes(name) +
                 ", which config.json does not account for");
    }
  }
  void complain(std::string sentence) {
    if (problem_.empty()) problem_ = std::move(sentence);
  }
  static std::string text_of(const std::vector<std::uint64_t>& shape) {
    std::string text = "[";
    for (const std::uint64_t n : shape) text.append(text.size() > 1 ? ", " : "").append(std::to_string(n));
    return text + "]";
  }

  std::set<const tensor_info*> taken_;
  std::string problem_;
};

/// Reads tensors into the memory of the weights. After the first error it does nothing, and keeps that error.
class llama_reader {
 public:
  explicit llama_reader(const safetensors& checkpoint) : checkpoint_(checkpoint) {}

  aligned_vector<float> vector(const tensor_info& tensor) {
    aligned_vector<float> values(llama_weights::padded(tensor.shape[0]));
    read(tensor, 0, std::span(values).first(tensor.shape[0]));
    return values;
  }
  /// Reads a tensor, [columns][depth], into the columns of `matrix` from `first` on, a panel's worth at a time.
  void columns(const tensor_info& tensor, packed_matrix& matrix, std::size_t first = 0) {
    const std::size_t count = tensor.shape[0], depth = tensor.shape[1];
    rows_.resize(std::min(count, panel_columns) * depth);
    for (std::size_t begin = 0; begin < count && problem_.sentence.empty(); begin += panel_columns) {
      const std::span part = std::span(rows_).first(std::min(count - begin, panel_columns) * depth);
      read(tensor, begin * depth, part);
      for (std::size_t i = 0; i * depth < part.size(); ++i)
        matrix.set_column(first + begin + i, part.subspan(i * depth, depth));
    }
  }
  packed_matrix matrix(const tensor_info& tensor) {
    packed_matrix packed(tensor.shape[0], tensor.shape[1]);
    columns(tensor, packed);
    return packed;
  }
  runner_error& problem() noexcept { return problem_; }

 private:
  void read(const tensor_info& tensor, std::uint64_t first, std::span<float> out) {
    if (!problem_.sentence.empty()) return;
    if (auto done = checkpoint_.read(tensor, first, out); !done) problem_ = std::move(done.error());
  }

  const safetensors& checkpoint_;
  std::vector<float> rows_;
  runner_error problem_;
};

}  // namespace detail

inline outcome<llama_weights> llama_weights::load(const std::filesystem::path& directory) {
  auto config = model_config::read(directory);
  if (!config) return terrace::failure{std::move(config.error())};
  auto checkpoint = safetensors::open(directory);
  if (!checkpoint) return terrace::failure{std::move(checkpoint.error())};
  auto sources = detail::llama_sources::find(*checkpoint, *config);
  if (!sources) return terrace::failure{std::move(sources.error())};

  detail::llama_reader reader(*checkpoint);
  llama_weights model;
  model.config = *config;
  model.embedding = reader.matrix(*sources->embedding);
  if (sources->lm_head != nullptr) model.lm_head = reader.matrix(*sources->lm_head);
  model.final_norm = reader.vector(*sources->final_norm);
  const std::size_t hidden = config->hidden_size, q = config->q_size(), kv = config->kv_size();
  const std::size_t middle = padded(config->intermediate_size);
  for (const auto& source : sources->layers) {
    llama_layer layer;
    layer.attention_norm = reader.vector(*source.attention_norm);
    layer.qkv = packed_matrix(q + 2 * kv, hidden);
    reader.columns(*source.q, layer.qkv);
    reader.columns(*source.k, layer.qkv, q);
    reader.columns(*source.v, layer.qkv, q + kv);
    layer.output = reader.matrix(*source.output);
    layer.mlp_norm = reader.vector(*source.mlp_norm);
    layer.gate_up = packed_matrix(2 * middle, hidden);
    reader.columns(*source.gate, layer.gate_up);
    reader.columns(*source.up, layer.gate_up, middle);
    layer.down = reader.matrix(*source.down);
    model.layers.push_back(std::move(layer));
    if (!reader.problem().sentence.empty()) break;
  }
  if (!reader.problem().sentence.empty()) return terrace::failure{std::move(reader.problem())};
  return model;
}

}  // namespace runner
