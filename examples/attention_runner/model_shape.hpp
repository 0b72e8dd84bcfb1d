#pragma once
#include <array>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

#include "runner_error.hpp"

namespace runner {

/// What attention sees of a model: how many layers, query heads, KV heads, and elements a head.
struct model_shape {
  std::string_view name;
  std::uint32_t layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
};

/// Shapes by name, from the models' published configurations.
inline constexpr std::array known_shapes{
    model_shape{"llama-2-7b", 32, 32, 32, 128},  model_shape{"llama-2-13b", 40, 40, 40, 128},
    model_shape{"llama-2-70b", 80, 64, 8, 128},  model_shape{"llama-3-8b", 32, 32, 8, 128},
    model_shape{"llama-3-70b", 80, 64, 8, 128},  model_shape{"llama-3.2-1b", 16, 32, 8, 64},
    model_shape{"llama-3.2-3b", 28, 24, 8, 128}, model_shape{"mistral-7b", 32, 32, 8, 128},
    model_shape{"qwen2.5-0.5b", 24, 14, 2, 64},  model_shape{"qwen2.5-7b", 28, 28, 4, 128},
    model_shape{"qwen2.5-14b", 48, 40, 8, 128},  model_shape{"qwen2.5-32b", 64, 40, 8, 128},
    model_shape{"qwen2.5-72b", 80, 64, 8, 128},  model_shape{"qwen3-8b", 36, 32, 8, 128},
    model_shape{"phi-3-mini", 32, 32, 32, 96},   model_shape{"yi-34b", 60, 56, 8, 128},
    model_shape{"falcon-7b", 32, 71, 1, 64},
};

/// Reads the name of a known shape, or "layers,q_heads,kv_heads,head_dim". Refuses anything else, and shapes
/// that attention does not compute or that are larger than any model.
inline outcome<model_shape> parse_shape(std::string_view text) {
  for (const model_shape& known : known_shapes)
    if (known.name == text) return known;
  std::array<std::uint32_t, 4> n{};
  const char* at = text.data();
  const char* const end = at + text.size();
  bool good = true;
  for (std::size_t i = 0; i < n.size() && good; ++i) {
    const auto [after, error] = std::from_chars(at, end, n[i]);
    good = error == std::errc{} && (i + 1 < n.size() ? after != end && *after == ',' : after == end);
    at = after + (i + 1 < n.size() ? 1 : 0);
  }
  if (!good) {
    std::string names;
    for (const model_shape& known : known_shapes)
      names += (names.empty() ? "" : ", ") + std::string(known.name);
    return refuse("--shape knows " + names + " and LAYERS,Q_HEADS,KV_HEADS,HEAD_DIM, not " + in_quotes(text));
  }
  const auto [layers, q_heads, kv_heads, head_dim] = n;
  if (layers < 1 || layers > 1024 || kv_heads < 1 || q_heads > 1024 || q_heads % kv_heads != 0 ||
      q_heads == 0)
    return refuse("--shape needs 1 to 1024 layers, at most 1024 query heads, and KV heads that divide them");
  if (head_dim == 0 || head_dim > 512 || head_dim % 32 != 0)
    return refuse("--shape needs a head dimension that is a multiple of 32, at most 512");
  return model_shape{"custom", layers, q_heads, kv_heads, head_dim};
}

}  // namespace runner
