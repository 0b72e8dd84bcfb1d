// The runner's jobs on a device, as they are, on the fake runtime with emulated kernels.
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "catch.hpp"
#include "emulated_kernels.hpp"
#include "examples/checkpoint_files.hpp"
#include "examples/dense_backend.hpp"
#include "terrace/codec/zstd.hpp"
#define TERRACE_RUNNER_CUDA
#include "../examples/attention_runner/cuda/device_job.cpp"
#include "../examples/attention_runner/cuda/device_ladder.cpp"
#include "../examples/attention_runner/cuda/device_model_job.cpp"
#include "../examples/attention_runner/cuda/kernels.cuh"
#include "../examples/attention_runner/report.hpp"

using namespace runner;

namespace {

const model_shape shape{"tiny", 2, 4, 2, 64};

run_request request_for(const std::string& codec, std::uint32_t context) {
  run_request request;
  request.codec = codec;
  request.context_tokens = context;
  request.decode_tokens = 3;
  request.block_tokens = 16;
  request.on_device = true;
  return request;
}
run_plan plan_of(const run_request& request) {
  auto made = plan(request, {shape.layers, shape.kv_heads, shape.head_dim});
  INFO((made ? "" : made.error().sentence));
  REQUIRE(made);
  return *made;
}

outcome<run_result> run(const std::string& codec, std::uint32_t batch = 1, std::uint32_t context = 2000) {
  run_request request = request_for(codec, context);
  request.batch = batch;
  if (codec != "resident") request.hot = std::size_t{600} << 10;
  return run_on_device(shape, request, plan_of(request), {.codec_threads = 0});
}

void check_that_nothing_is_left() {
  CHECK(fake_cuda::now().device_bytes == 0);
  CHECK(fake_cuda::now().pinned_bytes == 0);
  CHECK(fake_cuda::now().live_streams == 0);
  CHECK(fake_cuda::now().live_events == 0);
}

// --- A model.

const llama_weights& tiny_model() {
  static const auto weights = [] {
    temporary_directory directory;
    toy_llama({.hidden = 32, .intermediate = 64, .q_heads = 4, .kv_heads = 2, .head_dim = 64})
        .write(directory);
    return llama_weights::load(directory.path());
  }();
  REQUIRE(weights);
  return *weights;
}
std::vector<std::uint32_t> text_of_length(std::size_t tokens) {
  std::vector<std::uint32_t> text(tokens);
  for (std::size_t i = 0; i < tokens; ++i) text[i] = static_cast<std::uint32_t>(i * i * 31 + i * 7) % 100;
  return text;
}
run_request text_request(const std::string& codec, std::uint32_t context = 150) {
  run_request request = request_for(codec, context);
  request.scored_tokens = 40;
  if (codec != "resident") request.hot = std::size_t{136} << 10;
  return request;
}
outcome<run_result> run_text(const run_request& request, const run_plan& plan) {
  const auto text = text_of_length(request.context_tokens + request.scored_tokens);
  llama model(tiny_model());
  terrace::context ctx{{.codec_threads = 0}};
  return run_model_on_device(model, request, plan, text, ctx);
}
outcome<run_result> run_text(const std::string& codec) {
  const run_request request = text_request(codec);
  return run_text(request, plan_of(request));
}

// Both are given the same keys, values and queries, which nobody computed.
double error_of_a_chunk(kv_backend& kv, kv_backend& right, std::uint32_t tokens, std::mt19937& random) {
  std::normal_distribution<float> normal;
  const std::size_t width = std::size_t{shape.q_heads} * shape.head_dim;
  std::vector<float> q(tokens * width), out(q.size()), expected(q.size());
  REQUIRE(kv.reserve(tokens));
  REQUIRE(right.reserve(tokens));
  double error = 0, norm = 0;
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (std::uint32_t t = 0; t < tokens; ++t)
      for (std::uint32_t h = 0; h < shape.kv_heads; ++h)
        for (std::uint32_t d = 0; d < shape.head_dim; ++d) {
          kv.k(layer, t, h)[d] = right.k(layer, t, h)[d] = terrace::to_fp16(normal(random));
          kv.v(layer, t, h)[d] = right.v(layer, t, h)[d] = terrace::to_fp16(normal(random));
        }
    for (float& x : q) x = normal(random);
    REQUIRE(kv.attend(layer, q, out));
    REQUIRE(right.attend(layer, q, expected));
    for (std::size_t i = 0; i < out.size(); ++i) {
      error += std::pow(double{out[i]} - double{expected[i]}, 2);
      norm += std::pow(double{expected[i]}, 2);
    }
  }
  return std::sqrt(error / norm);
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
  check_that_nothing_is_left();
}

