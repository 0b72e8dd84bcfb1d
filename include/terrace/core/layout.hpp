#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "terrace/core/bytes.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"

namespace terrace {

/// One plane of a block: the keys, the values, or (for MLA) one latent vector per token.
struct plane {
  std::uint32_t heads = 0;  ///< KV heads; 0 means that the plane is absent
  std::uint32_t dim = 0;    ///< elements per head
  element type = element::fp16;

  constexpr bool present() const noexcept { return heads != 0; }
  /// Bytes of one token in this plane, all heads.
  constexpr std::size_t token_bytes() const noexcept { return std::size_t{heads} * dim * size_of(type); }
  friend constexpr bool operator==(const plane&, const plane&) noexcept = default;
};

/// The order of a plane's elements: [kv_head][token][dim], the HND page of FlashInfer-style kernels, or
/// [token][kv_head][dim], NHD.
enum class page_order : std::uint8_t { hnd, nhd };

/// Which tokens attention may still see: all (window 0), or the last `window` and the first `sinks`. It frees nothing
/// by itself: sequence::forget does that.
struct retention {
  std::uint32_t window = 0;
  std::uint32_t sinks = 0;
  friend constexpr bool operator==(const retention&, const retention&) noexcept = default;
};

/// Layers that look alike, and how their KV is cut into blocks. A block is one contiguous run of bytes,
/// [layer][plane][kv_head][token][dim] for HND: `tokens` consecutive tokens of `layers_per_block` consecutive
/// layers. A group with no layers describes pages of tensors (`tensor_pages`); sequences have no blocks of it.
struct layer_group {
  std::uint32_t first_layer = 0;
  std::uint32_t layers = 1;
  std::uint32_t tokens = 64;  ///< tokens per block
  plane k{};
  plane v{};  ///< absent for MLA, where `k` is the latent plane
  retention keep{};
  page_order order = page_order::hnd;
  std::uint32_t layers_per_block = 1;
  std::uint32_t latent_v_dim = 0;  ///< if `v` is absent: how many leading elements of a latent vector
                                   ///< are its value (kv_lora_rank); 0: all of them

  constexpr std::uint32_t planes() const noexcept { return 1u + (v.present() ? 1u : 0u); }
  /// Elements of a value, whether in a plane of its own or within the latent vector.
  constexpr std::uint32_t v_dim() const noexcept {
    return v.present() ? v.dim : latent_v_dim != 0 ? latent_v_dim : k.dim;
  }
  /// Bytes of one plane of one layer of a block.
  constexpr std::size_t plane_bytes(const plane& p) const noexcept { return p.token_bytes() * tokens; }
  /// Bytes of one layer of a block, all planes.
  constexpr std::size_t layer_bytes() const noexcept { return plane_bytes(k) + plane_bytes(v); }
  /// Bytes of a whole block as the engine writes it.
  constexpr std::size_t block_bytes() const noexcept { return layer_bytes() * layers_per_block; }
  /// Bytes of one token of one layer, all planes.
  constexpr std::size_t token_bytes() const noexcept { return k.token_bytes() + v.token_bytes(); }
  /// Where the K (or latent) plane of the block's `layer`-th layer begins, from the start of the block.
  constexpr std::size_t k_offset(std::uint32_t layer = 0) const noexcept { return layer * layer_bytes(); }
  constexpr std::size_t v_offset(std::uint32_t layer = 0) const noexcept {
    return k_offset(layer) + plane_bytes(k);
  }
  /// Bytes from one head to the next, and from one token to the next, within a plane.
  constexpr std::size_t head_stride(const plane& p) const noexcept {
    return std::size_t{p.dim} * size_of(p.type) * (order == page_order::hnd ? tokens : 1u);
  }
  constexpr std::size_t token_stride(const plane& p) const noexcept {
    return std::size_t{p.dim} * size_of(p.type) * (order == page_order::hnd ? 1u : p.heads);
  }
  /// Rows of blocks that cover the group's layers.
  constexpr std::uint32_t block_rows() const noexcept {
    return (layers + layers_per_block - 1) / layers_per_block;
  }
  /// Whether its blocks are pages of tensors, not KV of layers.
  constexpr bool holds_tensors() const noexcept { return layers == 0; }
  friend constexpr bool operator==(const layer_group&, const layer_group&) noexcept = default;
};

/// The group to put at the end of a layout whose cache also holds tensors (paged_tensor.hpp); on its own, it makes a
/// layout for tensors only. A page is a block of `page_elements` elements: one plane of one head of one token. What a
/// codec requires of head dimensions (q8_0: multiples of 32), it requires of `page_elements`. Pages as large as the
/// KV blocks beside them waste the least of a tier.
///
///     kv_layout layout{{{.layers = 32, .k = {8, 128}, .v = {8, 128}}, tensor_pages(element::fp16)}};
constexpr layer_group tensor_pages(element type, std::uint32_t page_elements = 1u << 16) noexcept {
  return {.layers = 0, .tokens = 1, .k = {.heads = 1, .dim = page_elements, .type = type}};
}

/// What a cache holds: a model's KV, as groups of layers that look alike, in ascending order of layers and
/// without a gap; then groups of tensor pages.
struct kv_layout {
  std::vector<layer_group> groups;

