// A long mixed load over a ladder whose middle tier fails at random: sequences that grow, fork, are cut and forgotten,
// prefetches, flushes, sizes that change, names that come and go, leases held for a while.
//
//     soak --minutes M [--seed N] [--dir DIR]
//
// Every token says what it is, and every block that can be had is compared with what was written. 0: all right; 1: a
// block was wrong, a pin is left, or memory has grown by more than 1% since the first tenth was over.
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>

#include "mixed_load.hpp"

namespace {

using namespace soak;

[[noreturn]] void refuse(const char* sentence) {
  std::fprintf(stderr, "soak: %s\n", sentence);
  std::exit(2);
}

std::size_t resident_bytes() {
  std::size_t size = 0, resident = 0;
  std::FILE* const file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr || std::fscanf(file, "%zu %zu", &size, &resident) != 2)
    refuse("/proc/self/statm cannot be read");
  std::fclose(file);
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

template <class T>
T number(std::string_view text, const char* sentence) {
  T value{};
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || end != text.data() + text.size()) refuse(sentence);
  return value;
}

int run(double minutes, std::uint64_t seed, const std::string& dir) {
  context ctx{{.codec_threads = 1}};
  medium_script script;
  auto cache = soaked_cache::open(ctx, layout, {.capacity = hot}, {.capacity = warm},
                                  {.capacity = 16_MiB, .script = &script},
                                  {.capacity = 48_MiB, .path = dir + "/kv", .keep = true},
                                  {.capacity = 256_MiB, .path = dir, .keep = true}, {},
                                  {.transfers = {.deadline = std::chrono::milliseconds(500)}});
  if (!cache) {
    std::fprintf(stderr, "soak: %s\n", cache.error().message().c_str());
    return 2;
  }
  mixed_load load(ctx, *cache, script, seed);
  const auto begin = context::clock::now();
  const auto share = [&] {
    const std::chrono::duration<double> passed = context::clock::now() - begin;
    return minutes > 0 ? passed.count() / 60 / minutes : 1;
  };
  while (share() < 0.1) load.step();
  load.settle();
  const std::size_t before = resident_bytes();
  while (share() < 1) load.step();
  load.settle();
  const std::size_t after = resident_bytes();
  const cache_stats busy = cache->stats();
  load.end();
  const std::size_t pins = cache->stats().pins;

  const counts& n = load.done;
  const auto print = [](const char* what, std::uint64_t value) {
    std::printf("  %-34s %llu\n", what, static_cast<unsigned long long>(value));
  };
  std::printf("soak: %.1f minutes, seed %llu\n", minutes, static_cast<unsigned long long>(seed));
  print("steps", n.steps);
  print("tokens written", n.tokens);
  print("blocks verified", n.verified);
  print("blocks wrong", n.wrong);
  print("blocks lost to faults", n.lost);
  print("refused for want of room", n.refused);
  print("flushes", n.flushes);
  print("flushes that said they failed", n.failed_flushes);
  print("forks", n.forks);
  print("cuts", n.cuts);
  print("resizes", n.resizes);
  print("reads made to fail", n.failed_reads);
  print("writes made to fail", n.failed_writes);
  print("bits flipped", n.flipped_bits);
  print("stalls", n.stalls);
  for (const tier_stats& t : busy.tiers)
    std::printf("  %-10.*s stores %9llu  loads %9llu  read %8.1f MiB  written %8.1f MiB\n",
                static_cast<int>(t.medium.size()), t.medium.data(), static_cast<unsigned long long>(t.stores),
                static_cast<unsigned long long>(t.loads), static_cast<double>(t.bytes_read) / 1048576,
                static_cast<double>(t.bytes_written) / 1048576);
  const double grown = 100.0 * (static_cast<double>(after) / static_cast<double>(before) - 1);
  std::printf("  resident after warm-up %.2f MiB, at the end %.2f MiB: %+.2f%%\n",
              static_cast<double>(before) / 1048576, static_cast<double>(after) / 1048576, grown);
  print("pins left", pins);
  const bool right = n.wrong == 0 && pins == 0 && grown <= 1;
  std::puts(right ? "  all right" : "  NOT all right");
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  double minutes = -1;
  std::uint64_t seed = std::random_device{}();
  std::string dir;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view option = argv[i];
    if (option == "--help") return std::puts("soak --minutes M [--seed N] [--dir DIR]"), 0;
    if (i + 1 == argc) refuse("every option has a value; --help lists them");
    if (option == "--minutes")
      minutes = number<double>(argv[i + 1], "--minutes is a number");
    else if (option == "--seed")
      seed = number<std::uint64_t>(argv[i + 1], "--seed is a whole number");
    else if (option == "--dir")
      dir = argv[i + 1];
    else
      refuse("an option is not known; --help lists them");
  }
  if (!(minutes >= 0)) refuse("--minutes says for how long");
  if (!dir.empty()) return run(minutes, seed, dir);
  std::string place = std::filesystem::temp_directory_path().string() + "/terrace-soak-XXXXXX";
  if (::mkdtemp(place.data()) == nullptr) refuse("no temporary folder can be made");
  const int status = run(minutes, seed, place);
  std::filesystem::remove_all(place);
  return status;
}
