#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "catch.hpp"
#include "fake/fake_runtime.hpp"
#include "pattern.hpp"
#include "terrace/sequence.hpp"

// An engine whose kernels run when the device gets round to them.
class engine {
 public:
  engine() { REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess); }
  engine(const engine&) = delete;
  engine& operator=(const engine&) = delete;
  ~engine() { static_cast<void>(cudaStreamDestroy(stream)); }

  /// Reserves, launches the kernel that writes K and V, and commits before it has run.
  terrace::result<void> append(terrace::sequence& s, std::uint32_t tokens, std::uint32_t layers,
                               std::uint32_t tag) {
    auto reserved = s.reserve(tokens);
    if (!reserved) return terrace::propagate(reserved.error());
    struct row {
      std::span<terrace::fp16> at;
      std::uint32_t layer, head;
      bool values;
      std::uint64_t position;
    };
    std::vector<row> rows;
    for (std::uint32_t layer = 0; layer < layers; ++layer)
      for (const bool values : {false, true}) {
        const terrace::plane_rows plane = values ? reserved->v(layer) : reserved->k(layer);
        for (std::uint32_t t = 0; t < tokens; ++t)
          for (std::uint32_t h = 0; h < plane.heads(); ++h)
            rows.push_back(
                {plane.row<terrace::fp16>(t, h), layer, h, values, reserved->first_position() + t});
      }
    fake_cuda::launch(stream, [rows, tag] {
      for (const row& r : rows)
        for (std::uint32_t d = 0; d < r.at.size(); ++d)
          r.at[d] = pattern::element_at(tag, r.layer, r.values, r.head, r.position, d);
    });
    s.commit(std::move(*reserved), tokens);
    return {};
  }

  /// Launches a kernel that compares a block with what was written; it counts those that are wrong.
  void check(const terrace::kv_layout& layout, const std::byte* data, std::uint32_t layer,
             std::uint64_t index, std::uint32_t tag, std::uint32_t tokens = 16) {
    fake_cuda::launch(stream, [=, this, g = layout.groups[0]] {
      ++looked_at;
      if (!pattern::holds(g, data, layer, index, tag, tokens)) ++wrong;
    });
  }

  cudaStream_t stream = nullptr;
  int looked_at = 0, wrong = 0;
};
