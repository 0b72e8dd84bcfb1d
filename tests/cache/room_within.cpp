// What is done from within: by who is given room, and by who hears of it in the middle of somebody else's call.
#include <optional>
#include <utility>

#include "small_cache.hpp"
#include "watcher.hpp"

using namespace terrace;

namespace {

// Calls f when room has come, from within what brought it.
template <class F>
auto and_then(F f) {
  return ex::then([f = std::move(f)](reservation r) mutable noexcept { f(std::move(r)); });
}

}  // namespace

TEST_CASE("who is given room may block for more, and ask for it, before he returns") {
  full_cache f;
  sequence first = f.cache().make_sequence(), second = f.cache().make_sequence(),
           third = f.cache().make_sequence();
  ending how = ending::none, other = ending::none;
  bool blocked = false;
  const auto more = [&](reservation r) {
    f.script.hold = false;
    const auto room = f.ctx.sync_wait(second.reserve_async(20));
    const auto plain = third.reserve(1);
    const auto cut = f.ctx.sync_wait(f.tokens->truncate_async(40));  // brings a block and copies it
    blocked = room && plain && cut && r.tokens() == 16;
  };
  auto operation = (first.reserve_async(16) | and_then(more)).connect(watcher{&how, {}});
  sequence behind = f.cache().make_sequence();
  auto next = (behind.reserve_async(16) | and_then([](reservation) {})).connect(watcher{&other, {}});
  operation.start();
  next.start();
  CHECK(how == ending::none);
  while (how == ending::none || other == ending::none) {
    f.script.release_all();
    f.ctx.poll();
  }
  CHECK(blocked);
  CHECK(how == ending::value);
  CHECK(other == ending::value);
  CHECK(f.tokens->length() == 40);
}

TEST_CASE("a commit is over before those hear of it who wait for what it leaves") {
  small_cache<> f(6, 64);
  f.script.hold = true;
  auto room = f.tokens->reserve(6 * 16);
  REQUIRE(room);
  pattern::write(*room, 1, 1);
  sequence other = f.cache().make_sequence();
  ending how = ending::none;
  std::optional<sequence> fork;
  const auto look = [&](reservation) {
    fork.emplace(f.cache().fork(*f.tokens));  // as it is then
    static_cast<void>(f.tokens->suspend());
  };
  sequence pinned = f.cache().make_sequence();
  auto operation = (other.reserve_async(16) | and_then(look)).connect(watcher{&how, {}});
  f.script.hold = false;
  operation.start();
  // Nothing is on its way, so it was refused at once: no transfer frees a slot.
  CHECK(how == ending::error);

  f.script.hold = true;
  f.tokens->commit(std::move(*room), 3 * 16 + 5);  // three are on their way down, two slots are free
  auto rest = pinned.reserve(2 * 16);
  REQUIRE(rest);
  how = ending::none;
  auto again = (other.reserve_async(32) | and_then(look)).connect(watcher{&how, {}});
  again.start();
  REQUIRE(how == ending::none);
  pinned.commit(std::move(*rest), 0);  // it is called from within
  REQUIRE(how == ending::value);
  REQUIRE(fork);
  CHECK(fork->length() == 53);
  CHECK(f.tokens->suspended());
  f.script.hold = false;
  f.settle();
  REQUIRE(pattern::append(*fork, 3, 1, 1));
  REQUIRE(f.ctx.sync_wait(f.tokens->resume()));
  CHECK(pattern::holds(f.cache().layout().groups[0],
                       f.cache().control().open_data(f.tokens->pages().rows[0].back().index), 0, 3, 1, 5));
  fork.reset();
  f.tokens.reset();
  f.settle();
  CHECK(f.cache().stats().blocks == 0);
  CHECK(f.cache().stats().pins == 0);
}
