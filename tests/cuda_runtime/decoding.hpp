#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "engine.hpp"
#include "terrace/cuda/batch.hpp"
#include "terrace/testing/scripted.hpp"

// An engine that decodes with a device batch, and sees every byte that it is given.

using namespace terrace;

/// A paged kernel: it has the arrays of a window and nothing else, and looks at every element when the device gets
/// round to it.
struct paged_kernel {
  layer_group group;
  std::uint32_t layer, sequences;
  const std::int32_t *indptr, *indices, *last_page_len;
  const std::int64_t* first_position;
  const std::byte* pages;
  std::vector<std::uint32_t> tags;  // of the sequences
  float tolerance;
  std::map<std::uint32_t, std::uint64_t>* seen;  // tokens of each sequence
  int* wrong;

  void operator()() const {
    for (std::uint32_t s = 0; s < sequences; ++s) {
      std::uint64_t position = static_cast<std::uint64_t>(first_position[s]);
      for (std::int32_t p = indptr[s]; p < indptr[s + 1]; ++p) {
        const std::byte* page = pages + std::size_t(indices[p]) * cuda::batch::page_stride;
        const std::uint32_t tokens =
            p + 1 == indptr[s + 1] ? static_cast<std::uint32_t>(last_page_len[s]) : group.tokens;
        if (position != (*seen)[s]) ++*wrong;
        if (!right(page, position / group.tokens, tokens, tags[s])) ++*wrong;
        (*seen)[s] += tokens;
        position += tokens;
      }
    }
  }
  bool right(const std::byte* page, std::uint64_t index, std::uint32_t tokens, std::uint32_t tag) const {
    if (tolerance == 0) return pattern::holds(group, page, layer, index, tag, tokens);
    for (const bool values : {false, true})
      for (std::uint32_t t = 0; t < tokens; ++t)
        for (std::uint32_t d = 0; d < group.k.dim; ++d) {
          fp16 x;
          std::memcpy(&x,
                      page + (values ? group.v_offset() : group.k_offset()) +
                          t * group.token_stride(group.k) + d * sizeof x,
                      sizeof x);
          const float want =
              to_float(pattern::element_at(tag, layer, values, 0, index * group.tokens + t, d));
          if (std::abs(to_float(x) - want) > tolerance) return false;
        }
    return true;
  }
};

/// The tokens of each sequence that a layer's kernels have seen, on the device's clock.
using tokens_seen = std::shared_ptr<std::map<std::uint32_t, std::uint64_t>>;

/// An engine that decodes with a batch, whose host runs as far ahead of the device as the device likes.
template <class Cache>
struct decoding {
  static constexpr std::size_t block = pattern::block_bytes;
  static constexpr std::uint32_t layers = 2;

