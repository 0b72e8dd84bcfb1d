#pragma once
// What the tests of contexts and of rings share: tasks, and posts of another thread to an owner that waits.
#include <thread>
#include <utility>

#include "catch.hpp"
#include "terrace/execution/context.hpp"

inline constexpr auto forever = terrace::context::clock::time_point::max();

template <class F>
struct work : terrace::task {
  explicit work(F f) : task(&run), function(std::move(f)) {}
  static void run(task* self) noexcept { static_cast<work*>(self)->function(); }
  F function;
};

/// Waits while another thread posts `item`.
inline void wait_for_post(terrace::context& ctx, terrace::task& item) {
  std::thread poster([&] { ctx.post(item); });
  CHECK(ctx.wait(forever));
  poster.join();
}

/// Each post of another thread ends a wait, and has run by then. Precondition: nothing else can end it.
inline void check_each_post_wakes(terrace::context& ctx) {
  for (int round = 0; round < 200; ++round) {
    bool ran = false;
    work item([&] { ran = true; });
    wait_for_post(ctx, item);
    REQUIRE(ran);
  }
}
