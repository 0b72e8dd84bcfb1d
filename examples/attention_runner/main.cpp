// Decodes over a KV cache that lives in RAM and on disk: either a real text with a real model, showing that the
// answers are those of a run that has everything in memory (model_job.hpp), or attention alone over the shape of a
// larger model (shape_job.hpp); each also with its KV and its attention on a CUDA device (cuda/). The path of a
// block: ladder.hpp, or cuda/device_backend.hpp (reserve, attend, commit) > terrace.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "cuda/device_job.hpp"
#include "cuda/device_model_job.hpp"
#include "interruption.hpp"
#include "model_job.hpp"
#include "prompt.hpp"
#include "report.hpp"
#include "shape_job.hpp"
#include "terrace/observe/chrome_trace.hpp"

namespace {

using namespace runner;

/// Tokens that a model is scored on, between the prefill and the decode.
constexpr std::uint32_t scored = 4096;

outcome<std::vector<std::uint32_t>> text_for(const command_line& c, const model_config& model) {
  const std::size_t wanted = std::size_t{c.context} + scored;
  const std::string prompt = !c.prompt.empty() || !c.prompt_ids.empty()
                                 ? c.prompt
                                 : std::string(TERRACE_MODEL_DIR) + "/heldout_bible.txt";
  auto text = c.prompt_ids.empty() ? load_prompt_bytes(prompt, model.vocab_size, wanted)
                                   : load_prompt_ids(c.prompt_ids, model.vocab_size, wanted);
  if (text && text->size() < wanted)
    return refuse("the prompt has " + std::to_string(text->size()) + " tokens, and --context " +
                  std::to_string(c.context) + " and the " + std::to_string(scored) +
                  " that are scored need " + std::to_string(wanted));
  return text;
}

// Before anything runs: a file that cannot be opened for writing must not cost the results of minutes.
outcome<bool> check_writable(const char* option, const std::string& path) {
  if (path.empty() || path == "-") return true;
  const bool was_there = std::filesystem::exists(path);
  std::FILE* const file = std::fopen(path.c_str(), "ab");
  if (file == nullptr) return refuse(std::string(option) + " cannot be written: " + in_quotes(path));
  std::fclose(file);
  if (!was_there) std::remove(path.c_str());
  return true;
}

outcome<bool> write_json(const std::string& path, const nlohmann::json& value) {
  const std::string text = value.dump(2) + "\n";
  if (path == "-") {
    std::cout << text << std::flush;
  } else {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << text << std::flush;
    if (!file) return refuse(runner_error{"--json cannot be written: " + in_quotes(path), 1});
  }
  return true;
}

/// Spans that --trace keeps: 64 decoded tokens of the default job make about 60,000.
constexpr std::size_t trace_spans = std::size_t{1} << 19;

outcome<bool> write_trace(const std::string& path, const terrace::trace_log& log) {
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  const bool written = file != nullptr && terrace::write_chrome_trace(log, file).has_value();
  const bool closed = file == nullptr || std::fclose(file) == 0;
  if (!written || !closed) return refuse(runner_error{"--trace cannot be written: " + in_quotes(path), 1});
  return true;
}

// The calling thread computes too.
terrace::context::options threads() {
  return {.codec_threads = std::max(2u, std::thread::hardware_concurrency()) - 1};
}

// The request of a run that has everything in tier 0, to compare with that of `plan`: both cut the KV into the same
// blocks and splits.
run_request all_resident(run_request request, const run_plan& plan) {
  request.codec = "resident";
  request.hot.reset();
  request.block_tokens = plan.layout.groups[0].tokens;
  request.split_tokens = plan.split_tokens;
  request.trace = nullptr;
  request.inject = 0;
  request.attend = {};
  return request;
}

outcome<bool> run_shape(const command_line& c, run_request request) {
  auto shape = parse_shape(c.shape);
  if (!shape) return refuse(shape.error());
  request.codec = c.codec.empty() ? "lossless" : c.codec;
  if (c.block_tokens == 0) request.block_tokens = 1024;
  request.block_bytes = std::size_t{512} << 10;
  auto made = plan(request, {shape->layers, shape->kv_heads, shape->head_dim});
  if (!made) return refuse(made.error());
  const auto run = [&](const run_request& asked, const run_plan& plan) {
    if (asked.on_device) return run_on_device(*shape, asked, plan, threads());
    terrace::context ctx{threads()};
    return shape_job(*shape, asked).run(plan, ctx);
  };
  std::optional<run_result> baseline;
  if (c.baseline) {
    const run_request everything = all_resident(request, *made);
    auto resident = plan(everything, {shape->layers, shape->kv_heads, shape->head_dim});
    if (!resident) return refuse(resident.error());
    auto ran = run(everything, *resident);
    if (!ran) return refuse(ran.error());
    baseline.emplace(std::move(*ran));
  }
  auto ran = run(request, *made);
  if (!ran) return refuse(ran.error());
  if (auto good = is_a_result(*ran, nullptr); !good) return good;
  const run_result* const beside = baseline ? &*baseline : nullptr;
  print(c.json == "-" ? stderr : stdout, *ran, beside, false);
  return c.json.empty() ? true : write_json(c.json, to_json(*ran, beside, false));
}

outcome<bool> run_model(const command_line& c, run_request request) {
  auto weights = llama_weights::load(c.model);
  if (!weights) return refuse(weights.error());
  auto text = text_for(c, weights->config);
  if (!text) return refuse(text.error());
  request.scored_tokens = scored;
  const kv_shape shape{weights->config.num_hidden_layers, weights->config.num_key_value_heads,
                       weights->config.head_dim};

  const std::vector<std::string> codecs =
      c.default_job() ? std::vector<std::string>{"lossless", "q4"} : std::vector<std::string>{c.codec};
  std::vector<run_plan> plans;  // all of them first: nothing runs before everything is known to fit
  for (const std::string& codec : codecs) {
    request.codec = codec;
    auto made = plan(request, shape);
    if (!made) return refuse(made.error());
    plans.push_back(std::move(*made));
  }

  terrace::context ctx{threads()};
  llama model(*weights, [&](std::size_t n, const std::function<void(std::size_t)>& body) {
    ctx.parallel_for(n, [&](std::size_t i) noexcept { body(i); });
  });
  const auto run = [&](const run_request& asked, const run_plan& plan) {
    if (asked.on_device) return run_model_on_device(model, asked, plan, *text, ctx);
    return model_job(model, asked, *text).run(plan, ctx);
  };
  std::optional<run_result> baseline;
  if (c.baseline || c.default_job()) {
    run_request everything = all_resident(request, plans.front());
    everything.control = c.control || (c.default_job() && !request.on_device);
    request.control = false;  // once is enough, and this run is the fastest
    auto made = plan(everything, shape);
    if (!made) return refuse(made.error());
    auto ran = run(everything, *made);
    if (!ran) return refuse(ran.error());
    baseline.emplace(std::move(*ran));
  }

  const bool bytes = weights->config.vocab_size == 256;
  std::FILE* const table = c.json == "-" ? stderr : stdout;
  nlohmann::json all = nlohmann::json::array();
  for (const run_plan& plan : plans) {
    auto ran = run(request, plan);
    if (!ran) return refuse(ran.error());
    if (auto good = is_a_result(*ran, baseline ? &*baseline : nullptr); !good) return good;
    print(table, *ran, baseline ? &*baseline : nullptr, bytes);
    all.push_back(to_json(*ran, baseline ? &*baseline : nullptr, bytes));
  }
  if (c.json.empty()) return true;
  return write_json(c.json, c.default_job() ? all : all.front());
}

}  // namespace

int main(int argc, char** argv) {
  command_line c;
  CLI::App app("Decodes with a KV cache that lives in RAM and on disk, and compares with all in memory.");
  declare(app, c);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    std::cerr << "attention_runner: " << e.what() << '\n';
    return 2;
  }
  const auto stop = [](const runner_error& why) {
    std::cerr << "attention_runner: " << why.sentence << '\n';
    return why.exit_code;
  };
  auto request = request_of(c);
  if (!request) return stop(request.error());
  for (const auto& [option, path] : {std::pair{"--json", c.json}, {"--trace", c.trace}})
    if (auto good = check_writable(option, path); !good) return stop(good.error());
  end_runs_on_signals();
  std::optional<terrace::trace_log> trace;  // outlives the caches that write to it
  if (!c.trace.empty()) request->trace = &trace.emplace(trace_spans);
  auto done = c.shape.empty() ? run_model(c, *request) : run_shape(c, *request);
  if (done && trace) done = write_trace(c.trace, *trace);
  if (done) return 0;
  return stop(done.error());
}
