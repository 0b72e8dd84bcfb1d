#pragma once
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "ladder_types.hpp"
#include "plan.hpp"
#include "runner_error.hpp"
#include "terrace/core/bytes.hpp"

namespace runner {

/// What was given on the command line, as it was given.
struct command_line {
  std::string model = TERRACE_MODEL_DIR;
  std::string prompt, prompt_ids, json, trace;
  std::string codec, policy, prefetch, device = "host", attend = "dense", shape;
  std::string hot, warm, cool, cold, cool_path, cold_path;
  std::uint32_t context = 32768, decode = 64, batch = 1, block_tokens = 0;
  double inject = 0;
  bool baseline = false, control = false;

  /// Without --codec and --shape: the lossless and the q4 ladder, compared with a run that has everything in memory.
  bool default_job() const { return codec.empty() && shape.empty(); }
};

inline void declare(CLI::App& app, command_line& c) {
  app.add_option("--model", c.model, "a Llama-architecture checkpoint: config.json + *.safetensors");
  app.add_option(
      "--shape", c.shape,
      "attention alone over synthetic KV of a known model's shape (llama-3-8b, qwen2.5-14b, ...) or "
      "of LAYERS,Q_HEADS,KV_HEADS,HEAD_DIM");
  app.add_option("--prompt", c.prompt, "a text, as bytes, for a byte-level model");
  app.add_option("--prompt-ids", c.prompt_ids, "a text as token ids, for any other model");
  app.add_option("--context", c.context, "tokens to prefill")->check(CLI::Range(1u, 1u << 24));
  app.add_option("--decode", c.decode, "tokens to decode")->check(CLI::Range(1u, 1u << 20));
  app.add_option("--batch", c.batch, "with --shape: sequences that share the context and decode together")
      ->check(CLI::Range(1u, 1024u));
  app.add_option("--hot", c.hot, "bytes of tier 0, staging included (default: a tenth of the KV)");
  app.add_option("--warm", c.warm, "bytes of the RAM tier (default: half of what is not hot)");
  app.add_option("--cool", c.cool, "bytes of the disk tier (default: the rest)");
  app.add_option("--cold", c.cold,
                 "bytes of the directory tier (default: none, unless --cold-path is given)");
  app.add_option("--cool-path", c.cool_path,
                 "file of the disk tier, created or truncated, removed at exit, "
                 "also by Ctrl-C or SIGTERM");
  app.add_option("--cold-path", c.cold_path, "directory of the cold tier (default: a temporary one)");
  app.add_option("--codec", c.codec, "lossless, q8 or q4: how the tiers below the hot one store blocks");
  std::string policies;
  for (const std::string_view name : any_policy::names)
    policies += (policies.empty() ? "" : ", ") + std::string(name);
  app.add_option("--policy", c.policy,
                 "who leaves a tier first: " + policies +
                     " (default: step_aware, or lru where attention reads a selection)");
  app.add_option("--prefetch", c.prefetch,
                 "layer_ahead, sliding_window, attention_pattern, adaptive or none (default: layer_ahead, or "
                 "adaptive where attention reads a selection)");
  app.add_option(
      "--device", c.device,
      "host, or cuda: the hot tier in device memory and the warm one in pinned RAM, attention on the "
      "device; a model's other layers are computed on the host");
  app.add_option("--attend", c.attend,
                 "dense; top-k=N: in the decode each query head reads the N blocks that may draw most; "
                 "certified=EPS: so many that it misses at most that share of the softmax mass");
  app.add_option("--block-tokens", c.block_tokens,
                 "tokens of a block, a power of two, unless it would be too large (default: 256, or 1024 "
                 "with --shape)")
      ->check(CLI::Range(16u, 4096u));
  app.add_option("--inject", c.inject,
                 "share of the stored copies to make unreadable; lost blocks are computed anew")
      ->check(CLI::Range(0.0, 1.0));
  app.add_flag("--baseline", c.baseline,
               "also run with everything in tier 0, and compare: a model, or a shape with --device cuda");
  app.add_flag("--control", c.control, "also score with all but the nearest tokens hidden, and compare");
  app.add_option("--json", c.json, "write the results there as JSON; - is standard output");
  app.add_option("--trace", c.trace,
                 "write the decode's trace events there, for Perfetto or chrome://tracing");
}

namespace detail {

inline outcome<std::optional<std::size_t>> size_option(const char* name, const std::string& text) {
  if (text.empty()) return std::optional<std::size_t>{};
  const auto size = terrace::parse_size(text);
  if (!size) return refuse(std::string(name) + " needs a size such as 400MiB, not " + in_quotes(text));
  return std::optional<std::size_t>(*size);
}

// Refuses, rather than ignores, options that this version cannot honour, and those that contradict one another.
inline outcome<bool> refuse_what_cannot_be(const command_line& c) {
  if (!(c.inject >= 0 && c.inject <= 1)) return refuse("--inject is a share, between 0 and 1");
  if (c.inject != 0 && c.device == "cuda")
    return refuse("--inject needs --device host: nothing computes lost blocks anew on a device so far");
  if (c.inject != 0 && c.control && !c.baseline)
    return refuse("--inject goes with --control only beside --baseline, which is then what is controlled");
  if (c.device != "host" && c.device != "cuda")
    return refuse("--device knows host and cuda, not " + in_quotes(c.device));
  if (c.device == "cuda" && c.control)
    return refuse("--control needs --device host: a sequence forgets its far tokens there alone so far");
  if (auto mode = parse_attend(c.attend); !mode) return refuse(mode.error());
  if (c.attend != "dense" && c.device == "cuda")
    return refuse("--attend goes with --device cuda as dense alone: blocks are selected on the host so far");
  if (c.attend != "dense" && c.inject != 0)
    return refuse(
        "--inject goes with --attend dense: what read a selection cannot be computed anew as it was");
  if (c.attend != "dense" && c.control && !c.baseline)
    return refuse("--attend " + c.attend +
                  " goes with --control only beside --baseline, which is then what is controlled");
  if ((c.block_tokens & (c.block_tokens - 1)) != 0)
    return refuse("--block-tokens needs a power of two, not '" + std::to_string(c.block_tokens) + "'");
  if (!c.codec.empty() && find_ladder(c.codec) == nullptr)
    return refuse("--codec knows lossless, q8 and q4, not " + in_quotes(c.codec));
  if (!c.policy.empty() && !any_policy::index_of(c.policy))
    return refuse("--policy does not know " + in_quotes(c.policy) + ": see --help");
  constexpr std::array<std::string_view, 5> prefetchers{"layer_ahead", "sliding_window", "attention_pattern",
                                                        "adaptive", "none"};
  if (!c.prefetch.empty() &&
      std::find(prefetchers.begin(), prefetchers.end(), c.prefetch) == prefetchers.end())
    return refuse("--prefetch knows layer_ahead, sliding_window, attention_pattern, adaptive and none, not " +
                  in_quotes(c.prefetch));
  if (!c.prefetch.empty() && c.prefetch != "layer_ahead" && c.device == "cuda")
    return refuse(
        "--prefetch goes with --device cuda as layer_ahead alone: there windows come in the order in which "
        "layers read them");
  if (!c.prompt.empty() && !c.prompt_ids.empty()) return refuse("give --prompt or --prompt-ids, not both");
  if (c.shape.empty() && c.batch != 1)
    return refuse("--batch needs --shape: a model decodes one sequence at a time");
  if (!c.shape.empty() && (!c.prompt.empty() || !c.prompt_ids.empty() || c.control))
    return refuse("--shape has no text and no model: it goes without --prompt and --control");
  if (!c.shape.empty() && c.baseline && c.device != "cuda")
    return refuse("--shape has no text to compare: it goes with --baseline on --device cuda alone");
  return true;
}

}  // namespace detail

/// The request of a run, with the sizes that were given; or why there can be none.
inline outcome<run_request> request_of(const command_line& c) {
  if (auto possible = detail::refuse_what_cannot_be(c); !possible) return refuse(possible.error());
  run_request r;
  r.context_tokens = c.context;
  r.decode_tokens = c.decode;
  r.batch = c.batch;
  r.cool_path = c.cool_path;
  r.cold_path = c.cold_path;
  r.attend = *parse_attend(c.attend);
  r.prefetch = !c.prefetch.empty() ? c.prefetch : r.attend.selects() ? "adaptive" : "layer_ahead";
  if (c.block_tokens != 0) r.block_tokens = c.block_tokens;
  r.control = c.control;
  r.inject = c.inject;
  r.on_device = c.device == "cuda";
  // Dense attention reads the whole context in a cycle, of which lru keeps nothing that is of use.
  const std::string_view by_default = r.attend.selects() ? "lru" : "step_aware";
  r.policy = any_policy::index_of(c.policy.empty() ? by_default : std::string_view(c.policy)).value_or(0);
  auto hot = detail::size_option("--hot", c.hot), warm = detail::size_option("--warm", c.warm),
       cool = detail::size_option("--cool", c.cool), cold = detail::size_option("--cold", c.cold);
  for (const auto* size : {&hot, &warm, &cool, &cold})
    if (!*size) return refuse(size->error());
  r.hot = *hot;
  r.warm = *warm;
  r.cool = *cool;
  r.cold = *cold;
  return r;
}

}  // namespace runner
