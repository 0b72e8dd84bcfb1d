#include "terrace/policy/block_queue.hpp"

#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

struct queue_of_four {
  std::vector<block_place> places{4};
  std::span<block_place> states{places};
  block_queue queue;
  queue_of_four() {
    for (std::uint32_t i = 0; i < 4; ++i) queue.push(states, i);
  }
};

}  // namespace

TEST_CASE("block_queue: who is pinned keeps his place and is not counted") {
  queue_of_four q;
  q.queue.suspend(q.states, 1);
  CHECK(q.queue.size() == 3);
  q.queue.resume(q.states, 1);
  CHECK(q.queue.size() == 4);
  q.queue.erase(q.states, 0);
  CHECK(q.queue.front(q.states) == 1);
}

TEST_CASE("block_queue: whose turn came while pinned returns to the front") {
  queue_of_four q;
  q.queue.suspend(q.states, 0);
  CHECK(q.queue.front(q.states) == 1);
  q.queue.resume(q.states, 0);
  CHECK(q.queue.front(q.states) == 0);
}

TEST_CASE("block_queue: who is refreshed goes to the back, pinned or not, overtaken or not") {
  queue_of_four q;
  q.queue.refresh(q.states, 0);
  q.queue.suspend(q.states, 1);
  q.queue.refresh(q.states, 1);
  q.queue.suspend(q.states, 2);
  CHECK(q.queue.front(q.states) == 3);
  q.queue.refresh(q.states, 2);
  q.queue.resume(q.states, 1);
  q.queue.resume(q.states, 2);
  for (const std::uint32_t expected : {3u, 0u, 1u, 2u}) {
    CHECK(q.queue.front(q.states) == expected);
    q.queue.erase(q.states, expected);
  }
  CHECK(q.queue.front(q.states) == index_link::none);
  CHECK(q.queue.size() == 0);
}

TEST_CASE("block_queue: who is erased is forgotten, pinned, overtaken or neither") {
  queue_of_four q;
  q.queue.suspend(q.states, 0);
  q.queue.suspend(q.states, 2);
  CHECK(q.queue.front(q.states) == 1);
  for (std::uint32_t i = 0; i < 4; ++i) q.queue.erase(q.states, i);
  CHECK(q.queue.size() == 0);
  CHECK(q.queue.front(q.states) == index_link::none);
  q.queue.push(q.states, 2);
  CHECK(q.queue.front(q.states) == 2);
}
