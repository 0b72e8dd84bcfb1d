#include "examples/workplace.hpp"

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"

using nlohmann::json;

namespace {

struct replay_workplace : workplace {
  json results(const std::string& arguments) const {
    const outcome o = run(arguments + " --json -");
    CAPTURE(arguments, o.err);
    REQUIRE(o.status == 0);
    return json::parse(o.out);
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder / name, std::ios::binary) << text;
  }
};

void check_refused(const workplace::outcome& o, int status, const std::string& says) {
  check_refused(o, "trace_replay", status, says);
}

// Two conversations and a stranger: A A' B A'' with two blocks in the tier.
const std::string small_trace =
    R"({"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]})"
    "\n"
    R"({"timestamp": 5, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]})"
    "\n\n"
    R"({"timestamp": 9, "input_length": 20, "output_length": 1, "hash_ids": [9]})"
    "\n"
    R"({"timestamp": 12, "input_length": 20, "output_length": 1, "hash_ids": []})"
    "\n"
    R"({"timestamp": 20, "input_length": 1600, "output_length": 5, "hash_ids": [1, 2, 3]})"
    "\n";

// Data of a third party, which is no part of the project: from $TERRACE_TRACES, or from a folder beside the project.
std::string conversation_trace() {
  const char* const folder = std::getenv("TERRACE_TRACES");
  return std::string(folder != nullptr ? folder : TERRACE_MODEL_DIR "/../../../shared/traces") +
         "/conversation.jsonl";
}

}  // namespace

TEST_CASE("a trace that can be followed by hand") {
  const replay_workplace here;
  here.write("t.jsonl", small_trace);
  const json all = here.results("--trace t.jsonl --policy lru,belady --capacity 2,5");
  REQUIRE(all.size() == 4);
  const json& lru = all[0];
  CHECK(lru.at("policy") == "lru");
  CHECK(lru.at("capacity") == 2);
  CHECK(lru.at("requests") == 5);
  CHECK(lru.at("accesses") == 9);
  CHECK(lru.at("hits") == 2);  // 1 2 of the second request
  CHECK(lru.at("hit_ratio") == 2.0 / 9);
  CHECK(lru.at("prefix_hits") == 2);
  CHECK(lru.at("prefix_hit_ratio") == 2.0 / 9);
  CHECK(lru.at("evictions") == 5);
  CHECK(lru.at("ns_per_access").get<double>() > 0);
  // The optimum lets 2 go for 3, and 3 for 9, keeping 1; or the like.
  CHECK(all[1].at("policy") == "belady");
  CHECK(all[1].at("hits") == 3);
  CHECK(all[1].at("evictions") == 4);
  for (const json& large : {all[2], all[3]}) {
    CHECK(large.at("hits") == 5);
    CHECK(large.at("prefix_hits") == 5);
    CHECK(large.at("evictions") == 0);
  }
}

TEST_CASE("a prefix hit counts only before the request's first miss") {
  const replay_workplace here;
  // fifo: 1 leaves when 4 comes, so that the last request misses 1 and then hits 2.
  here.write("t.jsonl",
             "{\"hash_ids\": [1, 2, 3]}\n{\"hash_ids\": [4]}\n{\"hash_ids\": [2]}\n{\"hash_ids\": [1, 3]}\n");
  const json r = here.results("--trace t.jsonl --policy fifo --capacity 3").at(0);
  CHECK(r.at("hits") == 2);
  CHECK(r.at("prefix_hits") == 1);
}

