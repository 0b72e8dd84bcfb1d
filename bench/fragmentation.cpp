// How much of a tier's space blocks of random sizes can use, after a long life: extents come and go until the space
// has been full many times. What counts is the bytes asked for; granules of 4 KiB, those of nvme, cost their share.
// The limit is all of the space.
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "report.hpp"
#include "terrace/medium/space.hpp"

namespace {

using namespace terrace;

constexpr std::size_t capacity = 1_GiB, granule = 4096;

struct sizes {
  const char* name;
  std::size_t least, most;
};

// Sizes as an entropy coder makes them, or arbitrary ones. Each time the space refuses an extent, its use is noted
// and a random share of the extents is released.
struct block {
  extent where;
  std::size_t bytes;
};
struct outcome {
  double mean, least;
};
outcome live(const sizes& s, double leaving, std::uint64_t reservations) {
  space room(capacity, granule);
  std::vector<block> held;
  std::mt19937_64 random(1);
  std::uniform_int_distribution<std::size_t> size(s.least, s.most);
  std::size_t in_use = 0;
  double sum = 0, least = 1;
  std::uint64_t times = 0;
  for (std::uint64_t made = 0; made < reservations;) {
    const std::size_t wanted = size(random);
    if (const auto e = room.reserve(wanted)) {
      held.push_back({*e, wanted});
      in_use += wanted;
      ++made;
      continue;
    }
    const double used = static_cast<double>(in_use) / static_cast<double>(capacity);
    sum += used;
    least = std::min(least, used);
    ++times;
    for (std::size_t n = static_cast<std::size_t>(leaving * static_cast<double>(held.size())) + 1; n != 0;
         --n) {
      const std::size_t i = random() % held.size();
      room.release(held[i].where);
      in_use -= held[i].bytes;
      held[i] = held.back();
      held.pop_back();
    }
  }
  return {sum / static_cast<double>(times), least};
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("fragmentation", argc, argv);
  for (const sizes& s : {sizes{"16-20 KiB (an entropy coder)", 16_KiB, 20_KiB},
                         sizes{"4-128 KiB", 4_KiB, 128_KiB}, sizes{"4 KiB-1 MiB", 4_KiB, 1_MiB}})
    for (const double leaving : {0.0, 0.1, 0.5}) {
      const std::string name =
          std::string(s.name) + ", " +
          (leaving == 0 ? "one leaves" : std::to_string(static_cast<int>(100 * leaving)) + "% leave");
      if (!out.wanted(name)) continue;
      const outcome o = live(s, leaving, 2'000'000);
      out.add({.name = name + ", mean", .unit = "of the space", .limit_name = "all of it", .goal = 0.9},
              o.mean, 1);
      out.add({.name = name + ", least", .unit = "of the space", .limit_name = "all of it", .goal = 0.9},
              o.least, 1);
    }
  return out.finish();
}
