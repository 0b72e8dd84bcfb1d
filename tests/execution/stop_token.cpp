#include "terrace/execution/subset/stop_token.hpp"

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "catch.hpp"

using namespace terrace::subset;

namespace {
using callback = inplace_stop_callback<std::function<void()>>;
}  // namespace

TEST_CASE("a token without a source never stops") {
  CHECK_FALSE(never_stop_token::stop_requested());
  CHECK_FALSE(never_stop_token::stop_possible());
  const inplace_stop_token none;
  CHECK_FALSE(none.stop_possible());
  CHECK_FALSE(none.stop_requested());
  const callback never_called(none, [] { FAIL("nobody can request this"); });
}

TEST_CASE("tokens of one source are equal, and all see the request") {
  inplace_stop_source source, other;
  const auto token = source.get_token();
  CHECK(token == source.get_token());
  CHECK(token != other.get_token());
  CHECK(token.stop_possible());
  CHECK_FALSE(token.stop_requested());
  CHECK(source.request_stop());
  CHECK(token.stop_requested());
  CHECK(source.stop_requested());
  CHECK_FALSE(source.request_stop());
  CHECK_FALSE(other.stop_requested());
}

TEST_CASE("each callback runs once, on the thread that requests the stop") {
  inplace_stop_source source;
  int first = 0, second = 0;
  std::thread::id ran_on;
  const callback a(source.get_token(), [&] { ++first; });
  const callback b(source.get_token(), [&] {
    ++second;
    ran_on = std::this_thread::get_id();
  });
  CHECK(first + second == 0);
  std::thread requester([&] { source.request_stop(); });
  const auto id = requester.get_id();
  requester.join();
  source.request_stop();
  CHECK(first == 1);
  CHECK(second == 1);
  CHECK(ran_on == id);
}

TEST_CASE("a callback that comes after the request runs in its constructor") {
  inplace_stop_source source;
  source.request_stop();
  bool ran = false;
  const callback late(source.get_token(), [&] { ran = true; });
  CHECK(ran);
}

TEST_CASE("a callback that is gone does not run, wherever it stood in the list") {
  for (int gone = 0; gone < 3; ++gone) {
    inplace_stop_source source;
    std::vector<int> ran;
    std::optional<callback> callbacks[3];
    for (int i = 0; i < 3; ++i) callbacks[i].emplace(source.get_token(), [&ran, i] { ran.push_back(i); });
    callbacks[gone].reset();
    source.request_stop();
    CHECK(ran.size() == 2);
    for (const int i : ran) CHECK(i != gone);
  }
}

TEST_CASE("a callback may destroy itself, and others") {
  inplace_stop_source source;
  std::unique_ptr<callback> self, waiting, done;  // on the heap, where the sanitizer sees a late access
  int ran = 0;
  waiting = std::make_unique<callback>(source.get_token(), [] { FAIL("destroyed before its turn"); });
  self = std::make_unique<callback>(source.get_token(), [&] {
    ++ran;
    waiting.reset();
    done.reset();
    self.reset();
  });
  done = std::make_unique<callback>(source.get_token(), [&] { ++ran; });  // the newest runs first
  source.request_stop();
  CHECK(ran == 2);
  CHECK(self == nullptr);
}

TEST_CASE("a callback may register another, which runs at once") {
  inplace_stop_source source;
  std::optional<callback> second;
  bool ran = false;
  const callback first(source.get_token(), [&] { second.emplace(source.get_token(), [&] { ran = true; }); });
  source.request_stop();
  CHECK(ran);
}

TEST_CASE("destroying a callback waits while it runs on another thread") {
  inplace_stop_source source;
  std::atomic<bool> entered{false}, leave{false};
  bool left = false;  // plain on purpose: the destructor must order it
  std::optional<callback> slow;
  slow.emplace(source.get_token(), [&] {
    entered = true;
    entered.notify_one();
    leave.wait(false);
    left = true;
  });
  std::thread requester([&] { source.request_stop(); });
  entered.wait(false);
  std::thread releaser([&] {
    leave = true;
    leave.notify_one();
  });
  slow.reset();
  CHECK(left);
  requester.join();
  releaser.join();
}

TEST_CASE("registering, unregistering and requesting race without harm") {
  for (int round = 0; round < 300; ++round) {
    auto source = std::make_unique<inplace_stop_source>();
    std::atomic<int> ready{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 2; ++t)
      threads.emplace_back([&] {
        int calls = 0;  // written by the callback, read after its end: the sanitizer watches
        ready.fetch_add(1);
        for (int i = 0; i < 20; ++i) {
          {
            const callback mine(source->get_token(), [&] { ++calls; });
          }
          if (calls > i + 1) std::abort();
        }
      });
    while (ready.load() < 2) std::this_thread::yield();
    source->request_stop();
    for (auto& thread : threads) thread.join();
    bool late = false;
    {
      const callback after(source->get_token(), [&] { late = true; });
    }
    REQUIRE(late);
  }
}
