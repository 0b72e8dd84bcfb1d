#include "attention_runner/plan.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "attention_runner/difference.hpp"
#include "attention_runner/model_shape.hpp"
#include "catch.hpp"

using namespace runner;
using terrace::operator""_KiB;
using terrace::operator""_MiB;
using terrace::operator""_GiB;

namespace {
constexpr kv_shape llama_3_8b{32, 8, 128};

run_request request_for(std::string codec) {
  run_request r;
  r.codec = std::move(codec);
  r.block_tokens = 1024;
  r.block_bytes = 512_KiB;
  return r;
}
std::size_t blocks_of(const run_request& r, const run_plan& p) {
  const terrace::layer_group& g = p.layout.groups[0];
  return (std::size_t{r.context_tokens} + r.scored_tokens + r.decode_tokens) / g.tokens * g.layers;
}
}  // namespace

TEST_CASE("sizes that were not given: a tenth is hot, and half of the rest lies in RAM") {
  for (const ladder_codecs& ladder : all_ladders) {
    const run_request r = request_for(std::string(ladder.name));
    const auto p = plan(r, llama_3_8b);
    REQUIRE(p);
    CHECK(p->kv_bytes_total == std::size_t{32768 + 64} * 4096 * 32);
    CHECK(p->sizes.hot == p->kv_bytes_total / 10);
    const terrace::layer_group& g = p->layout.groups[0];
    const double warm = static_cast<double>(p->sizes.warm / ladder.stored[0](g));
    CHECK(warm == Approx(0.45 * static_cast<double>(blocks_of(r, *p))).epsilon(0.02));
    CHECK(p->sizes.warm / ladder.stored[0](g) + p->sizes.cool / ladder.stored[1](g) >= blocks_of(r, *p));
    CHECK(p->sizes.cold == 0);
  }
}

TEST_CASE("a model that a ladder cannot take is refused before anything runs") {
  for (const ladder_codecs& ladder : all_ladders) {
    const run_request r = request_for(std::string(ladder.name));
    const bool in_groups = ladder.name != "lossless";
    const auto p = plan(r, {4, 2, 48});
    CHECK(p.has_value() == !in_groups);
    if (!p) CHECK(p.error().exit_code == 2);
    const auto odd = plan(r, {4, 2, 100});
    REQUIRE_FALSE(odd);
    CHECK(odd.error().exit_code == 2);
    CHECK(odd.error().sentence == "the head dimension is 100, not a multiple of 16");
  }
}

TEST_CASE("a difference says so where there are no numbers") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  difference_tally t, other;
  CHECK(t.found().rel_l2 == 0);
  t.add(1.5, 1);
  t.add(-2, -2);
  CHECK(t.found().max_abs == 0.5);
  CHECK(t.found().rel_l2 == Approx(0.5 / std::sqrt(5.0)));
  CHECK(t.found().is_finite());
  for (const auto& [got, right] : {std::pair{nan, 1.0}, {1.0, nan}}) {
    difference_tally bad;
    bad.add(got, right);
    bad.add(7, 1);
    CHECK(std::isnan(bad.found().max_abs));
    CHECK_FALSE(bad.found().is_finite());
    other = t;
    other += bad;
    other.add(2, 1);
    CHECK(std::isnan(other.found().max_abs));
  }
}

TEST_CASE("a size that is given leaves the defaults of the others") {
  run_request r = request_for("lossless");
  const auto before = plan(r, llama_3_8b);
  r.warm = 1_GiB;
  const auto p = plan(r, llama_3_8b);
  REQUIRE(before);
  REQUIRE(p);
  CHECK(p->sizes.hot == before->sizes.hot);
  CHECK(p->sizes.warm == 1_GiB);
  CHECK(p->sizes.cool > before->sizes.cool);
}

TEST_CASE("blocks are as large as a disk likes them, and small enough that the hot tier holds many") {
  run_request r = request_for("lossless");
  r.hot = 400_MiB;
  auto p = plan(r, llama_3_8b);
  REQUIRE(p);
  CHECK(p->layout.largest_block() == 512_KiB);
  r.hot = 40_MiB;
  p = plan(r, llama_3_8b);
  REQUIRE(p);
  CHECK(p->layout.largest_block() * 12 * 32 <= 40_MiB);
  CHECK(p->layout.largest_block() * 2 * 12 * 32 > 40_MiB);
  CHECK((p->chunk / p->layout.groups[0].tokens + 1) * 32 * p->layout.largest_block() <= 40_MiB / 3 + 4_MiB);
}