TEST_CASE("a ladder: hits of each tier, and what they cost") {
  const replay_workplace here;
  here.write("t.jsonl", small_trace);
  const json all = here.results(
      "--trace t.jsonl --policy lru,belady --ladder 2,3 --block-size 1MiB --bandwidth 1,0.5 --prefill "
      "512000");
  const json& r = all.at(0);
  CHECK(r.at("capacity") == 5);
  CHECK(r.at("tiers") == json::parse(R"([{"capacity": 2, "hits": 2}, {"capacity": 3, "hits": 3}])"));
  const double seconds = 2 * 1048576 / 1e9 + 3 * 1048576 / 0.5e9 + 4 * 512.0 / 512000;
  CHECK(r.at("modelled_ms_per_request").get<double>() == Approx(seconds / 5 * 1e3));
  CHECK(all.at(1).at("tiers").at(0).at("hits") == 3);
  CHECK(all.at(1).at("hits") == 5);
}

TEST_CASE("generated workloads: the same for the same seed, no policy beats the optimum") {
  const replay_workplace here;
  const std::string kind = GENERATE("chat", "agents", "scan", "random");
  CAPTURE(kind);
  const std::string job = "--generate " + kind + " --requests 300 --policy all --capacity 100,300";
  json once = here.results(job), again = here.results(job);
  const json other = here.results(job + " --seed 2");
  for (json* all : {&once, &again})
    for (json& r : *all) r.erase("ns_per_access");
  CHECK(once == again);
  CHECK((other.at(0).at("hits") == once.at(0).at("hits")) == (kind == "scan"));
  std::map<std::size_t, std::uint64_t> optimum;
  for (const json& r : once)
    if (r.at("policy") == "belady") optimum[r.at("capacity")] = r.at("hits");
  for (const json& r : once) {
    CAPTURE(r.dump());
    CHECK(r.at("hits") <= optimum.at(r.at("capacity")));
    CHECK(r.at("prefix_hits") <= r.at("hits"));
    CHECK(r.at("requests") == 300);
  }
}

TEST_CASE("bad arguments: one sentence, status 2") {
  const replay_workplace here;
  here.write("t.jsonl", small_trace);
  const auto [arguments, says] = GENERATE(table<std::string, std::string>(
      {{"--trace t.jsonl --policy lru", "one of --capacity and --ladder"},
       {"--trace t.jsonl --policy lru --capacity 2 --ladder 2", "one of --capacity and --ladder"},
       {"--policy lru --capacity 2", "one of --trace and --generate"},
       {"--trace t.jsonl --generate chat --policy lru --capacity 2", "one of --trace and --generate"},
       {"--trace t.jsonl --policy lru --capacity 0", "at least 1 block"},
       {"--trace t.jsonl --policy lru --capacity -1", "less than 2^32"},
       {"--trace t.jsonl --policy lru --capacity two", "two"},
       {"--trace t.jsonl --policy lru --ladder 1,1,1,1,1,1,1", "at most six tiers"},
       {"--trace t.jsonl --policy lru --ladder 1,2 --bandwidth 0", "above 0"},
       {"--trace t.jsonl --policy lru --ladder 1,2 --block-size none", "--block-size"},
       {"--trace t.jsonl --policy clock --capacity 2", "'clock'"},
       {"--trace t.jsonl --capacity 2", "--policy"},
       {"--trace missing --policy lru --capacity 2", "missing"},
       {"--generate poems --policy lru --capacity 2", "'poems'"},
       {"--generate chat --policy lru --capacity 2 --nonsense", "--nonsense"}}));
  CAPTURE(arguments);
  check_refused(here.run(arguments), 2, says);
}

TEST_CASE("a bad line of the trace: its number, status 1") {
  const replay_workplace here;
  const auto [line, says] = GENERATE(table<std::string, std::string>(
      {{"{\"hash_ids\": [1, 2", "line 3 of the trace is not a JSON object"},
       {"[1, 2]", "line 3 of the trace is not a JSON object"},
       {"{\"ids\": [1]}", "line 3 of the trace has no array hash_ids"},
       {"{\"hash_ids\": 7}", "line 3 of the trace has no array hash_ids"},
       {"{\"hash_ids\": [1, 2.5]}", "line 3 of the trace has a hash id that is not an integer"},
       {"{\"hash_ids\": [\"1\"]}", "line 3 of the trace has a hash id that is not an integer"},
       {"{\"timestamp\": \"now\", \"hash_ids\": [1]}", "line 3 of the trace has a timestamp"}}));
  here.write("t.jsonl", "{\"hash_ids\": [1]}\n\n" + line + "\n{\"hash_ids\": [1]}\n");
  check_refused(here.run("--trace t.jsonl --policy lru --capacity 2"), 1, says);
}

