// The long run of the simulator; tests/simulator/run drives it.
//   simulator [OPERATIONS [SEEDS [FIRST]]]        so many operations in all, over so many seeds
//   simulator --replay LADDER SEED < PROGRAM      one program again, as a failure prints it
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>
#include <string>

#include "ladders.hpp"

namespace {

std::uint64_t number(const char* text, std::uint64_t otherwise) {
  std::uint64_t n = otherwise;
  if (text != nullptr) std::from_chars(text, text + std::strlen(text), n);
  return n;
}

int replay(std::string_view name, std::uint64_t seed) {
  const std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  const auto program = terrace::program_from(text);
  for (const auto& ladder : simulated::ladders) {
    if (ladder.name != name || !program) continue;
    const auto result = terrace::simulate(ladder.make, seed, *program);
    std::printf("%s\n", result.well() ? "all is well" : result.violation.c_str());
    return result.well() ? 0 : 1;
  }
  std::fprintf(stderr, "simulator: no such ladder, or the program is none\n");
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 3 && std::string_view(arguments[1]) == "--replay")
    return replay(arguments[2], number(arguments[3], 0));
  const std::uint64_t operations = number(count > 1 ? arguments[1] : nullptr, 1'000'000);
  const std::uint64_t seeds = number(count > 2 ? arguments[2] : nullptr, 1000);
  const std::uint64_t first = number(count > 3 ? arguments[3] : nullptr, 1);
  const std::uint64_t each = seeds == 0 ? 0 : (operations + seeds - 1) / seeds;
  terrace::simulation_counts all;
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    const auto& ladder = simulated::ladders[seed % simulated::ladders.size()];
    const auto program = terrace::random_program(seed, each);
    const auto result = terrace::simulate(ladder.make, seed, program, 20);
    if (!result.well()) {
      std::printf("ladder %s, %s\n", std::string(ladder.name).c_str(),
                  terrace::explain_failure(ladder.make, seed, program).c_str());
      return 1;
    }
    all += result.counts;
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  const auto n = [](std::uint64_t x) { return static_cast<unsigned long long>(x); };
  std::printf("%llu operations over %llu seeds in %.1f s: %.0f a second\n", n(all.operations), n(seeds),
              took.count(), static_cast<double>(all.operations) / took.count());
  std::printf("%llu acquires, %llu blocks compared, 0 wrong; %llu lost, %llu refused, %llu faults\n",
              n(all.acquires), n(all.checked), n(all.lost), n(all.refused), n(all.faults));
  std::printf(
      "%llu names made durable, %llu found again, 0 missing; %llu blocks computed anew, %llu of them by "
      "other sequences, %llu copies reported damaged\n",
      n(all.durable), n(all.found), n(all.restored), n(all.recomputed), n(all.damaged));
  std::printf(
      "%llu pages of batches compared, 0 wrong; %llu streams, 0 wrong; %llu reservations waited for, %llu "
      "open blocks "
      "let go, %llu sequences resumed; ",
      n(all.pages), n(all.streams), n(all.awaited), n(all.suspended), n(all.resumed));
  std::printf("%llu tokens found in a prefix index; 0 leaks, 0 hangs\n", n(all.adopted));
}