TEST_CASE("a hot tier that is too small is refused with the least that suffices, and that suffices") {
  for (const ladder_codecs& ladder : all_ladders) {
    run_request r = request_for(std::string(ladder.name));
    r.hot = 1_KiB;
    const auto refused = plan(r, llama_3_8b);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().exit_code == 2);
    const std::string& sentence = refused.error().sentence;
    const std::size_t at = sentence.find(": ") + 2;
    const auto least = terrace::parse_size(sentence.substr(at, sentence.find(" suffice") - at));
    REQUIRE(least);
    r.hot = *least;
    CHECK(plan(r, llama_3_8b));
    r.hot = *least - 1_MiB;
    CHECK_FALSE(plan(r, llama_3_8b));
  }
}

TEST_CASE("windows on a device hold whole splits, and have room beside the open blocks") {
  for (const ladder_codecs& ladder : all_ladders)
    for (const std::size_t hot : {0_MiB, 40_MiB, 60_MiB, 400_MiB, 4096_MiB}) {
      run_request r = request_for(std::string(ladder.name));
      r.on_device = true;
      if (hot != 0) r.hot = hot;
      CAPTURE(ladder.name, hot);
      const auto p = plan(r, llama_3_8b);
      REQUIRE(p);
      const terrace::layer_group& g = p->layout.groups[0];
      CHECK(p->split_tokens % g.tokens == 0);
      CHECK(p->split_tokens / g.tokens * g.block_bytes() <= p->window_bytes);
      CHECK((p->split_tokens == g.tokens || p->split_tokens <= 256));
      const std::size_t block = g.block_bytes(), slots = p->window_bytes / block;
      const std::size_t staging = ladder.staging_buffers * ladder.staging_bytes(g);
      CHECK((2 * 32 + 1) * block + staging + 3 * slots * (block + ladder.stored[0](g)) <= p->sizes.hot);

      r.codec = "resident";
      r.hot.reset();
      r.block_tokens = g.tokens;
      r.split_tokens = p->split_tokens;
      const auto resident = plan(r, llama_3_8b);
      REQUIRE(resident);
      CHECK(resident->split_tokens == p->split_tokens);
    }
}

TEST_CASE("tiers that cannot hold the context are refused, and capacity 0 leaves one out") {
  run_request r = request_for("lossless");
  r.warm = 0;
  r.cool = 1_GiB;
  CHECK_FALSE(plan(r, llama_3_8b));
  r.cold = 5_GiB;
  CHECK(plan(r, llama_3_8b));
  r.cool = 0;
  CHECK(plan(r, llama_3_8b));
  r.cold = 0;
  CHECK_FALSE(plan(r, llama_3_8b));
}

TEST_CASE("a directory that is given is used") {
  run_request r = request_for("q4");
  r.cold_path = "/somewhere";
  const auto p = plan(r, llama_3_8b);
  REQUIRE(p);
  CHECK(p->sizes.cold > p->sizes.cool / 2);
  CHECK(p->sizes.cold_path == "/somewhere");
}

TEST_CASE("with everything in memory there is one tier, with room for a fork that scores") {
  run_request r = request_for("resident");
  r.block_tokens = 64;
  const auto p = plan(r, {4, 2, 64});
  REQUIRE(p);
  CHECK(p->layout.groups[0].tokens == 64);
  CHECK(p->sizes.hot > p->kv_bytes_total);
  CHECK(p->sizes.cool == 0);
}

TEST_CASE("an unknown ladder is refused by name") {
  const auto refused = plan(request_for("q5"), llama_3_8b);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().sentence.find("\"q5\"") != std::string::npos);
}

TEST_CASE("shapes have names, or are written out") {
  const auto named = parse_shape("qwen2.5-14b");
  REQUIRE(named);
  CHECK(named->layers == 48);
  CHECK(named->q_heads == 40);
  CHECK(named->kv_heads == 8);
  CHECK(named->head_dim == 128);
  const auto written = parse_shape("4,8,2,64");
  REQUIRE(written);
  CHECK(written->layers == 4);
  CHECK(written->q_heads == 8);
  CHECK(written->kv_heads == 2);
  CHECK(written->head_dim == 64);
  for (const model_shape& known : known_shapes) {
    CAPTURE(known.name);
    CHECK(parse_shape(std::to_string(known.layers) + "," + std::to_string(known.q_heads) + "," +
                      std::to_string(known.kv_heads) + "," + std::to_string(known.head_dim)));
  }
}

TEST_CASE("what is no shape is refused with the names that there are") {
  for (const char* text : {"", "llama-4", "4,8,2", "4,8,2,64,1", "4,8,2,64 ", ",8,2,64", "4;8;2;64",
                           "-4,8,2,64", "4,8,3,64", "4,8,0,64", "0,8,2,64", "4,0,1,64", "4,8,2,0", "4,8,2,48",
                           "4,8,2,100000", "99999999999,8,2,64", "4,2,8,64"}) {
    CAPTURE(text);
    const auto refused = parse_shape(text);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().exit_code == 2);
  }
  CHECK(parse_shape("llama-4").error().sentence.find("llama-3-8b") != std::string::npos);
}
