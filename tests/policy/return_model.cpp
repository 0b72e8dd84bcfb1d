#include "terrace/policy/return_model.hpp"

#include <array>
#include <cstdint>
#include <memory>

#include "catch.hpp"

using namespace terrace;

namespace {
using model = return_model<4, 2>;
constexpr std::array<std::uint32_t, 4> nobody{};

// `blocks` of a class wait through all ages until `age`, where `returning` of them come back.
void live_through(model& m, std::size_t kind, std::uint32_t blocks, std::uint64_t age,
                  std::uint32_t returning) {
  auto waiting = nobody;
  waiting[kind] = blocks;
  for (std::size_t b = 0; b <= model::bucket_of(age); ++b)
    m.waited(b, static_cast<float>(model::width(b)), waiting);
  for (std::uint32_t n = 0; n < returning; ++n) m.returned(kind, model::bucket_of(age));
}
}  // namespace

TEST_CASE("return_model: buckets cover all ages, without gaps, a quarter of an octave each") {
  CHECK(model::bucket_of(0) == 0);
  for (std::size_t b = 0; b + 1 < model::buckets; ++b) {
    CAPTURE(b);
    CHECK(model::bucket_of(model::least_age(b)) == b);
    CHECK(model::bucket_of(model::least_age(b + 1) - 1) == b);
    if (b > 0) CHECK(model::width(b) * 4 <= model::least_age(b));
  }
  CHECK(model::bucket_of(~std::uint64_t{0}) == model::buckets - 1);
}

TEST_CASE("return_model: without evidence a longer wait is worth less, for every class") {
  const auto m = std::make_unique<model>();
  m->fit(1);
  for (std::size_t kind = 0; kind < model::classes; ++kind)
    for (std::size_t b = 0; b + 1 < model::buckets; ++b) CHECK(m->worth(kind, b) > m->worth(kind, b + 1));
}

TEST_CASE("return_model: worth rises towards the age at which returns are due, and falls behind it") {
  const auto m = std::make_unique<model>();
  live_through(*m, 1, 10000, 5000, 9000);
  m->fit(1);
  const std::size_t due = model::bucket_of(5000);
  CHECK(m->worth(1, due) > 3 * m->worth(1, 0));
  for (std::size_t b = 0; b < due; ++b) CHECK(m->worth(1, b) <= m->worth(1, b + 1));
  CHECK(m->worth(1, due + 1) < m->worth(1, due));
}

TEST_CASE("return_model: a class is told from others by its evidence, and a new one goes with its group") {
  const auto m = std::make_unique<model>();
  live_through(*m, 0, 10000, 1000, 8000);
  live_through(*m, 2, 10000, 1000000, 0);
  m->fit(1);
  CHECK(m->worth(0, 0) > 10 * m->worth(2, 0));
  CHECK(m->worth(1, 0) > 2 * m->worth(3, 0));
}

TEST_CASE("return_model: what was learned long ago counts less") {
  const auto m = std::make_unique<model>();
  live_through(*m, 0, 10000, 1000, 8000);
  m->fit(1);
  const float before = m->worth(0, 0);
  for (int n = 0; n < 20; ++n) m->fit(0.5f);
  live_through(*m, 0, 1000, 1000, 0);
  m->fit(1);
  CHECK(m->worth(0, 0) < before / 10);
}