  std::uint32_t layers() const noexcept {
    std::uint32_t sum = 0;
    for (const auto& g : groups) sum += g.layers;
    return sum;
  }
  /// The group that holds `layer`. Precondition: layer < layers().
  std::size_t group_of(std::uint32_t layer) const noexcept {
    std::size_t g = 0;
    while (layer >= groups[g].first_layer + groups[g].layers) ++g;
    return g;
  }
  /// Bytes of all KV of one token.
  std::size_t token_bytes() const noexcept {
    std::size_t sum = 0;
    for (const auto& g : groups) sum += g.token_bytes() * g.layers;
    return sum;
  }
  /// The smallest number of tokens that fills whole blocks of every group of layers: the unit in which prefixes are
  /// shared.
  std::size_t chunk_tokens() const noexcept {
    std::size_t tokens = 1;
    for (const auto& g : groups)
      if (!g.holds_tensors()) tokens = std::lcm(tokens, std::size_t{g.tokens});
    return tokens;
  }
  /// Blocks of one chunk, of all rows.
  std::size_t chunk_blocks() const noexcept {
    std::size_t blocks = 0;
    for (const auto& g : groups)
      if (!g.holds_tensors()) blocks += g.block_rows() * (chunk_tokens() / g.tokens);
    return blocks;
  }
  /// The largest block of any group: the size of a slot.
  std::size_t largest_block() const noexcept {
    std::size_t most = 0;
    for (const auto& g : groups) most = most < g.block_bytes() ? g.block_bytes() : most;
    return most;
  }
};

namespace detail {

// Bytes that a plane takes in a block, or more than `most` if that is exceeded, however large its numbers are.
constexpr std::uint64_t plane_bytes_up_to(std::uint64_t most, const layer_group& g, const plane& p) noexcept {
  std::uint64_t bytes = size_of(p.type);
  for (const std::uint32_t factor : {p.heads, p.dim, g.tokens, g.layers_per_block}) {
    if (factor == 0) return 0;
    if (bytes > most / factor) return most + 1;
    bytes *= factor;
  }
  return bytes;
}

}  // namespace detail

/// Whether `layout` can be cached at all; the error's text says what is wrong with it.
inline result<void> validate(const kv_layout& layout) noexcept {
  if (layout.groups.empty())
    return fail(errc::invalid_argument, "a layout needs at least one group, of layers or of tensor pages");
  std::uint32_t next = 0;
  bool tensors = false;
  for (const auto& g : layout.groups) {
    if (tensors && !g.holds_tensors())
      return fail(errc::invalid_argument, "groups of tensor pages must stand behind all groups of layers");
    tensors = g.holds_tensors();
    if (!tensors && g.first_layer != next)
      return fail(errc::invalid_argument, "groups of layers must follow one another without a gap");
    if (g.tokens == 0 || !g.k.present() || g.k.dim == 0 || (g.v.present() && g.v.dim == 0))
      return fail(errc::invalid_argument, "a block needs at least one token, one head and one dimension");
    if (tensors && g != tensor_pages(g.k.type, g.k.dim))
      return fail(errc::invalid_argument,
                  "a group of no layers holds tensor pages, and must be what tensor_pages makes");
    if (g.latent_v_dim > g.k.dim || (g.v.present() && g.latent_v_dim != 0))
      return fail(errc::invalid_argument,
                  "latent_v_dim is for groups without a plane of values, and at most the latent dimension");
    if (g.layers_per_block == 0 || g.layers % g.layers_per_block != 0)
      return fail(errc::invalid_argument, "layers_per_block must divide the group's layers");
    constexpr std::uint64_t most = std::uint64_t{1} << 31;
    if (detail::plane_bytes_up_to(most, g, g.k) + detail::plane_bytes_up_to(most, g, g.v) > most)
      return fail(errc::invalid_argument, "a block may not be larger than 2 GiB");
    if (g.layers > std::numeric_limits<std::uint32_t>::max() - next)
      return fail(errc::invalid_argument, "a layout has fewer than 2^32 layers");
    next += g.layers;
  }
  return {};
}

}  // namespace terrace
