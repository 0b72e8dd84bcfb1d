#include <algorithm>
#include <memory>
#include <vector>

#include "catch.hpp"
#include "decoding.hpp"
#include "terrace/cuda/pinned_ram.hpp"
#include "terrace/cuda/vram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

// A sequence that a device batch leaves out, and the others, which go on.

namespace {

constexpr std::size_t block = pattern::block_bytes;
constexpr std::uint32_t layers = 2;
using ladder = tiered_cache<tier<vram>, tier<pinned_ram>, tier<scripted>, lru>;
using counts = std::vector<std::uint32_t>;

// The members of a batch, some of which end.
struct members : decoding<ladder> {
  using decoding<ladder>::decoding;

  // Windows of `layer` until `most` have been given; how many there were.
  std::size_t windows(std::uint32_t layer, const tokens_seen& seen, std::size_t most = ~std::size_t{0}) {
    for (std::size_t n = 0; n < most; ++n) {
      auto w = batch->next(layer, device.stream);
      if (!w) return n;
      look(*w, layer, seen);
      indptr.push_back(w->indptr());
      indices.push_back(w->indices());
    }
    return most;
  }
  tokens_seen nothing_seen() { return std::make_shared<tokens_seen::element_type>(); }
  // What each member has now, by the batch's numbers.
  std::vector<std::uint64_t> lengths(const counts& new_tokens) {
    std::vector<std::uint64_t> all;
    for (std::size_t i = 0; i < new_tokens.size(); ++i)
      all.push_back((sequences[i] == nullptr ? 0 : sequences[i]->length()) + new_tokens[i]);
    return all;
  }
  // A whole step of those that have tokens.
  void step(const counts& tokens, const std::vector<std::uint64_t>& want) {
    auto slots = batch->reserve(tokens, device.stream);
    REQUIRE(slots);
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      write_new(*slots, layer, tokens);
      const auto seen = nothing_seen();
      windows(layer, seen);
      CHECK_FALSE(batch->failure());
      expect(seen, want);
    }
    batch->commit(tokens);
  }
  errc refusal(std::size_t i) {
    const result<void> dropped = batch->drop(i, device.stream);
    REQUIRE_FALSE(dropped);
    CHECK(cudaGetLastError() == cudaSuccess);
    return dropped.error().code;
  }
  // But the pages that the sequences are writing.
  bool nothing_is_pinned() {
    fake_cuda::drain();
    while (!ctx.idle()) ctx.poll();
    ctx.poll();
    std::size_t open = 0;
    for (auto& s : sequences)
      for (std::uint32_t row = 0; row < layers && s != nullptr; ++row)
        open += s->pages().rows[row].size() - s->pages().sealed(row);
    return cache().stats().pins == open;
  }

  std::vector<const std::int32_t*> indptr, indices;
};

const counts one_each{1, 1, 1};

}  // namespace

TEST_CASE("members of a device batch that are dropped between windows leave the others what they had") {
  const bool reserved = GENERATE(false, true), two = GENERATE(false, true);
  const std::uint32_t align = GENERATE(1u, 2u);
  CAPTURE(reserved, two, align);
  fake_cuda::reset({.seed = 21});
  members d(21, 32, 200, {.sequences = 3, .pages = 4, .window_bytes = 2 * block, .align = align});
  d.add(7 * 16);
  d.sequences.push_back(std::make_unique<sequence>(d.cache().fork(*d.sequences[0])));
  d.tags.push_back(1);
  for (std::uint32_t n = 0; n < 3; ++n) REQUIRE(d.device.append(*d.sequences[1], 12, layers, 1));
  d.add(6 * 16 + 3);
  REQUIRE(d.nothing_is_pinned());
  const counts none{0, 0, 0}, tokens = reserved ? one_each : none;
  bool more = true;
  for (std::size_t taken = 0; more; ++taken)
    for (std::uint32_t dropped = 0; dropped < 3; ++dropped) {
      CAPTURE(taken, dropped);
      std::vector<std::uint32_t> gone{dropped};
      if (two) gone.push_back((dropped + 1) % 3);
      d.assign();
      auto slots = d.batch->reserve(tokens, d.device.stream);
      REQUIRE(slots);
      if (!reserved) d.batch->commit(none);
      if (reserved) d.write_new(*slots, 0, tokens);
      auto want = d.lengths(tokens);
      const auto seen = d.nothing_seen();
      more = d.windows(0, seen, taken) == taken;
      // The kernels run later: what they had seen until now is known only then.
      const auto before = d.nothing_seen();
      fake_cuda::launch(d.device.stream, [=] { *before = *seen; });
      const auto waits = fake_cuda::now().host_waits;
      fake_cuda::stall(true);
      for (const std::uint32_t i : gone) REQUIRE(d.batch->drop(i, d.device.stream));
      CHECK(fake_cuda::now().host_waits == waits);  // for the device
      fake_cuda::stall(false);
      if (more) d.windows(0, seen);
      CHECK_FALSE(d.batch->failure());
      fake_cuda::launch(d.device.stream, [=, &d] {
        for (const std::uint32_t i : gone) {
          if ((*seen)[i] != (*before)[i]) ++d.wrong;
          (*seen)[i] = want[i];
        }
      });
      d.expect(seen, want);
      // Nor have they any in the next layer.
      if (reserved) d.write_new(*slots, 1, tokens);
      const auto next = d.nothing_seen();
      d.windows(1, next);
      for (const std::uint32_t i : gone) want[i] = 0;
      d.expect(next, want);
      if (reserved) d.batch->commit(none);
      fake_cuda::drain();
      REQUIRE(d.wrong == 0);
      // Their tokens have none from there on, and no other token is without one.
      CHECK(d.without_slot == (reserved ? std::ssize(gone) : 0));
      d.without_slot = 0;
      REQUIRE(d.nothing_is_pinned());
    }
  // What a graph has captured stays where it is.
  CHECK(std::ranges::count(d.indptr, d.indptr[0]) == std::ssize(d.indptr));
  CHECK(std::ranges::count(d.indices, d.indices[0]) == std::ssize(d.indices));
}

