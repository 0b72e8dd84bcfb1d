#include "terrace/prefetch/prefetcher.hpp"

#include <array>
#include <memory>
#include <vector>

#include "catch.hpp"
#include "terrace/prefetch/adaptive.hpp"
#include "terrace/prefetch/attention_pattern.hpp"
#include "terrace/prefetch/layer_ahead.hpp"
#include "terrace/prefetch/sliding_window.hpp"
#include "terrace/testing/archetypes.hpp"

using namespace terrace;

namespace {

// Each is one requirement short of a prefetcher.
struct name_is_no_text : prefetcher_archetype {
  static constexpr int name = 3;
};
struct name_is_a_function : prefetcher_archetype {
  static std::string_view name();
};
struct observes_nothing : prefetcher_archetype {
  void observe();
};
struct observes_what_it_changes : prefetcher_archetype {
  void observe(row_use&);
};
struct suggests_without_a_count : prefetcher_archetype {
  void suggest(std::span<prefetch_wish>);
};
struct suggests_one_at_a_time : prefetcher_archetype {
  prefetch_wish suggest();
};
struct attends_to_nothing : prefetcher_archetype {
  void attended(const row_use&);
};
struct suggests_into_a_row : prefetcher_archetype {
  std::size_t suggest(std::span<row_use>);
};

static_assert(!prefetcher<int>);
static_assert(!prefetcher<name_is_no_text> && !prefetcher<name_is_a_function>);
static_assert(!prefetcher<observes_nothing> && !prefetcher<observes_what_it_changes>);
static_assert(!prefetcher<suggests_without_a_count> && !prefetcher<suggests_one_at_a_time>);
static_assert(!prefetcher<suggests_into_a_row>);
static_assert(prefetcher<attends_to_nothing> && !attention_watching_prefetcher<attends_to_nothing>);
static_assert(!attention_watching_prefetcher<prefetcher_archetype>);
using every_prefetcher = adaptive<layer_ahead, sliding_window, attention_pattern>;
static_assert(attention_watching_prefetcher<every_prefetcher>);
static_assert(std::is_constructible_v<any_prefetcher, prefetcher_archetype>);
static_assert(!std::is_constructible_v<any_prefetcher, suggests_one_at_a_time>);
// What holds any prefetcher does not hold itself in another wrapping.
static_assert(!prefetcher<any_prefetcher>);

// Prefetchers of any kind, asked by the contract: at most as many wishes as there is room for, each of a row
// and of blocks that exist.
template <class P>
void keeps_to_what_exists(P p) {
  for (std::uint32_t rows = 1; rows <= 4; ++rows)
    for (std::uint32_t blocks = 0; blocks <= 40; blocks += 8)
      for (std::uint64_t step = 0; step < 3; ++step)
        for (std::uint32_t row = 0; row < rows; ++row) {
          const row_use use{.sequence = 1, .row = row, .rows = rows, .blocks = blocks, .step = step};
          p.observe(use);
          CHECK(p.suggest({}) == 0);
          std::array<prefetch_wish, 8> out;
          const std::size_t count = p.suggest(out);
          REQUIRE(count <= out.size());
          for (std::size_t i = 0; i < count; ++i) {
            CHECK(out[i].row < rows);
            CHECK(out[i].blocks > 0);
            CHECK(out[i].first + out[i].blocks <= blocks);
            CHECK(out[i].at_step >= step);
          }
          if constexpr (requires { p.attended(use, {}); })
            p.attended(use, std::vector<float>(blocks, blocks == 0 ? 0 : 1.0f / static_cast<float>(blocks)));
        }
}

}  // namespace

TEMPLATE_TEST_CASE("a prefetcher asks for what exists, and for no more than there is room for", "",
                   layer_ahead, sliding_window, attention_pattern, every_prefetcher, prefetcher_archetype) {
  keeps_to_what_exists(TestType());
  keeps_to_what_exists(any_prefetcher(TestType()));
}

TEST_CASE("any_prefetcher takes a prefetcher that can only be moved") {
  struct move_only : prefetcher_archetype {
    std::unique_ptr<int> more = std::make_unique<int>(1);
  };
  any_prefetcher p = move_only{};
  any_prefetcher moved = std::move(p);
  moved.observe({.row = 1, .rows = 2, .blocks = 3, .step = 4});
  std::array<prefetch_wish, 1> out;
  REQUIRE(moved.suggest(out) == 1);
  CHECK(out[0].row == 1);
  CHECK(moved.name() == "archetype");
}
