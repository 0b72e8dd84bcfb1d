// What it costs to find out where a block is that tier 0 has: from its id, which may be of a block that has gone, to its
// place. Beside a plain array of such places, read in the same random order.
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "report.hpp"
#include "terrace/cache/residency.hpp"

namespace {

using namespace terrace;

constexpr std::size_t lookups = 200'000;  // of one sample

double ns_each(double seconds) { return seconds * 1e9 / double{lookups}; }

void measure(bench::report& out, std::uint32_t count, const std::string& name) {
  if (!out.wanted(name)) return;
  residency blocks(3);
  std::vector<extent> bare(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    bare[i] = {.offset = std::uint64_t{i} << 17, .bytes = 1u << 17};
    block_record& r = blocks[blocks.create()];
    r.now = block_record::phase::sealed;
    r.copies[0].now = block_copy::state::resident;
    r.copies[0].where = bare[i];
  }
  std::mt19937 random(1);
  std::vector<block_id> order(lookups);
  for (block_id& id : order) id = blocks.id_of(static_cast<std::uint32_t>(random() % count));

  volatile std::uint64_t sums = 0;  // so that the places are read
  const auto timed = [&](auto place_of) {
    return ns_each(bench::seconds([&] {
      std::uint64_t sum = 0;
      for (const block_id id : order) sum += place_of(id);
      sums = sum;
    }));
  };
  out.compare(
      {name, "ns", "a plain array", bench::better::smaller, 0.5},
      [&] {
        return timed([&](block_id id) -> std::uint64_t {
          const block_record* const r = blocks.find(id);
          return r != nullptr && r->copies[0].readable() ? r->copies[0].where.offset : 0;
        });
      },
      [&] { return timed([&](block_id id) { return bare[id.index].offset; }); });
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("block_lookup", argc, argv);
  out.note("a record takes " + std::to_string(sizeof(block_record)) + " bytes, an entry of the array " +
           std::to_string(sizeof(extent)));
  measure(out, 1'000, "resident block, of 1k");
  measure(out, 100'000, "resident block, of 100k");
  measure(out, 1'000'000, "resident block, of 1M");
  return out.finish();
}
