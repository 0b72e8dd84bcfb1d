#include "terrace/policy/one_of.hpp"

#include <tuple>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"
#include "terrace/policy/attention_weighted.hpp"
#include "terrace/policy/fifo.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/s3_fifo.hpp"
#include "terrace/policy/sieve.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/policy/two_queue.hpp"
#include "terrace/testing/policy_conformance.hpp"

using namespace terrace;

using any = one_of<fifo, lru, two_queue, s3_fifo, sieve, step_aware, attention_weighted>;

TEMPLATE_TEST_CASE("one_of: the chosen policy decides as it does alone", "", fifo, lru, two_queue, s3_fifo,
                   sieve, step_aware, attention_weighted) {
  const std::optional<std::size_t> choice = any::index_of(TestType::name);
  REQUIRE(choice.has_value());
  const any::options options{.choice = *choice};
  CHECK(any(options).chosen() == TestType::name);
  CHECK(policy_conformance<any>(options) == std::nullopt);
  const std::vector<test::trace_access> trace = test::random_trace(3);
  for (const std::uint32_t capacity : test::capacities)
    for (const auto how : {test::use_of_a_hit::in_charge, test::use_of_a_hit::pinned})
      CHECK((test::hits(test::simulated_cache<any>(capacity, how, options), trace) ==
             test::hits(test::simulated_cache<TestType>(capacity, how), trace)));
}

TEST_CASE("one_of: each policy has options of its own") {
  any::options o{.choice = *any::index_of("step_aware")};
  std::get<step_aware::options>(o.each).patience = 0;
  const std::vector<test::trace_access> trace = test::random_trace(4);
  const std::vector<bool> impatient = test::hits(test::simulated_cache<any>(64, {}, o), trace);
  CHECK((impatient == test::hits(test::simulated_cache<step_aware>(64, {}, {.patience = 0}), trace)));
  CHECK((impatient != test::hits(test::simulated_cache<step_aware>(64), trace)));
}

TEST_CASE("one_of: the first is the default, and an unknown name is none") {
  CHECK(any().chosen() == "fifo");
  CHECK(any::names.size() == 7);
  CHECK(any::index_of("belady") == std::nullopt);
  STATIC_REQUIRE(any::index_of("fifo") == 0u);
}