TEST_CASE("an empty trace has no ratio, and no division by nothing") {
  const replay_workplace here;
  here.write("t.jsonl", "");
  for (const json& r : here.results("--trace t.jsonl --policy all --capacity 2")) {
    CHECK(r.at("requests") == 0);
    CHECK(r.at("hit_ratio") == 0.0);
    CHECK(r.at("ns_per_access") == 0.0);
  }
}

TEST_CASE("results go to a file, and one that cannot be written is said") {
  const replay_workplace here;
  here.write("t.jsonl", small_trace);
  const auto o = here.run("--trace t.jsonl --policy lru --capacity 2 --json r.json");
  CHECK(o.status == 0);
  CHECK(o.out.find("lru") != std::string::npos);
  CHECK(json::parse(contents(here.folder / "r.json")).at(0).at("hits") == 2);
  const auto bad = here.run("--trace t.jsonl --policy lru --capacity 2 --json no/such/place");
  CHECK(bad.status == 1);
  CHECK(bad.err.find("no/such/place") != std::string::npos);
}

TEST_CASE("--help says what there is") {
  const replay_workplace here;
  const auto o = here.run("--help");
  CHECK(o.status == 0);
  for (const char* word : {"--trace", "--generate", "belady", "prefix_aware", "chat", "--ladder"})
    CHECK(o.out.find(word) != std::string::npos);
}

TEST_CASE("the conversation trace: known hit ratios, and prefix_aware beside lru") {
  const std::string trace = conversation_trace();
  if (!std::filesystem::exists(trace)) {
    WARN("skipped: " + trace +
         " is not there; it is FAST25-release/traces/conversation_trace.jsonl of kvcache-ai/Mooncake");
    return;
  }
  const replay_workplace here;
  const std::vector<std::size_t> capacities{1000, 10000, 30000, 50000, 100000, 1000000};
  const std::map<std::string, std::vector<double>> known{
      {"lru", {.0445, .2112, .3257, .3546, .3637, .3664}},
      {"fifo", {.0435, .1865, .3021, .3400, .3593, .3664}},
      {"two_queue", {.0541, .1849, .3062, .3423, .3593, .3664}},
      {"s3_fifo", {.0556, .1955, .3061, .3501, .3625, .3664}},
      {"sieve", {.0481, .1318, .2759, .3438, .3631, .3664}},
      {"belady", {.1906, .3664, .3664, .3664, .3664, .3664}}};
  std::map<std::string, std::map<std::size_t, double>> ratios;
  for (const json& r :
       here.results("--trace " + trace + " --policy all --capacity 1000,10000,30000,50000,100000,1000000")) {
    CHECK(r.at("accesses") == 288500);
    ratios[r.at("policy")][r.at("capacity")] = r.at("hit_ratio");
  }
  for (const auto& [policy, expected] : known)
    for (std::size_t n = 0; n < capacities.size(); ++n) {
      CAPTURE(policy, capacities[n]);
      CHECK(ratios[policy][capacities[n]] == Approx(expected[n]).margin(.00005).epsilon(0));
    }
  for (const std::size_t capacity : capacities) {
    CAPTURE(capacity);
    CHECK(ratios["prefix_aware"][capacity] > ratios["lru"][capacity] - .005);
    CHECK(ratios["prefix_aware"][capacity] <= ratios["belady"][capacity]);
  }
  CHECK(ratios["prefix_aware"][10000] > ratios["lru"][10000] + .02);
}
