// What a policy costs. Its calls: a touch of a list policy compared with a bare intrusive list of the same blocks,
// any other call with the 100 ns that it may take, and the touches of all policies with the textbook's std::list plus
// std::unordered_map. And its books, in bytes for each block of a tier: 16 for lists, 32 for policies that order
// blocks by more.
//
// Blocks are used in random order, the worst that a cache can do to its processor; all of them are in the policy's
// charge. A touch is a use of such a block; to replace is to name a victim, to remove it, and to admit it again as a
// new block, which is what a miss costs. Each figure is of one pass over a random order, after a pass that is not
// counted.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <list>
#include <new>
#include <random>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "report.hpp"
#include "terrace/core/index_list.hpp"
#include "terrace/policy/attention_weighted.hpp"
#include "terrace/policy/fifo.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/prefix_aware.hpp"
#include "terrace/policy/s3_fifo.hpp"
#include "terrace/policy/sieve.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/policy/two_queue.hpp"

namespace {
std::size_t allocated_bytes = 0;
}  // namespace

// What a policy allocates is counted. Not inlined: next to a delete-expression, free() looks like a mistake to GCC.
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto unit = static_cast<std::size_t>(alignment);
  allocated_bytes += bytes;
  if (void* p = std::aligned_alloc(unit, (bytes / unit + 1) * unit)) return p;
  std::abort();
}
void* operator new(std::size_t bytes) {
  return operator new (bytes, std::align_val_t{__STDCPP_DEFAULT_NEW_ALIGNMENT__});
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }
void operator delete(void* p, std::align_val_t) noexcept { operator delete(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { operator delete(p); }

namespace {

using namespace terrace;

constexpr std::size_t uses = 200'000;  // per sample
constexpr double least_ns = 0.1;       // what lies below is noise

// Blocks in random order: another one for each sample, because what the sample before has used is in the caches.
class random_uses {
 public:
  explicit random_uses(std::uint32_t blocks) : blocks_(blocks), order_(uses) {}
  const std::vector<std::uint32_t>& next() {
    for (auto& i : order_) i = static_cast<std::uint32_t>(random_() % blocks_);
    return order_;
  }

 private:
  std::mt19937 random_{1};
  std::uint32_t blocks_;
  std::vector<std::uint32_t> order_;
};

double ns_each(double seconds, std::size_t calls) { return seconds * 1e9 / static_cast<double>(calls); }

// The least that a least-recently-used order can do.
class bare_list {
 public:
  explicit bare_list(std::uint32_t blocks) : links_(blocks) {
    for (std::uint32_t i = 0; i < blocks; ++i) order_.push_back(links_, i);
  }
  double touch(const std::vector<std::uint32_t>& order) {
    return ns_each(bench::seconds([&] {
                     for (const std::uint32_t i : order) {
                       order_.erase(links_, i);
                       order_.push_back(links_, i);
                     }
                   }),
                   order.size());
  }

 private:
  std::vector<index_link> links_;
  index_list order_;
};

class textbook {
 public:
  explicit textbook(std::uint32_t blocks) {
    for (std::uint32_t i = 0; i < blocks; ++i) where_[i] = order_.insert(order_.end(), i);
  }
  double touch(const std::vector<std::uint32_t>& order) {
    return ns_each(bench::seconds([&] {
                     for (const std::uint32_t i : order)
                       order_.splice(order_.end(), order_, where_.find(i)->second);
                   }),
                   order.size());
  }

 private:
  std::list<std::uint32_t> order_;
  std::unordered_map<std::uint32_t, std::list<std::uint32_t>::iterator> where_;
};

template <class P>
class filled {
 public:
  explicit filled(std::uint32_t blocks) : states_(blocks) {
    policy_.bind(states_);
    for (std::uint32_t i = 0; i < blocks; ++i) policy_.admit(i, info(i));
  }
  double touch(const std::vector<std::uint32_t>& order) {
    return ns_each(bench::seconds([&] {
                     for (const std::uint32_t i : order) policy_.touch(i, {.step = step_, .mass = 0.01f});
                   }),
                   order.size());
  }
  // What naming the victim adds to a touch, which may change the victim: the time with it, less the time without.
  double victim(random_uses& order_of) {
    advance();
    const double alone = touch(order_of.next());
    advance();
    const std::vector<std::uint32_t>& order = order_of.next();
    std::uint32_t sum = 0;
    const double both = ns_each(bench::seconds([&] {
                                  for (const std::uint32_t i : order) {
                                    policy_.touch(i, {.step = step_, .mass = 0.01f});
                                    sum += policy_.victim();
                                  }
                                }),
                                order.size());
    victims_ = victims_ + sum;
    return std::max(both - alone, least_ns);
  }
  double replace(std::size_t times) {
    return ns_each(bench::seconds([&] {
                     for (std::size_t n = 0; n < times; ++n) {
                       const std::uint32_t i = policy_.victim();
                       evict_from(policy_, i);
                       policy_.admit(i, info(next_key_));
                     }
                   }),
                   times);
  }
  void advance() { policy_.advance_step(++step_); }

 private:
  block_info info(std::uint64_t key) {
    next_key_ = key + 1;
    return {.key = key + 1, .depth = static_cast<std::uint32_t>(key % 64)};
  }
  std::vector<typename P::block_state> states_;
  P policy_;
  std::uint64_t next_key_ = 0, step_ = 0;
  volatile std::uint32_t victims_ = 0;  // so that naming them is not optimised away
};

std::string size_name(std::uint32_t blocks) {
  return blocks >= 1'000'000 ? std::to_string(blocks / 1'000'000) + "M" : std::to_string(blocks / 1000) + "k";
}

template <class... P>
struct list_of {
  template <class Q>
  static constexpr bool contains = (std::is_same_v<P, Q> || ...);
};
using list_policies = list_of<lru, fifo, two_queue, s3_fifo, sieve>;

template <class P>
double bytes_a_block(std::uint32_t blocks, typename P::options options) {
  std::vector<typename P::block_state> states(blocks);
  const std::size_t before = allocated_bytes;
  P policy(options);
  policy.bind(states);
  return sizeof(typename P::block_state) + static_cast<double>(allocated_bytes - before) / blocks;
}

template <class P>
void measure_books(bench::report& out, const std::string& name, std::uint32_t blocks) {
  const double all = bytes_a_block<P>(blocks, {});
  const double limit = list_policies::contains<P> ? 16 : 32;
  // Ghosts belong to blocks that the tier no longer holds. The lists with ghosts allocate nothing else.
  const bool ghosts = ghost_keeping_policy<P>;
  double own = ghosts ? double{sizeof(typename P::block_state)} : all;
  if constexpr (std::is_same_v<P, prefix_aware>) own = bytes_a_block<P>(blocks, {.ghosts = 0});
  out.add({name + ", books", "bytes a block", ghosts ? "ghosts apart" : "all", bench::better::smaller, 1.0},
          own, limit);
  if (ghosts)
    out.add({name + ", books with ghosts", "bytes a block", "ghosts counted", bench::better::smaller}, all,
            limit);
}

template <class P>
void measure(bench::report& out, std::uint32_t blocks, random_uses& order) {
  const bool promised = blocks == 1'000'000;
  const std::string name = std::string(P::name) + ", " + size_name(blocks);
  if (promised) measure_books<P>(out, name, blocks);
  const auto any_wanted = [&](auto... rows) { return (out.wanted(name + rows) || ...); };
  if (!any_wanted(", touch", ", touch by the book", ", victim", ", replace")) return;
  filled<P> policy(blocks);
  const auto touch = [&] {
    policy.advance();
    return policy.touch(order.next());
  };
  if constexpr (list_policies::contains<P>) {
    bare_list bare(blocks);
    out.compare({name + ", touch", "ns", "bare intrusive list", bench::better::smaller, 1 / 1.2}, touch,
                [&] { return bare.touch(order.next()); });
  } else {
    out.compare({name + ", touch", "ns", "100 ns", bench::better::smaller,
                 promised ? std::optional(1.0) : std::nullopt},
                touch, [] { return 100.0; });
  }
  if (promised && out.wanted(name + ", touch by the book")) {
    textbook book(blocks);
    out.compare({name + ", touch by the book", "ns", "std::list + unordered_map", bench::better::smaller},
                touch, [&] { return book.touch(order.next()); });
  }
  out.compare(
      {name + ", victim", "ns", "100 ns", bench::better::smaller,
       promised ? std::optional(1.0) : std::nullopt},
      [&] { return policy.victim(order); }, [] { return 100.0; });
  out.compare(
      {name + ", replace", "ns", "100 ns", bench::better::smaller}, [&] { return policy.replace(uses); },
      [] { return 100.0; });
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("policy_overhead", argc, argv);
  for (const std::uint32_t blocks : {1'000u, 1'000'000u, 10'000'000u}) {
    random_uses order(blocks);
    measure<lru>(out, blocks, order);
    measure<fifo>(out, blocks, order);
    measure<two_queue>(out, blocks, order);
    measure<s3_fifo>(out, blocks, order);
    measure<sieve>(out, blocks, order);
    measure<attention_weighted>(out, blocks, order);
    measure<step_aware>(out, blocks, order);
    measure<prefix_aware>(out, blocks, order);
    const std::string name = "std::list + unordered_map, " + size_name(blocks);
    if (!out.wanted(name)) continue;
    textbook book(blocks);
    bare_list bare(blocks);
    out.compare(
        {name, "ns", "bare intrusive list", bench::better::smaller}, [&] { return book.touch(order.next()); },
        [&] { return bare.touch(order.next()); });
  }
  return out.finish();
}
