#include "terrace/prefix_tree.hpp"

#include <limits>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

using text = std::vector<token_id>;
constexpr std::size_t chunk = 3, no_quota = std::numeric_limits<std::size_t>::max();

// Everything collides with everything.
struct no_hash {
  std::uint64_t operator()(std::uint64_t, std::span<const token_id>) const noexcept { return 7; }
};

// Few different chunks, so that texts have beginnings in common.
text random_text(std::mt19937& random, std::size_t chunks) {
  text all;
  for (std::size_t n = 0; n < chunks; ++n) all.insert(all.end(), {1, static_cast<token_id>(random() % 3), 2});
  return all;
}

template <class Hash>
std::size_t known(const prefix_tree<Hash>& tree, const text& tokens, std::uint64_t tenant = 0) {
  return tree.walk(tokens, tenant, [](std::uint32_t) { return true; }).chunks;
}
// As much of a text as there is room for.
template <class Hash, class Forget>
void insert(prefix_tree<Hash>& tree, const text& tokens, std::uint64_t tenant, std::size_t quota,
            Forget&& forget) {
  auto at = tree.start();
  while ((at.chunks + 1) * chunk <= tokens.size()) {
    const auto rest = std::span(tokens).subspan(at.chunks * chunk);
    auto further = tree.next(at, rest, tenant);
    if (further.last == tree.none) {
      const auto victim = tree.gives_way(tenant, at.last, quota);
      if (!victim) break;
      if (*victim != tree.none) tree.erase(*victim, forget);
      further.last = tree.append(at, further.hash, rest, tenant);
    }
    at = further;
  }
  tree.touch(at.last);
}

}  // namespace

TEMPLATE_TEST_CASE("prefix_tree: knows exactly the texts that were put in and not erased", "", chained_hash,
                   no_hash) {
  std::mt19937 random(9);
  prefix_tree<TestType> tree(40, chunk, 5);
  std::set<std::pair<std::uint64_t, text>> naive;  // every beginning that is known, by tenant
  std::map<std::uint32_t, std::pair<std::uint64_t, text>> entries;
  const auto forget = [&](std::uint32_t e) {
    REQUIRE(tree.alive(e));
    REQUIRE(naive.erase(entries.at(e)) == 1);
    entries.erase(e);
  };
  for (int round = 0; round < 3000; ++round) {
    const std::uint64_t tenant = random() % 3;
    const text tokens = random_text(random, 1 + random() % 5);
    if (random() % 20 == 0) {
      if (const std::uint32_t e = tree.oldest_of(tenant); e != tree.none) tree.erase(e, forget);
    } else {
      insert(tree, tokens, tenant, random() % 4 == 0 ? 12 : no_quota, forget);
      auto at = tree.start();
      while (at.chunks < known(tree, tokens, tenant)) {
        at = tree.next(at, std::span(tokens).subspan(at.chunks * chunk), tenant);
        REQUIRE(tree.tenant(at.last) == tenant);
        const std::pair beginning(
            tenant, text(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(at.chunks * chunk)));
        naive.insert(beginning);
        entries[at.last] = beginning;
      }
    }
    REQUIRE(tree.size() == naive.size());
    REQUIRE(tree.size() <= tree.capacity());
    const text other = random_text(random, 5);
    std::size_t expected = 0;
    while (expected < 5 &&
           naive.count({tenant, text(other.begin(), other.begin() + static_cast<std::ptrdiff_t>(
                                                                        (expected + 1) * chunk))}) != 0)
      ++expected;
    REQUIRE(known(tree, other, tenant) == expected);
  }
}

TEST_CASE("prefix_tree: who gives way is the oldest of those with the most, never what it would follow") {
  prefix_tree<> tree(4, chunk, 0);
  const auto forget = [](std::uint32_t) {};
  const text a{1, 1, 1, 2, 2, 2}, b{3, 3, 3}, c{4, 4, 4};
  CHECK(tree.any_tenant() == std::nullopt);
  CHECK(tree.gives_way(1, tree.none, 0) == std::nullopt);  // a quota of nothing
  insert(tree, a, 1, no_quota, forget);
  insert(tree, b, 1, no_quota, forget);
  insert(tree, c, 2, no_quota, forget);
  CHECK(tree.size() == 4);
  CHECK(tree.oldest_of(3) == tree.none);
  const std::uint32_t end_of_a = tree.oldest_of(1);
  CHECK(tree.parent(end_of_a) != tree.none);
  CHECK(tree.gives_way(2, tree.none, no_quota) == end_of_a);
  CHECK(tree.gives_way(1, end_of_a, no_quota) == std::nullopt);
  CHECK(tree.gives_way(2, tree.none, 1) == tree.oldest_of(2));
  tree.touch(end_of_a);
  CHECK(tree.gives_way(2, tree.none, no_quota) == tree.walk(b, 1, [](std::uint32_t) { return true; }).last);
  std::vector<std::uint32_t> gone;
  tree.erase(tree.parent(end_of_a), [&](std::uint32_t e) { gone.push_back(e); });
  CHECK(gone.size() == 2);
  CHECK(gone[0] == end_of_a);  // the end goes first
  CHECK(known(tree, a, 1) == 0);
  CHECK(known(tree, b, 1) == 1);
  CHECK(known(tree, b, 2) == 0);
}

TEST_CASE("prefix_tree: a walk ends before an entry that is of no use") {
  prefix_tree<> tree(8, chunk, 0);
  const text a{1, 1, 1, 2, 2, 2, 3, 3, 3};
  insert(tree, a, 0, no_quota, [](std::uint32_t) {});
  const auto all = tree.walk(a, 0, [](std::uint32_t) { return true; });
  CHECK(all.chunks == 3);
  const std::uint32_t second = tree.parent(all.last);
  CHECK(tree.walk(a, 0, [&](std::uint32_t e) { return e != second; }).chunks == 1);
  CHECK(known(tree, text(a.begin(), a.begin() + 8)) == 2);  // whole chunks only
}
