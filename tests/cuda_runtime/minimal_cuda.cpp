// The example, as it is, on the fake runtime: its own kernel is told here in C++, Terrace's are emulated.
#include <cstring>

#include "catch.hpp"
#include "emulated_kernels.hpp"
#include "terrace/cuda/attention.cuh"
#include "terrace/cuda/kernels.cuh"
#include "terrace/cuda/merge.cuh"
#define main example_main
#include "../examples/minimal_cuda/main.cpp"
#undef main

namespace {
bool wrong_slots = false;  // as an engine would that ignored its mapping
}  // namespace

cudaError_t engine::project(const new_tokens& tokens, std::byte* pages, std::size_t page_stride,
                            terrace::fp16* queries, cudaStream_t stream) {
  fake_cuda::launch(stream, [=] {
    for (std::uint32_t t = 0; t < tokens.count; ++t) {
      const std::uint64_t position = tokens.first_position + t;
      const auto slot = static_cast<std::size_t>(tokens.mapping[wrong_slots ? 0 : t]);
      auto* const k = reinterpret_cast<fp16*>(pages + slot / page_tokens * page_stride);
      fp16* const v = k + kv_heads * page_tokens * dim;
      for (std::uint32_t i = 0; i < kv_heads * dim; ++i) {
        const std::size_t at = (i / dim * page_tokens + slot % page_tokens) * dim + i % dim;
        k[at] = to_fp16(key_of(position, tokens.layer, i / dim, i % dim));
        v[at] = to_fp16(value_of(position, tokens.layer, i / dim, i % dim));
      }
      for (std::uint32_t i = 0; i < q_heads * dim; ++i)
        queries[t * q_heads * dim + i] = to_fp16(query_of(position, tokens.layer, i / dim, i % dim));
    }
  });
  return cudaGetLastError();  // as after a launch: what a call of Terrace's left behind would be found here
}
terrace::cuda::kernel_set engine::device_kernels() noexcept { return terrace::cuda::device_kernels(); }

TEST_CASE("the example decodes as the host does, and says so with its exit status") {
  fake_cuda::reset();
  wrong_slots = GENERATE(false, true);
  CHECK(example_main() == (wrong_slots ? 1 : 0));
  CHECK(emulator::take_faults().empty());
  CHECK(fake_cuda::now().device_bytes == 0);
  CHECK(fake_cuda::now().live_streams == 0);
}

TEST_CASE("without a device the example ends with status 1") {
  fake_cuda::reset({.devices = 0});
  CHECK(example_main() == 1);
}
