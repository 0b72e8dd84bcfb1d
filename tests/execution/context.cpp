#include "terrace/execution/context.hpp"

#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "execution/posting.hpp"

using terrace::context;
using namespace std::chrono_literals;

TEST_CASE("an empty context has nothing to run, and does not wait past its deadline") {
  context ctx;
  CHECK(ctx.idle());
  CHECK(ctx.poll() == 0);
  CHECK_FALSE(ctx.wait(context::clock::now()));
  const auto deadline = context::clock::now() + 2ms;
  CHECK_FALSE(ctx.wait(deadline));
  CHECK(context::clock::now() >= deadline);
}

TEST_CASE("posted tasks run in order on the owner, one poll later where they are posted by tasks") {
  context ctx;
  std::vector<int> order;
  work third([&] { order.push_back(3); });
  work first([&] {
    order.push_back(1);
    ctx.post(third);
  });
  work second([&] { order.push_back(2); });
  ctx.post(first);
  ctx.post(second);
  CHECK_FALSE(ctx.idle());
  CHECK(order.empty());
  CHECK(ctx.poll() == 2);
  CHECK(order == std::vector{1, 2});
  CHECK_FALSE(ctx.idle());
  CHECK(ctx.poll() == 1);
  CHECK(order == std::vector{1, 2, 3});
  CHECK(ctx.idle());
}

TEST_CASE("a post from another thread wakes a waiting owner") {
  context ctx;
  for (int round = 0; round < 200; ++round) {
    std::thread::id ran_on;
    work item([&] { ran_on = std::this_thread::get_id(); });
    wait_for_post(ctx, item);
    REQUIRE(ran_on == std::this_thread::get_id());
    REQUIRE(ctx.idle());
  }
}

TEST_CASE("no post is lost or run twice, and each thread's posts keep their order") {
  context ctx;
  constexpr std::size_t threads = 3;
  constexpr int each = 2000;
  struct entry : terrace::task {
    entry() : task(&run) {}
    static void run(task* self) noexcept {
      auto& mine = *static_cast<entry*>(self);
      *mine.in_order = *mine.in_order && *mine.last + 1 == mine.number;
      *mine.last = mine.number;
    }
    int number = 0;
    int* last = nullptr;
    bool* in_order = nullptr;
  };
  bool in_order = true;
  std::vector<int> last(threads, -1);
  std::vector<std::vector<entry>> items(threads);
  for (std::size_t t = 0; t < threads; ++t) {
    items[t] = std::vector<entry>(each);
    int number = 0;
    for (entry& item : items[t]) {
      item.number = number++;
      item.last = &last[t];
      item.in_order = &in_order;
    }
  }
  std::vector<std::thread> posters;
  for (auto& mine : items)
    posters.emplace_back([&] {
      for (auto& item : mine) ctx.post(item);
    });
  while (last != std::vector<int>(threads, each - 1)) REQUIRE(ctx.wait(forever));
  for (auto& poster : posters) poster.join();
  CHECK(in_order);
  CHECK(ctx.idle());
}

TEST_CASE("a task that polls goes on with the tasks behind it") {
  context ctx;
  std::vector<int> order;
  work second([&] { order.push_back(2); });
  work first([&] {
    order.push_back(1);
    CHECK(ctx.poll() == 1);
    order.push_back(3);
  });
  ctx.post(first);
  ctx.post(second);
  CHECK(ctx.poll() == 1);
  CHECK(order == std::vector{1, 2, 3});
}

TEST_CASE("destroying a context runs what the pool and other threads have posted") {
  bool ran = false;
  work last([&] { ran = true; });
  {
    context ctx{{.codec_threads = 1}};
    work on_pool([&] { ctx.post(last); });
    ctx.pool().submit(on_pool);
    ctx.pool().finish();
    CHECK_FALSE(ran);
  }
  CHECK(ran);
}
