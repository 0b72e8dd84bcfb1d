#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "terrace/testing/isolated.hpp"
#include "terrace/testing/simulated_ladder.hpp"
#include "terrace/testing/simulated_program.hpp"
#include "terrace/testing/simulator.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Makes the cache of a simulation from its seed.
using make_ladder = std::function<std::unique_ptr<simulated_ladder>(std::uint64_t seed)>;

/// How a simulation ended.
struct simulation_result {
  std::string violation;  ///< the law that does not hold, or what ended the process; empty: all is well
  simulation_counts counts;
  bool well() const noexcept { return violation.empty(); }
};

/// Runs a program over the ladder of that seed, in a process of its own that may take `seconds`.
inline simulation_result simulate(const make_ladder& make, std::uint64_t seed,
                                  const simulated_program& program, unsigned seconds = 60) {
  const isolated_outcome outcome = run_isolated(
      [&] {
        auto* const ladder = make(seed).release();  // a broken cache is not taken down
        auto* const sim = new simulator(*ladder);
        const std::string violation = sim->run(program);
        std::ostringstream text;
        for (const auto member : simulation_counts::all) text << sim->counts.*member << ' ';
        text << violation;
        return text.str();
      },
      seconds);
  simulation_result result;
  if (!outcome.completed) {
    result.violation = outcome.said;
    return result;
  }
  std::istringstream text(outcome.said);
  for (const auto member : simulation_counts::all) text >> result.counts.*member;
  text.get();
  std::getline(text, result.violation, '\0');
  return result;
}

/// The shortest program that can be found from a failing one, and how it fails: "seed N: law", then the program.
inline std::string explain_failure(const make_ladder& make, std::uint64_t seed,
                                   const simulated_program& failing, unsigned seconds = 1) {
  const auto result = simulate(make, seed, failing, 20);
  const simulated_program least =
      shrink(failing, [&](const simulated_program& p) { return !simulate(make, seed, p, seconds).well(); });
  const auto shortest = simulate(make, seed, least, 20);
  return "seed " + std::to_string(seed) + ": " + result.violation + "\nmade shorter, " +
         std::to_string(least.size()) + " operations: " + shortest.violation + "\n" + to_text(least);
}

}  // namespace TERRACE_EX
}  // namespace terrace