TEST_CASE("a dropped member ends in the middle of a step, and nobody writes into the room that it had") {
  fake_cuda::reset({.seed = 22});
  members d(22, 24, 200, {.sequences = 3, .pages = 6, .window_bytes = block});
  for (std::uint32_t i = 0; i < 3; ++i) d.add(5 * 16);
  d.assign();
  const counts tokens{2, 3, 1};
  auto slots = d.batch->reserve(tokens, d.device.stream);
  REQUIRE(slots);
  d.write_new(*slots, 0, tokens);
  const auto seen = d.nothing_seen();
  REQUIRE(d.windows(0, seen, 2) == 2);
  // A call that the runtime refuses changes nothing.
  fake_cuda::fail_call("cudaMemset2DAsync", cudaErrorUnknown);
  CHECK(d.refusal(1) == errc::io_error);
  REQUIRE(d.windows(0, seen, 1) == 1);
  REQUIRE(d.batch->drop(1, d.device.stream));
  d.sequences[1].reset();
  CHECK(d.batch->reserved().tokens() == 6);
  CHECK(d.batch->reserved().mapping(1) == slots->mapping(1));
  // Others take the room that its tokens had.
  d.tags[1] = 7;
  d.sequences.push_back(std::make_unique<sequence>(d.cache().make_sequence()));
  d.tags.push_back(7);
  REQUIRE(d.device.append(*d.sequences[3], 16, layers, 7));
  d.windows(0, seen);
  d.write_new(*slots, 1, tokens);
  const auto next = d.nothing_seen();
  d.windows(1, next);
  d.expect(next, {82, 0, 81});
  d.batch->commit({counts{2, 0, 1}});
  fake_cuda::drain();
  CHECK(d.without_slot == 3);

  // And the step behind it, with one that is nobody.
  CHECK(d.batch->size() == 3);
  CHECK(d.batch->reserve(one_each, d.device.stream).error().code == errc::invalid_argument);
  d.step({1, 0, 1}, {83, 0, 82});
  REQUIRE(d.batch->assign(std::vector<sequence*>{d.sequences[3].get()}));
  d.tags = {7};
  const auto others = d.nothing_seen();
  d.windows(0, others);
  d.windows(1, d.nothing_seen());
  d.expect(others, {16});
  fake_cuda::drain();
  CHECK(d.wrong == 0);
  CHECK(d.without_slot == 3);
}

TEST_CASE("a member of a device batch is dropped between two steps, be it the first or the last") {
  const std::size_t dropped = GENERATE(0u, 1u, 2u);
  fake_cuda::reset({.seed = 23});
  members d(23, 32, 200, {.sequences = 3, .pages = 8, .window_bytes = 2 * block});
  for (std::uint32_t i = 0; i < 3; ++i) d.add(40 + 30 * i);
  d.assign();
  d.step(one_each, d.lengths(one_each));
  REQUIRE(d.batch->drop(dropped, d.device.stream));
  d.sequences[dropped].reset();
  counts tokens = one_each;
  tokens[dropped] = 0;
  for (int n = 0; n < 3; ++n) d.step(tokens, d.lengths(tokens));
  // Without a reservation too.
  const auto seen = d.nothing_seen();
  d.windows(1, seen);
  d.expect(seen, d.lengths({0, 0, 0}));
  CHECK(d.nothing_is_pinned());
  CHECK(d.wrong == 0);
  CHECK(d.without_slot == 0);
}

