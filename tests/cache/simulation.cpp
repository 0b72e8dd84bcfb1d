// The simulator over real caches: no law may be broken whatever is done and whatever fails. The long run is
// tests/simulator/run.
#include <algorithm>
#include <string>

#include "catch.hpp"
#include "simulator/ladders.hpp"

using namespace terrace;

namespace {

constexpr std::size_t each = 10'000;

void run(const simulated::named_ladder& ladder, std::uint64_t first, std::uint64_t seeds,
         const simulated_mix& mix = usual_mix) {
  simulation_counts all;
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    const auto program = random_program(seed, each, mix);
    const simulation_result result = simulate(ladder.make, seed, program);
    if (!result.well()) FAIL(ladder.name << ", " << explain_failure(ladder.make, seed, program));
    all += result.counts;
  }
  // It did look at something.
  CHECK(all.operations == seeds * each);
  CHECK(all.checked > all.operations / 20);
  CHECK(all.faults > 0);
  CHECK(all.lost > 0);
  CHECK(all.found > 0);
  CHECK(all.restored > 0);
  CHECK(all.recomputed > 0);
  CHECK(all.damaged > 0);
  CHECK(all.adopted > 0);
  CHECK(all.pages > 0);
  CHECK(all.streams > 0);
  CHECK(all.awaited > 0);
  CHECK(all.suspended > 0);
  CHECK(all.resumed > 0);
}

}  // namespace

TEST_CASE("no law is broken, whatever is done to a cache and whatever fails") {
  for (const auto& ladder : simulated::ladders) run(ladder, 1'000'000, 24);
}

TEST_CASE("programs that have broken a law do so no more") {
  // A block that a flush had written to the second of two tiers that keep was moved there once more. The simulator knew
  // fewer verbs then, and the mix decides what a seed means.
  simulated_mix then = usual_mix;
  std::fill(then.begin() + static_cast<std::ptrdiff_t>(simulated_verb::restore), then.end(),
            std::uint16_t{0});
  for (const auto& ladder : simulated::ladders) {
    const auto result = simulate(ladder.make, 403'980, random_program(403'980, 5000, then));
    INFO(ladder.name << ": " << result.violation);
    CHECK(result.well());
  }
}

TEST_CASE("without faults nothing is lost") {
  simulated_mix calm = usual_mix;
  calm[static_cast<std::size_t>(simulated_verb::fault)] = 0;
  calm[static_cast<std::size_t>(simulated_verb::crash)] = 0;
  calm[static_cast<std::size_t>(simulated_verb::sleep)] = 0;
  for (const auto& ladder : simulated::ladders) {
    const auto result = simulate(ladder.make, 7, random_program(7, 3 * each, calm));
    INFO(result.violation);
    CHECK(result.well());
    CHECK(result.counts.faults == 0);
    CHECK(result.counts.checked > each / 10);
  }
}

TEST_CASE("a simulation is its seed: it can be done again, and be written down") {
  const auto program = random_program(5, each);
  const auto again = program_from(to_text(program));
  REQUIRE(again);
  CHECK(*again == program);
  CHECK_FALSE(program_from("append 1 2"));
  CHECK_FALSE(program_from("appendix 1 2 3"));
  const auto& ladder = simulated::ladders[0];
  const auto first = simulate(ladder.make, 5, program), second = simulate(ladder.make, 5, *again);
  REQUIRE(first.well());
  CHECK(first.counts.checked == second.counts.checked);
  CHECK(first.counts.lost == second.counts.lost);
  CHECK(first.counts.faults == second.counts.faults);
  CHECK(random_program(6, each) != program);
}

TEST_CASE("a failing program is made as short as it can be") {
  const auto program = random_program(1, 1000);
  const auto count = [](const simulated_program& p, simulated_verb v) {
    return std::count_if(p.begin(), p.end(), [v](const simulated_operation& o) { return o.what == v; });
  };
  // Fails where there are two flushes and a fork.
  const auto fails = [&](const simulated_program& p) {
    return count(p, simulated_verb::flush) >= 2 && count(p, simulated_verb::fork) >= 1;
  };
  REQUIRE(fails(program));
  const auto least = shrink(program, fails);
  CHECK(least.size() == 3);
  CHECK(fails(least));
}

TEST_CASE("what a process of its own says, how it ends, and that it ends, are told") {
  CHECK(run_isolated([] { return std::string(100'000, 'x'); }, 10).said.size() == 100'000);
  const auto broken = run_isolated(
      [] {
        TERRACE_ASSERT(false, "this is broken");
        return std::string();
      },
      10);
  CHECK_FALSE(broken.completed);
  CHECK(broken.said.find("this is broken") != std::string::npos);
}
