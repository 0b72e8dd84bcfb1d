#include "attention_runner/scoring.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention_runner/prompt.hpp"
#include "catch.hpp"
#include "checkpoint_files.hpp"

using namespace runner;

TEST_CASE("equal logits cost log2 of the vocabulary, whatever they are") {
  for (const float logit : {0.0f, -1000.0f, 1e30f}) {
    const std::vector<float> logits(256, logit);
    CHECK(std::abs(surprisal_bits(logits, 77) - 8.0) < 1e-12);
  }
}

TEST_CASE("a likely token costs little and an unlikely one much, without overflow") {
  const std::vector<float> logits{1000.0f, 0.0f, -1000.0f};
  CHECK(surprisal_bits(logits, 0) == 0);
  CHECK(std::abs(surprisal_bits(logits, 1) - 1000 / std::log(2.0)) < 1e-9);
  CHECK(std::abs(surprisal_bits(logits, 2) - 2000 / std::log(2.0)) < 1e-9);
}

TEST_CASE("a text scores the same at once and chunk by chunk") {
  std::vector<float> logits(6 * 4);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i * i));
  const std::vector<std::uint32_t> tokens{3, 0, 1, 2, 2, 1};
  text_score score;
  CHECK(score.bits_per_token() == 0);
  score.add(std::span(logits).first(8), std::span(tokens).first(2));
  score.add({}, {});
  score.add(std::span(logits).subspan(8), std::span(tokens).subspan(2));
  CHECK(score.tokens() == 6);
  CHECK(score.bits_per_token() == bits_per_byte(logits, tokens));
  double expected = 0;
  for (std::size_t i = 0; i < 6; ++i)
    expected += surprisal_bits(std::span(logits).subspan(i * 4, 4), tokens[i]) / 6;
  CHECK(std::abs(score.bits_per_token() - expected) < 1e-12);
}

TEST_CASE("of equally likely tokens the lowest is taken") {
  CHECK(greedy_token(std::vector<float>{1, 5, 5, 2}) == 1);
  CHECK(greedy_token(std::vector<float>{-3}) == 0);
  CHECK(greedy_token(std::vector<float>{-2, -1, 7}) == 2);
  CHECK(greedy_token(std::vector<float>(4, std::numeric_limits<float>::quiet_NaN())) < 4);
}

TEST_CASE("a prompt of bytes is the front of a file") {
  temporary_directory directory;
  directory.write("prompt", std::string("a\0\xff"
                                        "bc",
                                        5));
  const auto file = directory.path() / "prompt";
  auto some = load_prompt_bytes(file, 256, 3);
  REQUIRE(some);
  CHECK(*some == std::vector<std::uint32_t>{'a', 0, 255});
  CHECK(load_prompt_bytes(file, 256, 100)->size() == 5);

  auto other_vocabulary = load_prompt_bytes(file, 32000, 3);
  REQUIRE_FALSE(other_vocabulary);
  CHECK(other_vocabulary.error().sentence.find("32000") != std::string::npos);
  CHECK(other_vocabulary.error().exit_code == 2);
  CHECK_FALSE(load_prompt_bytes(directory.path() / "absent", 256, 3));
  CHECK_FALSE(load_prompt_bytes(directory.path(), 256, 3));
  directory.write("prompt", "");
  CHECK_FALSE(load_prompt_bytes(file, 256, 3));
}

TEST_CASE("a prompt of token ids is numbers, however they are set apart") {
  temporary_directory directory;
  const auto ids = [&](const std::string& text, std::size_t most = 100) {
    directory.write("ids", text);
    return load_prompt_ids(directory.path() / "ids", 1000, most);
  };
  CHECK(*ids("1 2\n003,999") == std::vector<std::uint32_t>{1, 2, 3, 999});
  CHECK(*ids("[ 1, 2, 3 ]\n") == std::vector<std::uint32_t>{1, 2, 3});
  CHECK(*ids("1 2 3 x", 2) == std::vector<std::uint32_t>{1, 2});
  for (const std::string text : {"", " , ", "1 2 x", "1.5", "-1", "1000", "18446744073709551617", "7\xff"}) {
    CAPTURE(text);
    auto refused = ids(text);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().sentence.find("ids") != std::string::npos);
  }
  CHECK_FALSE(ids(std::string("1\0", 2)));
  CHECK_FALSE(load_prompt_ids(directory.path() / "absent", 1000, 5));
}