TEST_CASE("without a device there is one sentence, and status 1") {
  fake_cuda::reset({.devices = 0});
  const auto ran = GENERATE(false, true) ? run("q8") : run_text("q8");
  REQUIRE_FALSE(ran);
  CHECK(ran.error().exit_code == 1);
  CHECK(ran.error().sentence.find("no CUDA") != std::string::npos);
}

TEST_CASE("work that fails on the device ends the run in a sentence, and leaks nothing") {
  const bool text = GENERATE(false, true);
  for (const std::size_t nth : {40u, 400u, 1200u}) {
    CAPTURE(text, nth);
    fake_cuda::reset({.costs = {.copy_call = 1}});
    fake_cuda::fail_work(cudaErrorIllegalAddress, nth);
    const auto ran = text ? run_text("q8") : run("q8");
    REQUIRE_FALSE(ran);
    CHECK(ran.error().exit_code != 0);
    CHECK(!ran.error().sentence.empty());
    check_that_nothing_is_left();
  }
}

TEST_CASE("a backend on a device attends as the reference does, chunk by chunk") {
  const auto [codec, most] =
      GENERATE(table<std::string, double>({{"lossless", 2e-3}, {"q8", 2e-2}, {"resident", 2e-3}}));
  CAPTURE(codec);
  fake_cuda::reset({.seed = 7, .costs = {.copy_call = 1}});
  {
    run_request request = request_for(codec, 1119);
    if (codec == "q8")
      request.hot = std::size_t{192} << 10;  // windows have blocks as they are stored as well
    const run_plan plan = plan_of(request);
    const auto stream = device_stream::make();
    REQUIRE(stream);
    terrace::context ctx{{.codec_threads = 0}};
    auto kv = device_backend::open(shape, request, plan, 64, **stream, ctx);
    INFO((kv ? "" : kv.error().message()));
    REQUIRE(kv);
    dense_backend right(tiny_model().config);
    std::mt19937 random(3);
    // The hot tier holds a tenth in the end. A chunk that is not committed vanishes.
    for (std::uint32_t i = 0; i < (codec == "lossless" ? 14 : 9); ++i) {
      const std::uint32_t tokens = std::array{64u, 64u, 1u, 64u, 64u, 53u, 64u}[i % 7];
      CAPTURE(i, tokens);
      if (i == 3) error_of_a_chunk(**kv, right, 20, random);
      CHECK(error_of_a_chunk(**kv, right, tokens, random) < most);
      REQUIRE((*kv)->commit(tokens));
      REQUIRE(right.commit(tokens));
    }
    CHECK(((*kv)->cache().stats().tiers[1].resident_bytes > 0) == (codec != "resident"));
    if (codec == "lossless") CHECK((*kv)->cache().stats().misses > 0);
    CHECK((*kv)->reserve(65).error().code == terrace::errc::invalid_argument);
  }
  CHECK(emulator::take_faults().empty());
  check_that_nothing_is_left();
}