  decoding(std::uint64_t seed, std::size_t hot, std::size_t warm, cuda::batch::options options = {},
           float off = 0)
      : tolerance(off) {
    random.seed(seed);
    opened.emplace(Cache::open(ctx, pattern::layout(layers),
                               {.capacity = hot * block, .stream = device.stream}, {.capacity = warm * block},
                               {.capacity = 512 * block, .script = &script}));
    REQUIRE(*opened);
    // Copies of what is not pinned yet wait, and let the device go on.
    while (fake_cuda::now().pinned_bytes < warm * block) std::this_thread::yield();
    auto made = cuda::batch::make(cache(), options);
    REQUIRE(made);
    batch = std::move(*made);
  }
  Cache& cache() { return **opened; }
  void add(std::uint32_t tokens) {
    sequences.push_back(std::make_unique<sequence>(cache().make_sequence()));
    tags.push_back(static_cast<std::uint32_t>(sequences.size()));
    for (std::uint32_t at = 0; at < tokens; at += 16)
      REQUIRE(device.append(*sequences.back(), std::min(16u, tokens - at), layers, tags.back()));
  }
  void assign() {
    std::vector<sequence*> all;
    for (auto& s : sequences) all.push_back(s.get());
    REQUIRE(batch->assign(all));
  }
  // One step; how many windows it took, or nothing where blocks could not be had.
  std::optional<int> step(std::uint32_t new_tokens) {
    const std::vector<std::uint32_t> tokens(sequences.size(), new_tokens);
    auto slots = batch->reserve(tokens, device.stream);
    REQUIRE(slots);
    int count = 0;
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      write_new(*slots, layer, tokens);
      const auto seen = std::make_shared<tokens_seen::element_type>();
      bool last = false;
      while (auto w = batch->next(layer, device.stream)) {
        CHECK_FALSE(last);
        last = w->last();
        ++count;
        look(*w, layer, seen);
        if (random() % 2 == 0) std::move(*w).release(device.stream);  // else it is dropped
      }
      if (batch->failure()) {
        batch->commit(std::vector<std::uint32_t>(sequences.size(), 0));
        return std::nullopt;
      }
      CHECK(last);
      std::vector<std::uint64_t> lengths;
      for (auto& s : sequences) lengths.push_back(s->length() + new_tokens);
      expect(seen, lengths);
      if (random() % 2 == 0) ctx.poll();
    }
    CHECK(cudaGetLastError() == cudaSuccess);  // an engine that asks after a launch of its own finds nothing
    batch->commit(tokens);
    return count;
  }
  // Blocks that something reads in pinned memory.
  std::size_t pinned_below() {
    std::size_t pinned = 0;
    for (auto& s : sequences)
      for (std::uint32_t row = 0; row < layers; ++row)
        for (const block_id id : pattern::sealed(*s, row))
          pinned += cache().control().copy(id.index, 1).pins != 0 ? 1 : 0;
    return pinned;
  }
  // Launches a kernel over a window.
  void look(const cuda::window& w, std::uint32_t layer, const tokens_seen& seen) {
    fake_cuda::launch(
        device.stream,
        [seen, k = paged_kernel{cache().layout().groups[0], layer, static_cast<std::uint32_t>(batch->size()),
                                w.indptr(), w.indices(), w.last_page_len(), w.first_position(),
                                static_cast<const std::byte*>(w.pages()), tags, tolerance, seen.get(),
                                &wrong}] { k(); });
  }
  // Launches a look at how many tokens of each sequence the kernels before it have seen.
  void expect(const tokens_seen& seen, const std::vector<std::uint64_t>& tokens) {
    fake_cuda::launch(device.stream, [this, seen, tokens] {
      for (std::uint32_t s = 0; s < tokens.size(); ++s)
        if ((*seen)[s] != tokens[s]) ++wrong;
    });
  }
  // The engine's own kernel, by the mapping alone. A token without a slot is not written.
  void write_new(const cuda::reserved_slots& slots, std::uint32_t layer,
                 const std::vector<std::uint32_t>& new_tokens) {
    std::vector<std::uint64_t> first;
    for (auto& s : sequences) first.push_back(s == nullptr ? 0 : s->length());
    const layer_group g = cache().layout().groups[0];
    const std::byte* base = batch->pages();
    fake_cuda::launch(device.stream, [=, this, mapping = slots.mapping(layer), who = tags] {
      std::size_t t = 0;
      for (std::size_t s = 0; s < new_tokens.size(); ++s)
        for (std::uint32_t n = 0; n < new_tokens[s]; ++n, ++t) {
          if (mapping[t] == -1) {
            ++without_slot;
            continue;
          }
          const auto slot = static_cast<std::size_t>(mapping[t]);
          std::byte* page = const_cast<std::byte*>(base) + slot / g.tokens * cuda::batch::page_stride;
          for (const bool values : {false, true})
            for (std::uint32_t d = 0; d < g.k.dim; ++d) {
              const fp16 x = pattern::element_at(who[s], layer, values, 0, first[s] + n, d);
              std::memcpy(page + (values ? g.v_offset() : g.k_offset()) +
                              slot % g.tokens * g.token_stride(g.k) + d * sizeof x,
                          &x, sizeof x);
            }
        }
    });
  }

  engine device;
  context ctx{{.codec_threads = 0}};
  medium_script script;
  std::optional<result<Cache>> opened;
  std::vector<std::unique_ptr<sequence>> sequences;
  std::vector<std::uint32_t> tags;
  std::unique_ptr<cuda::batch> batch;
  std::mt19937_64 random;
  float tolerance;
  int wrong = 0, without_slot = 0;
};
