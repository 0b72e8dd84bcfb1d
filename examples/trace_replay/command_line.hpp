#pragma once
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "generate.hpp"
#include "refusal.hpp"
#include "terrace/cache/residency.hpp"
#include "terrace/core/bytes.hpp"
#include "tiers.hpp"

namespace replay {

/// What was given on the command line, as it was given.
struct command_line {
  std::string trace, generate, json, block_size = "64MiB";
  std::vector<std::string> policies;
  std::vector<std::uint64_t> capacities, ladder;
  std::vector<double> bandwidths{3000, 50, 6, 2};
  double prefill = 8000;
  std::uint64_t requests = 10000, seed = 1;
};

/// The assumed costs of a run of a ladder.
struct cost_model {
  double block_bytes = 0;
  std::vector<double>
      bandwidths;      ///< GB/s to bring a block from a tier; the last one serves all farther tiers
  double prefill = 0;  ///< tokens a second
};

inline void declare(CLI::App& app, command_line& c) {
  std::string names, kinds;
  for (const known_policy& p : policies) names += std::string(p.name) + ", ";
  for (const std::string_view kind : workloads) kinds += (kinds.empty() ? "" : ", ") + std::string(kind);
  app.add_option("--trace", c.trace,
                 "a trace, one JSON object a line, with the block ids of a request in hash_ids");
  app.add_option("--generate", c.generate, "instead of a trace: " + kinds);
  app.add_option("--requests", c.requests, "with --generate: how many")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{10'000'000}));
  app.add_option("--seed", c.seed, "with --generate: of the random numbers");
  app.add_option("--policy", c.policies, names + "belady (the optimum, which knows what comes), or all")
      ->delimiter(',')
      ->required();
  app.add_option("--capacity", c.capacities, "blocks of the one tier; one run for each that is given")
      ->delimiter(',');
  app.add_option("--ladder", c.ladder, "blocks of each of several tiers, nearest first")->delimiter(',');
  app.add_option("--bandwidth", c.bandwidths,
                 "with --ladder: GB/s at which each tier's blocks are had (default: 3000, 50, 6, 2)")
      ->delimiter(',');
  app.add_option("--block-size", c.block_size,
                 "with --ladder: bytes of a block (default: 64MiB, 512 tokens of llama-3-8b)");
  app.add_option("--prefill", c.prefill,
                 "with --ladder: tokens a second at which lost blocks are computed anew (default: 8000)");
  app.add_option("--json", c.json, "write the results there as JSON; - is standard output");
}

namespace detail {

inline outcome<std::vector<std::string>> policies_of(const command_line& c) {
  std::vector<std::string> out;
  for (const std::string& name : c.policies) {
    const auto is = [&](const known_policy& p) { return p.name == name; };
    if (name == "all") {
      for (const known_policy& p : policies) out.emplace_back(p.name);
      out.emplace_back(belady_name);
    } else if (name == belady_name || std::any_of(policies.begin(), policies.end(), is)) {
      out.push_back(name);
    } else {
      return refuse("--policy does not know '" + name + "': see --help");
    }
  }
  return out;
}

}  // namespace detail

/// What there is to run.
struct job {
  std::vector<std::string> policies;
  std::vector<std::vector<std::size_t>> runs{};  ///< capacities of the tiers of each
  bool is_ladder = false;
  cost_model costs;
};

/// The job that the command line asks for, or why there can be none.
inline outcome<job> job_of(const command_line& c) {
  if (c.trace.empty() == c.generate.empty()) return refuse("give one of --trace and --generate");
  if (!c.generate.empty() && std::find(workloads.begin(), workloads.end(), c.generate) == workloads.end())
    return refuse("--generate does not know '" + c.generate + "': see --help");
  if (c.capacities.empty() == c.ladder.empty()) return refuse("give one of --capacity and --ladder");
  constexpr std::uint64_t most = 0xfffffff0u;  // slots have indices of 32 bits
  std::uint64_t sum = 0;
  for (const std::uint64_t blocks : c.capacities.empty() ? c.ladder : c.capacities) {
    sum = c.capacities.empty() ? sum + std::min(blocks, most + 1) : blocks;
    if (blocks == 0 || sum > most)
      return refuse("a tier needs at least 1 block, and all together less than 2^32");
  }
  if (c.ladder.size() > terrace::max_tiers) return refuse("--ladder takes at most six tiers");
  const auto positive = [](double x) { return x > 0 && std::isfinite(x); };
  if (!std::all_of(c.bandwidths.begin(), c.bandwidths.end(), positive) || !positive(c.prefill))
    return refuse("--bandwidth and --prefill need numbers above 0");
  const auto block = terrace::parse_size(c.block_size);
  if (!block || *block == 0) return refuse("--block-size needs a size such as 64MiB");
  auto names = detail::policies_of(c);
  if (!names) return terrace::failure<refusal>{names.error()};

  job out{.policies = std::move(*names),
          .is_ladder = !c.ladder.empty(),
          .costs = {static_cast<double>(*block), c.bandwidths, c.prefill}};
  if (out.is_ladder) out.runs.emplace_back(c.ladder.begin(), c.ladder.end());
  for (const std::uint64_t blocks : c.capacities) out.runs.push_back({static_cast<std::size_t>(blocks)});
  return out;
}

}  // namespace replay