TEST_CASE("a text is the same, bit for bit, whether a device holds all of its KV or a tenth") {
  run_request request = text_request("lossless", 400);
  const run_plan tiers = plan_of(request);
  fake_cuda::reset({.seed = 1, .costs = {.copy_call = 1}});
  const auto ran = run_text(request, tiers);
  INFO((ran ? "" : ran.error().sentence));
  REQUIRE(ran);
  check_that_nothing_is_left();
  CHECK(ran->stats.misses > 0);
  CHECK(ran->stats.tiers[0].capacity_bytes * 3 < ran->plan.kv_bytes_total);
  CHECK(ran->stats.tiers[2].resident_bytes > 0);
  CHECK(ran->decode_s.size() == 3);
  CHECK(ran->step.wall > 0);
  REQUIRE(ran->device);
  CHECK(ran->device->link_bytes_per_s > 0);
  CHECK(ran->device->vram_bytes_peak >= ran->stats.tiers[0].capacity_bytes);

  request.codec = "resident";
  request.split_tokens = tiers.split_tokens;
  fake_cuda::reset({.seed = 2, .costs = {.copy_call = 1}});
  const auto resident = run_text(request, plan_of(request));
  REQUIRE(resident);
  CHECK(resident->stats.misses == 0);
  CHECK(resident->step.wall == 0);
  CHECK(ran->logits.size() == std::size_t{40} * 100);
  CHECK(ran->logits == resident->logits);
  CHECK(ran->bits_per_byte == resident->bits_per_byte);
  CHECK(ran->generated == resident->generated);

  const auto json = to_json(*ran, &*resident, false);
  CHECK(json.at("error").at("max_abs") == 0);
  CHECK(json.at("baseline").at("identical_tokens") == true);
  CHECK(json.at("device") == "no device at all");
  CHECK(json.at("tiers")[0].at("medium") == "vram");

  // On the host, in double.
  llama model(tiny_model());
  dense_backend kv(tiny_model().config);
  run_result expected = run_result::of(request, tiers);
  progress bar("");
  const auto text = text_of_length(440);
  text_run reading(model, request, text, bar);
  REQUIRE(reading.prefill(kv, 512, expected));
  REQUIRE(reading.score(kv, 512, expected));
  CHECK(compare(ran->logits, expected.logits).rel_l2 < 5e-3);
  CHECK(ran->logits != expected.logits);
  CHECK(ran->bits_per_byte == Approx(expected.bits_per_byte).epsilon(2e-3));
  CHECK(emulator::take_faults().empty());
}

TEST_CASE("a text on a ladder that loses something is near, and says how far") {
  fake_cuda::reset({.costs = {.copy_call = 1}});
  const auto resident = run_text("resident");
  REQUIRE(resident);
  for (const auto& [codec, most] : {std::pair{"q8", 2e-2}, std::pair{"q4", 2e-1}}) {
    CAPTURE(codec);
    const auto ran = run_text(codec);
    INFO((ran ? "" : ran.error().sentence));
    REQUIRE(ran);
    CHECK(compare(ran->logits, resident->logits).rel_l2 > 0);
    CHECK(compare(ran->logits, resident->logits).rel_l2 < most);
  }
}

TEST_CASE("the least memory of a device that a refusal names suffices") {
  const std::string codec = GENERATE("lossless", "q8", "q4");
  CAPTURE(codec);
  run_request request = text_request(codec);
  request.hot = 4096;
  const auto refused = plan(request, {shape.layers, shape.kv_heads, shape.head_dim});
  REQUIRE_FALSE(refused);
  const std::string& sentence = refused.error().sentence;
  const std::size_t at = sentence.find(": ") + 2;
  const auto least = terrace::parse_size(sentence.substr(at, sentence.find(" suffice") - at));
  REQUIRE(least);
  request.hot = *least;
  fake_cuda::reset({.costs = {.copy_call = 1}});
  const auto ran = run_text(request, plan_of(request));
  INFO((ran ? "" : ran.error().sentence));
  REQUIRE(ran);
  CHECK(ran->stats.tiers[0].capacity_bytes <= *least);
}

TEST_CASE("a call that a device refuses ends a text in a sentence, and leaks nothing") {
  const auto [call, last] = GENERATE(table<std::string, std::size_t>({{"cudaMalloc", 7},
                                                                      {"cudaHostAlloc", 5},
                                                                      {"cudaMemcpyAsync", 90},
                                                                      {"cudaStreamSynchronize", 20},
                                                                      {"cudaEventRecord", 90},
                                                                      {"cudaStreamWaitEvent", 90}}));
  for (const std::size_t nth : {std::size_t{1}, std::size_t{3}, last}) {
    CAPTURE(call, nth);
    fake_cuda::reset({.costs = {.copy_call = 1}});
    fake_cuda::fail_call(call.c_str(), cudaErrorMemoryAllocation, nth);
    if (const auto ran = run_text("lossless"); !ran) CHECK(!ran.error().sentence.empty());
    check_that_nothing_is_left();
  }
}

TEST_CASE("heads that no kernel is there for are refused") {
  fake_cuda::reset();
  temporary_directory directory;
  toy_llama().write(directory);
  const auto weights = llama_weights::load(directory.path());
  REQUIRE(weights);
  llama model(*weights);
  terrace::context ctx{{.codec_threads = 0}};
  const run_request request = text_request("lossless");
  const auto ran = run_model_on_device(model, request, plan_of(request), text_of_length(190), ctx);
  REQUIRE_FALSE(ran);
  CHECK(ran.error().exit_code == 2);
  CHECK(ran.error().sentence.find("not of 10") != std::string::npos);
}
