// The runner's device job, as it is, on the fake runtime with emulated kernels.
#include <cstring>
#include <string>

#include "catch.hpp"
#include "emulated_kernels.hpp"
#include "terrace/codec/zstd.hpp"
#define TERRACE_RUNNER_CUDA
#include "../examples/attention_runner/cuda/device_job.cpp"
#include "../examples/attention_runner/cuda/device_ladder.cpp"
#include "../examples/attention_runner/cuda/kernels.cuh"

using namespace runner;

namespace {

const model_shape shape{"tiny", 2, 4, 2, 64};

outcome<run_result> run(const std::string& codec, std::uint32_t batch = 1, std::uint32_t context = 2000) {
  run_request request;
  request.codec = codec;
  request.context_tokens = context;
  request.decode_tokens = 3;
  request.batch = batch;
  request.block_tokens = 16;
  request.on_device = true;
  request.hot = std::size_t{600} << 10;
  if (codec == "resident") request.hot.reset();
  auto made = plan(request, {shape.layers, shape.kv_heads, shape.head_dim});
  REQUIRE(made);
  return run_on_device(shape, request, *made, {.codec_threads = 0});
}

}  // namespace

TEST_CASE("a context that a device cannot hold is attended as the reference does") {
  const auto [codec, most] = GENERATE(
      table<std::string, double>({{"lossless", 2e-3}, {"q8", 2e-2}, {"q4", 2e-1}, {"resident", 2e-3}}));
  const std::uint32_t batch = GENERATE(1u, 2u);
  CAPTURE(codec, batch);
  fake_cuda::reset({.seed = batch, .costs = {.copy_call = 1}});
  const auto ran = run(codec, batch);
  INFO((ran ? "" : ran.error().sentence));
  REQUIRE(ran);
  REQUIRE(ran->error);
  CHECK(ran->error->rel_l2 > 0);
  CHECK(ran->error->rel_l2 < most);
  CHECK(ran->decode_s.size() == 3);
  REQUIRE(ran->device);
  CHECK(ran->device->name == "no device at all");
  CHECK(ran->device->link_bytes_per_s > 0);
  CHECK(ran->device->vram_bytes_peak >= ran->stats.tiers[0].capacity_bytes);
  CHECK((ran->stats.tiers[1].resident_bytes > 0) == (codec != "resident"));
  CHECK((ran->step.wall > 0) == (codec != "resident"));
  CHECK(emulator::take_faults().empty());
  CHECK(fake_cuda::now().device_bytes == 0);
  CHECK(fake_cuda::now().pinned_bytes == 0);
  CHECK(fake_cuda::now().live_streams == 0);
  CHECK(fake_cuda::now().live_events == 0);
}

TEST_CASE("without a device there is one sentence, and status 1") {
  fake_cuda::reset({.devices = 0});
  const auto ran = run("q8");
  REQUIRE_FALSE(ran);
  CHECK(ran.error().exit_code == 1);
  CHECK(ran.error().sentence.find("no CUDA") != std::string::npos);
}

TEST_CASE("work that fails on the device ends the run in a sentence, and leaks nothing") {
  for (const std::size_t nth : {40u, 400u, 1200u}) {
    fake_cuda::reset({.costs = {.copy_call = 1}});
    fake_cuda::fail_work(cudaErrorIllegalAddress, nth);
    const auto ran = run("q8");
    REQUIRE_FALSE(ran);
    CHECK(ran.error().exit_code != 0);
    CHECK(!ran.error().sentence.empty());
  }
}
