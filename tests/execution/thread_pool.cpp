#include "terrace/execution/thread_pool.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "catch.hpp"

namespace {

// Writes down the order in which tasks run. Only a pool of one thread, or a lock, makes that a fact.
struct noted : terrace::task {
  noted(std::vector<int>& to, int value) : task(&run), order(to), number(value) {}
  static void run(task* self) noexcept {
    auto& mine = *static_cast<noted*>(self);
    mine.order.push_back(mine.number);
    mine.ran_on = std::this_thread::get_id();
  }
  std::vector<int>& order;
  int number;
  std::thread::id ran_on{};
};

struct counted : terrace::task {
  counted() : task(&run) {}
  static void run(task* self) noexcept { static_cast<counted*>(self)->times.fetch_add(1); }
  std::atomic<int> times{0};
};

// Holds a thread of the pool until it is opened.
struct gate : terrace::task {
  gate() : task(&run) {}
  static void run(task* self) noexcept {
    auto& mine = *static_cast<gate*>(self);
    std::unique_lock lock(mine.mutex);
    mine.reached = true;
    mine.changed.notify_all();
    mine.changed.wait(lock, [&] { return mine.opened; });
  }
  void wait_until_reached() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return reached; });
  }
  void open() {
    const std::lock_guard lock(mutex);
    opened = true;
    changed.notify_all();
  }
  std::mutex mutex;
  std::condition_variable changed;
  bool reached = false;
  bool opened = false;
};

}  // namespace

TEST_CASE("a pool of one thread runs tasks in the order of submission, on its own thread") {
  std::vector<int> order;
  noted first(order, 1), second(order, 2), third(order, 3);
  {
    terrace::thread_pool pool(1);
    REQUIRE(pool.size() == 1);
    gate hold;
    pool.submit(hold);
    hold.wait_until_reached();
    pool.submit(first);
    pool.submit(second);
    pool.submit(third);
    hold.open();
    pool.finish();
  }
  CHECK(order == std::vector{1, 2, 3});
  CHECK(first.ran_on != std::this_thread::get_id());
}

TEST_CASE("a pool without threads runs a task at once, on the caller") {
  terrace::thread_pool pool(0);
  std::vector<int> order;
  noted one(order, 1);
  pool.submit(one);
  CHECK(order == std::vector{1});
  CHECK(one.ran_on == std::this_thread::get_id());
}

TEST_CASE("destroying a pool finishes what was queued") {
  std::vector<counted> work(1000);
  {
    terrace::thread_pool pool(2);
    for (auto& item : work) pool.submit(item);
  }
  for (auto& item : work) REQUIRE(item.times == 1);
}

TEST_CASE("several threads may submit, and each task runs once") {
  std::vector<counted> work(400);
  {
    terrace::thread_pool pool(2);
    std::vector<std::thread> submitters;
    for (std::size_t part = 0; part < 4; ++part)
      submitters.emplace_back([&, part] {
        for (std::size_t i = 0; i < 100; ++i) pool.submit(work[part * 100 + i]);
      });
    for (auto& submitter : submitters) submitter.join();
  }
  for (auto& item : work) REQUIRE(item.times == 1);
}

TEST_CASE("a task may be queued again by itself") {
  struct again : terrace::task {
    explicit again(terrace::thread_pool& to) : task(&run), pool(to) {}
    static void run(task* self) noexcept {
      auto& mine = *static_cast<again*>(self);
      if (--mine.left > 0) mine.pool.submit(mine);
    }
    terrace::thread_pool& pool;
    int left = 100;
  };
  terrace::thread_pool pool(1);
  again work(pool);
  pool.submit(work);
  pool.finish();
  CHECK(work.left == 0);
}

TEST_CASE("a finished pool is a pool without threads") {
  terrace::thread_pool pool(2);
  pool.finish();
  CHECK(pool.size() == 0);
  std::vector<int> order;
  noted one(order, 1);
  pool.submit(one);
  CHECK(order == std::vector{1});
  pool.finish();
}