TEST_CASE("who cannot be dropped from a device batch is not, and it may drop all that it has") {
  fake_cuda::reset({.seed = 24});
  members d(24, 32, 200, {.sequences = 3, .pages = 4, .window_bytes = block});
  CHECK(d.refusal(0) == errc::invalid_argument);
  for (std::uint32_t i = 0; i < 3; ++i) d.add(70);
  d.assign();
  REQUIRE(d.batch->reserve(one_each, d.device.stream));
  {
    auto window = d.batch->next(0, d.device.stream);
    REQUIRE(window);
    CHECK(d.refusal(0) == errc::invalid_argument);
  }
  CHECK(d.refusal(3) == errc::invalid_argument);
  REQUIRE(d.batch->drop(0, d.device.stream));
  CHECK(d.refusal(0) == errc::invalid_argument);
  REQUIRE(d.batch->drop(2, d.device.stream));
  REQUIRE(d.batch->drop(1, d.device.stream));
  CHECK(d.nothing_is_pinned());  // all that was reserved, and all that was on its way
  d.sequences.clear();
  for (const std::uint32_t layer : {0u, 1u, 0u}) {
    CHECK_FALSE(d.batch->next(layer, d.device.stream));
    CHECK_FALSE(d.batch->failure());
  }
  d.batch->commit({counts{0, 0, 0}});
  d.step({0, 0, 0}, {0, 0, 0});
  d.add(20);
  d.tags = {4};
  REQUIRE(d.device.append(*d.sequences[0], 5, layers, 1));
  d.tags = {1};
  d.assign();
  CHECK(d.batch->size() == 1);
  CHECK(d.nothing_is_pinned());
}

TEST_CASE("a member that has lost a block is dropped, and the layer is begun anew without it") {
  fake_cuda::reset({.seed = 25});
  members d(25, 40, 8, {.sequences = 3, .pages = 64, .window_bytes = 2 * block});
  for (std::uint32_t i = 0; i < 3; ++i) d.add(12 * 16);
  d.assign();
  auto slots = d.batch->reserve(one_each, d.device.stream);
  REQUIRE(slots);
  d.write_new(*slots, 0, one_each);
  d.script.fail_reads = 2;
  d.windows(0, d.nothing_seen());
  REQUIRE(d.batch->failure());
  CHECK(d.batch->failure()->code == errc::lost);
  d.script.fail_reads = 0;
  REQUIRE(d.batch->lost().size() >= 1);
  std::size_t whose = 3;
  for (std::size_t i = 0; i < 3; ++i)
    for (const block_id id : pattern::sealed(*d.sequences[i], 0))
      if (id == d.batch->lost()[0].id) whose = i;
  REQUIRE(whose < 3);
  REQUIRE(d.batch->drop(whose, d.device.stream));
  auto want = d.lengths(one_each);
  want[whose] = 0;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    if (layer != 0) d.write_new(*slots, layer, one_each);
    const auto seen = d.nothing_seen();
    d.windows(layer, seen);
    CHECK_FALSE(d.batch->failure());
    d.expect(seen, want);
  }
  d.batch->commit({counts{0, 0, 0}});
  CHECK(d.nothing_is_pinned());
  CHECK(d.wrong == 0);
}

TEST_CASE("a device batch drops nobody while a layer cannot go on") {
  fake_cuda::reset({.seed = 26});
  members d(26, 32, 200, {.sequences = 3, .pages = 4, .window_bytes = block});
  for (std::uint32_t i = 0; i < 3; ++i) d.add(70);
  d.assign();
  REQUIRE(d.windows(0, d.nothing_seen(), 1) == 1);
  REQUIRE(d.sequences[1]->truncate(32));
  CHECK(d.refusal(0) == errc::invalid_argument);
  CHECK(d.windows(0, d.nothing_seen()) == 0);
  CHECK(d.batch->failure()->code == errc::invalid_argument);
  // Now it is begun anew.
  REQUIRE(d.batch->drop(0, d.device.stream));
  const auto seen = d.nothing_seen();
  d.windows(0, seen);
  d.expect(seen, {0, 32, 70});
  // When all windows of a layer are given, whoever was changed stops nobody: the next layer is begun anew.
  const auto again = d.nothing_seen();
  const std::size_t all = d.windows(0, again);
  REQUIRE(d.windows(0, d.nothing_seen(), all) == all);
  REQUIRE(d.device.append(*d.sequences[2], 20, layers, 3));
  REQUIRE(d.batch->drop(1, d.device.stream));
  CHECK(d.windows(0, again) == 0);
  CHECK_FALSE(d.batch->failure());
  const auto next = d.nothing_seen();
  d.windows(1, next);
  d.expect(next, {0, 0, 90});
  CHECK(d.nothing_is_pinned());
  CHECK(d.wrong == 0);
}
