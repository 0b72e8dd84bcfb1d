#include "catch.hpp"
#include "terrace/codec/chain.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/lz4.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/codec/zstd.hpp"
#include "terrace/testing/codec_conformance.hpp"

using namespace terrace;

TEMPLATE_TEST_CASE("a compressor keeps the contract of a codec, alone and behind others", "", zstd<>, lz4,
                   (chain<q8_0, zstd<>>), (chain<q4_0, zstd<>>), (chain<fp8, zstd<>>), (chain<fp8, lz4>),
                   (chain<q8_0, lz4, zstd<>>)) {
  const auto violated = codec_conformance<TestType>({.rounds = 10});
  INFO(violated.value_or(""));
  CHECK_FALSE(violated);
}
