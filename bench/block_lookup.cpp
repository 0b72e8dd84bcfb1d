// The cost of finding a block in tier 0: from its id, which may be that of a block that is gone, to its place.
// Compared with a plain array of such places, read in the same random order.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "report.hpp"
#include "terrace/cache/residency.hpp"

namespace {

using namespace terrace;

constexpr std::size_t lookups = 2'000'000;  // per sample

// Ids in random order: at least as many as there are blocks, so that of many blocks the caches hold no more than they
// would by chance; and at least 100,000.
class walk {
 public:
  walk(const residency& blocks, std::uint32_t count) : order_(std::max<std::size_t>(count, 100'000)) {
    std::mt19937 random(1);
    for (block_id& id : order_) id = blocks.id_of(static_cast<std::uint32_t>(random() % count));
  }
  // The sum over the next sample of them, so that they are read.
  template <class PlaceOf>
  std::uint64_t sum(PlaceOf place_of) {
    std::uint64_t all = 0;
    for (std::size_t left = lookups; left != 0;) {
      const auto part = std::span(order_).subspan(at_, std::min(left, order_.size() - at_));
      for (const block_id& id : part) all += place_of(id);
      at_ = (at_ + part.size()) % order_.size();
      left -= part.size();
    }
    return all;
  }

 private:
  std::vector<block_id> order_;
  std::size_t at_ = 0;
};

double ns_each(double seconds) { return seconds * 1e9 / double{lookups}; }

void measure(bench::report& out, std::uint32_t count, const std::string& name) {
  if (!out.wanted(name)) return;
  residency blocks(3);
  std::vector<extent> bare(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    bare[i] = {.offset = std::uint64_t{i} << 17, .bytes = 1u << 17};
    const std::uint32_t block = blocks.create();
    blocks.add_copy(block, 0, bare[i]);
    blocks.set_readable(block, 0, block_copy::state::resident);
  }
  walk order(blocks, count);
  volatile std::uint64_t sums = 0;
  const auto timed = [&](auto place_of) {
    sums = order.sum(place_of);  // so that the caches hold this array, and not the other one
    return ns_each(bench::seconds([&] { sums = order.sum(place_of); }));
  };
  out.compare(
      {name, "ns", "a plain array", bench::better::smaller, 0.5},
      [&] {
        return timed([&](block_id id) -> std::uint64_t {
          const copy_place* const place = blocks.find_place(id, 0);
          return place != nullptr ? place->offset : 0;
        });
      },
      [&] { return timed([&](block_id id) { return bare[id.index].offset; }); });
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("block_lookup", argc, argv);
  const std::size_t block = residency::bytes_per_block(0), of_a_tier = residency::bytes_per_block(1) - block;
  out.note("a block takes " + std::to_string(block) + " bytes and " + std::to_string(of_a_tier) +
           " for each tier, of which a lookup reads " + std::to_string(sizeof(copy_place)) +
           "; an entry of the array takes " + std::to_string(sizeof(extent)));
  measure(out, 1'000, "resident block, of 1k");
  measure(out, 100'000, "resident block, of 100k");
  measure(out, 1'000'000, "resident block, of 1M");
  measure(out, 10'000'000, "resident block, of 10M");
  return out.finish();
}
