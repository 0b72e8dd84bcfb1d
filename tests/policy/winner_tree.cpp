#include "terrace/policy/winner_tree.hpp"

#include <limits>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

// Beside an ordered set, which has the highest key last and of equal keys the lowest index.
template <class Key>
struct beside_a_set {
  winner_tree<Key> tree;
  std::vector<Key> keys;  // absent where there is none
  std::set<std::pair<Key, std::int64_t>> naive;

  explicit beside_a_set(std::uint32_t indices) : keys(indices, winner_tree<Key>::absent) {}
  void set(std::uint32_t i, Key key) {
    forget(i);
    keys[i] = key;
    naive.emplace(key, -std::int64_t{i});
    tree.set(i, key);
  }
  void erase(std::uint32_t i) {
    forget(i);
    tree.erase(i);
  }
  bool agrees() {
    return tree.top() ==
           (naive.empty() ? index_link::none : static_cast<std::uint32_t>(-naive.rbegin()->second));
  }

 private:
  void forget(std::uint32_t i) {
    naive.erase({keys[i], -std::int64_t{i}});
    keys[i] = winner_tree<Key>::absent;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("winner_tree: equals an ordered set on random calls, while it grows", "", double,
                   std::uint64_t, std::int64_t) {
  std::mt19937 random(5);
  beside_a_set<TestType> both(600);
  CHECK(both.tree.top() == index_link::none);
  // One match, a full one, one more; two rounds; three rounds.
  for (const std::uint32_t room : {1u, 8u, 9u, 64u, 65u, 600u}) {
    both.tree.reserve(room);
    REQUIRE(both.agrees());
    for (int call = 0; call < 20000; ++call) {
      const std::uint32_t i = static_cast<std::uint32_t>(random() % room);
      if (random() % 3 == 0)
        both.erase(i);
      else
        both.set(i, static_cast<TestType>(1 + random() % 30));  // so that some are equal
      REQUIRE(both.agrees());
      REQUIRE(both.tree.contains(i) == (both.keys[i] != winner_tree<TestType>::absent));
    }
  }
  both.tree.reserve(5);  // it never shrinks
  CHECK(both.agrees());
  for (std::uint32_t i = 0; i < 600; ++i) both.erase(i);
  CHECK(both.tree.top() == index_link::none);
}

TEST_CASE("winner_tree: the lowest and the highest keys there are") {
  winner_tree<double> numbers;
  numbers.reserve(100);
  numbers.set(77, std::numeric_limits<double>::lowest());
  CHECK(numbers.top() == 77);
  numbers.set(3, std::numeric_limits<double>::infinity());
  CHECK(numbers.top() == 3);
  winner_tree<std::uint64_t> moments;
  moments.reserve(100);
  moments.set(99, 1);
  CHECK(moments.top() == 99);
  moments.set(0, std::numeric_limits<std::uint64_t>::max());
  CHECK(moments.top() == 0);
}

TEST_CASE("winner_tree: a new winner of a match comes forward when the old one falls or goes") {
  winner_tree<std::uint64_t> tree;
  tree.reserve(5000);
  for (std::uint32_t i = 0; i < 5000; ++i) tree.set(i, 1 + (i * 7919) % 5000);  // each once, shuffled
  std::uint32_t before = tree.top();
  tree.set(before, 1);
  CHECK(tree.top() != before);
  for (std::uint64_t left = 4999; left > 1; --left) {
    const std::uint32_t top = tree.top();
    CHECK(1 + (top * 7919) % 5000 == left);
    tree.erase(top);
  }
}
