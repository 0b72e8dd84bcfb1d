// Decodes a real text with a real model whose KV cache lives in RAM and on disk, and shows that the answers
// are those of a run that has everything in memory. The path of a block: ladder.hpp (reserve, attend, commit)
// > terrace.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "job.hpp"
#include "plan.hpp"
#include "prompt.hpp"
#include "report.hpp"

namespace {

using runner::outcome;
using runner::refuse;

struct command_line {
  std::string model = TERRACE_MODEL_DIR;
  std::string prompt, prompt_ids, json;
  std::string codec, policy = "lru", prefetch = "layer_ahead", device = "host", attend = "dense", shape,
                     trace;
  std::string hot, warm, cool, cold, cool_path, cold_path;
  std::uint32_t context = 32768, decode = 64, batch = 1;
  double inject = 0;
  bool baseline = false;
};

void declare(CLI::App& app, command_line& c) {
  app.add_option("--model", c.model, "a Llama-architecture checkpoint: config.json + *.safetensors");
  app.add_option("--prompt", c.prompt, "a text, as bytes, for a byte-level model");
  app.add_option("--prompt-ids", c.prompt_ids, "a text as token ids, for any other model");
  app.add_option("--context", c.context, "tokens to prefill")->check(CLI::Range(1u, 1u << 24));
  app.add_option("--decode", c.decode, "tokens to decode")->check(CLI::Range(1u, 1u << 20));
  app.add_option("--batch", c.batch, "sequences at once; 1 so far");
  app.add_option("--hot", c.hot, "bytes of tier 0, staging included (default: a tenth of the KV)");
  app.add_option("--warm", c.warm, "bytes of the RAM tier");
  app.add_option("--cool", c.cool, "bytes of the disk tier");
  app.add_option("--cold", c.cold, "bytes of the directory tier; none so far");
  app.add_option("--cool-path", c.cool_path, "file of the disk tier, created or truncated, removed at exit");
  app.add_option("--cold-path", c.cold_path, "directory of the cold tier; none so far");
  app.add_option("--codec", c.codec, "lossless or q8: how the tiers below the hot one store blocks");
  app.add_option(
      "--policy", c.policy,
      "who leaves a tier first: lru, step_aware, two_queue, s3_fifo, sieve, fifo, attention_weighted");
  app.add_option("--prefetch", c.prefetch, "layer_ahead or none");
  app.add_option("--device", c.device, "host");
  app.add_option("--attend", c.attend, "dense");
  app.add_option("--shape", c.shape, "attention alone over a known model's shape; not yet");
  app.add_option("--inject", c.inject, "share of stored copies to make unreadable; not yet");
  app.add_flag("--baseline", c.baseline, "also run with everything in tier 0, and compare");
  app.add_option("--json", c.json, "write the results there as JSON; - is standard output");
  app.add_option("--trace", c.trace, "write trace events there; not yet");
}

// What design names and this version cannot do yet is refused, never ignored.
outcome<bool> refuse_what_is_not_there(const command_line& c) {
  if (!c.shape.empty()) return refuse("--shape is not available yet: give a --model");
  if (!c.trace.empty()) return refuse("--trace is not available yet");
  if (c.inject != 0) return refuse("--inject is not available yet");
  if (c.batch != 1) return refuse("--batch is not available yet: one sequence at a time");
  if (!c.cold_path.empty() || (!c.cold.empty() && c.cold != "0"))
    return refuse("the cold tier is not available yet: use --hot, --warm and --cool");
  if (c.codec == "q4") return refuse("--codec q4 is not available yet: use lossless or q8");
  if (!c.codec.empty() && c.codec != "lossless" && c.codec != "q8")
    return refuse("--codec knows lossless and q8, not " + runner::in_quotes(c.codec));
  if (!runner::any_policy::index_of(c.policy))
    return refuse("--policy does not know " + runner::in_quotes(c.policy) + ": see --help");
  if (c.prefetch != "layer_ahead" && c.prefetch != "none")
    return refuse("--prefetch knows layer_ahead and none, not " + runner::in_quotes(c.prefetch));
  if (c.device != "host") return refuse("--device knows host, not " + runner::in_quotes(c.device));
  if (c.attend != "dense") return refuse("--attend knows dense, not " + runner::in_quotes(c.attend));
  if (!c.prompt.empty() && !c.prompt_ids.empty()) return refuse("give --prompt or --prompt-ids, not both");
  return true;
}

outcome<std::optional<std::size_t>> size_option(const char* name, const std::string& text) {
  if (text.empty()) return std::optional<std::size_t>{};
  const auto size = terrace::parse_size(text);
  if (!size)
    return refuse(std::string(name) + " needs a size such as 400MiB, not " + runner::in_quotes(text));
  return std::optional<std::size_t>(*size);
}

outcome<runner::run_request> request_of(const command_line& c) {
  runner::run_request r;
  r.context_tokens = c.context;
  r.decode_tokens = c.decode;
  r.cool_path = c.cool_path;
  r.prefetch = c.prefetch;
  r.policy = runner::any_policy::index_of(c.policy).value_or(0);
  auto hot = size_option("--hot", c.hot), warm = size_option("--warm", c.warm),
       cool = size_option("--cool", c.cool);
  if (!hot) return refuse(hot.error());
  if (!warm) return refuse(warm.error());
  if (!cool) return refuse(cool.error());
  r.hot = *hot;
  r.warm = *warm;
  r.cool = *cool;
  return r;
}

outcome<std::vector<std::uint32_t>> text_for(const command_line& c, const runner::model_config& model) {
  const std::size_t wanted = std::size_t{c.context} + runner::scored_tokens;
  const std::string prompt = !c.prompt.empty() || !c.prompt_ids.empty()
                                 ? c.prompt
                                 : std::string(TERRACE_MODEL_DIR) + "/heldout_bible.txt";
  auto text = c.prompt_ids.empty() ? runner::load_prompt_bytes(prompt, model.vocab_size, wanted)
                                   : runner::load_prompt_ids(c.prompt_ids, model.vocab_size, wanted);
  if (text && text->size() < wanted)
    return refuse("the prompt has " + std::to_string(text->size()) + " tokens, and --context " +
                  std::to_string(c.context) + " and the " + std::to_string(runner::scored_tokens) +
                  " that are scored need " + std::to_string(wanted));
  return text;
}

outcome<bool> write_json(const std::string& path, const nlohmann::json& value) {
  const std::string text = value.dump(2) + "\n";
  if (path == "-") {
    std::cout << text << std::flush;
  } else {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << text << std::flush;
    if (!file) return refuse(runner::runner_error{"--json cannot be written: " + runner::in_quotes(path), 1});
  }
  return true;
}

outcome<bool> run_all(const command_line& c) {
  if (auto there = refuse_what_is_not_there(c); !there) return there;
  auto request = request_of(c);
  if (!request) return refuse(request.error());
  auto weights = runner::llama_weights::load(c.model);
  if (!weights) return refuse(weights.error());
  auto text = text_for(c, weights->config);
  if (!text) return refuse(text.error());

  const bool default_job = c.codec.empty();
  const std::vector<std::string> codecs =
      default_job ? std::vector<std::string>{"lossless", "q8"} : std::vector<std::string>{c.codec};
  std::vector<runner::run_plan> plans;  // all of them first: nothing runs before everything is known to fit
  for (const std::string& codec : codecs) {
    request->codec = codec;
    auto made = runner::plan(*request, weights->config);
    if (!made) return refuse(made.error());
    plans.push_back(std::move(*made));
  }

  terrace::context ctx{{.codec_threads = std::max(1u, std::thread::hardware_concurrency() - 1)}};
  runner::llama model(*weights, [&](std::size_t n, const std::function<void(std::size_t)>& body) {
    ctx.parallel_for(n, [&](std::size_t i) noexcept { body(i); });
  });
  std::optional<runner::run_result> baseline;
  if (c.baseline || default_job) {
    runner::run_request everything = *request;
    everything.codec = "resident";
    everything.hot.reset();
    everything.block_tokens = plans.front().layout.groups[0].tokens;  // what is compared is cut alike
    auto made = runner::plan(everything, weights->config);
    if (!made) return refuse(made.error());
    auto ran = runner::run(*made, everything, model, ctx, *text);
    if (!ran) return refuse(ran.error());
    baseline.emplace(std::move(*ran));
  }

  const bool bytes = weights->config.vocab_size == 256;
  std::FILE* const table = c.json == "-" ? stderr : stdout;
  nlohmann::json all = nlohmann::json::array();
  for (const runner::run_plan& plan : plans) {
    auto ran = runner::run(plan, *request, model, ctx, *text);
    if (!ran) return refuse(ran.error());
    runner::print(table, *ran, baseline ? &*baseline : nullptr, bytes);
    all.push_back(runner::to_json(*ran, baseline ? &*baseline : nullptr, bytes));
  }
  if (c.json.empty()) return true;
  return write_json(c.json, default_job ? all : all.front());
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
  auto done = run_all(c);
  if (done) return 0;
  std::cerr << "attention_runner: " << done.error().sentence << '\n';
  return done.error().exit_code;
}
