// Room in tier 0 that is asked for without blocking: for a sequence's tokens, for a batch's, for a block that is
// computed anew.
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "small_cache.hpp"
#include "terrace/batch.hpp"
#include "watcher.hpp"

using namespace terrace;

namespace {

// Notes the reservation that came, or why none did.
struct outcome {
  struct receiver {
    using receiver_concept = ex::receiver_t;
    outcome* to;
    void set_value(reservation r) noexcept {
      to->room.emplace(std::move(r));
      to->ended();
    }
    void set_error(error e) noexcept {
      to->why = e;
      to->ended();
    }
    void set_stopped() noexcept { to->ended(); }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, to->token}; }
  };
  void ended() {
    over = true;
    if (order != nullptr) order->push_back(number);
  }
  std::optional<reservation> room;
  std::optional<error> why;
  bool over = false;
  std::vector<int>* order = nullptr;
  int number = 0;
  ex::inplace_stop_token token{};
};

}  // namespace

TEST_CASE("room that there is comes at once, and is that of reserve") {
  small_cache<> f(6, 64);
  REQUIRE(f.append(1));
  auto room = f.ctx.sync_wait(f.tokens->reserve_async(20));
  REQUIRE(room);
  CHECK(room->first_position() == 16);
  CHECK(room->tokens() == 20);
  pattern::write(*room, 1, 1);
  f.tokens->commit(std::move(*room), 20);
  CHECK(f.tokens->length() == 36);
  for (std::size_t i = 0; i < 2; ++i) CHECK(f.read(i));
  CHECK(f.ctx.sync_wait(f.tokens->reserve_async(0)).error().code == errc::invalid_argument);
}

TEST_CASE("where a transfer has to make room nobody blocks, and the sequence counts as reserved") {
  full_cache f;
  sequence other = f.cache().make_sequence();
  outcome o;
  auto operation = other.reserve_async(40).connect(outcome::receiver{&o});
  operation.start();
  CHECK_FALSE(o.over);
  for (int i = 0; i < 10; ++i) f.ctx.poll();
  CHECK_FALSE(o.over);
  CHECK(other.reserve(1).error().code == errc::invalid_argument);
  CHECK(other.truncate(0).error().code == errc::invalid_argument);
  while (!o.over) {
    f.script.release_all();
    f.ctx.poll();
  }
  REQUIRE(o.room);
  CHECK(o.room->tokens() == 40);
  pattern::write(*o.room, 1, 2);
  other.commit(std::move(*o.room), 40);
  CHECK(other.length() == 40);
  f.script.hold = false;
  f.settle();
  for (std::size_t i = 0; i < 6; ++i) CHECK(f.read(i));
}

TEST_CASE("who waits for room is served first come first served, and only the first holds any") {
  full_cache f;
  std::vector<int> order;
  std::vector<sequence> requests;
  for (int i = 0; i < 3; ++i) requests.push_back(f.cache().make_sequence());
  outcome outcomes[3];
  for (int i = 0; i < 3; ++i) {
    outcomes[i].order = &order;
    outcomes[i].number = i;
  }
  const auto begin = [&](int i) {
    return requests[static_cast<std::size_t>(i)]
        .reserve_async(i == 0 ? 48 : 16)
        .connect(outcome::receiver{&outcomes[i]});
  };
  auto first = begin(0), second = begin(1), third = begin(2);
  first.start();
  second.start();
  third.start();
  CHECK(order.empty());
  f.script.hold = false;
  f.script.release_all();
  while (order.size() != 3) {
    for (int i = 1; i < 3; ++i)  // those behind hold nothing while one before them waits
      if (!outcomes[i].over && !outcomes[i - 1].over)
        REQUIRE(requests[static_cast<std::size_t>(i)].pages().rows[0].empty());
    f.ctx.poll();
  }
  CHECK(order == std::vector{0, 1, 2});
  for (outcome& o : outcomes) CHECK(o.room);
}

TEST_CASE("one that is refused holds nothing, and lets the next one in") {
  full_cache f;
  sequence large = f.cache().make_sequence(), small = f.cache().make_sequence();
  auto block = f.ctx.sync_wait(large.reserve_async(7 * 16));
  CHECK(block.error().code == errc::out_of_capacity);  // never fits
  f.script.hold = false;
  f.settle();
  const auto ids = f.ids();
  auto held = f.ctx.sync_wait(f.cache().acquire(std::span(ids).first(3)));  // pins three of six slots
  REQUIRE(held);
  f.script.hold = true;
  REQUIRE(f.append(2));  // these two are on their way down, and a third slot is theirs to be had
  outcome o, next;
  auto operation = large.reserve_async(5 * 16).connect(outcome::receiver{&o});
  auto behind = small.reserve_async(16).connect(outcome::receiver{&next});
  operation.start();
  behind.start();
  CHECK_FALSE(o.over);
  CHECK_FALSE(next.over);
  f.settle();
  REQUIRE(o.over);
  CHECK(o.why->code == errc::out_of_capacity);
  CHECK(large.pages().rows[0].empty());
  CHECK(next.room);
  next.room.reset();
  CHECK(f.pins() == 3);
  held->release();
  CHECK(f.pins() == 0);
  CHECK(large.reserve(5 * 16));
}

TEST_CASE("one that is stopped gives back what it had, and the next one in line has it") {
  full_cache f;
  sequence large = f.cache().make_sequence(), small = f.cache().make_sequence();
  ex::inplace_stop_source stop;
  outcome o, next;
  o.token = stop.get_token();
  auto operation = large.reserve_async(6 * 16).connect(outcome::receiver{&o});
  auto behind = small.reserve_async(16).connect(outcome::receiver{&next});
  operation.start();
  behind.start();
  medium_script::held* const one = std::exchange(f.script.waiting, f.script.waiting->next);
  one->finish(one);
  for (int i = 0; i < 10; ++i) f.ctx.poll();
  REQUIRE_FALSE(o.over);
  REQUIRE_FALSE(large.pages().rows[0].empty());
  stop.request_stop();
  while (!o.over) f.ctx.poll();
  CHECK_FALSE(o.room);
  CHECK_FALSE(o.why);
  CHECK(large.pages().rows[0].empty());
  CHECK(next.room);  // at once: there was room for one
  next.room.reset();
  f.script.hold = false;
  f.settle();
  CHECK(f.pins() == 0);
  CHECK(large.reserve(6 * 16));

  ex::inplace_stop_source before;
  before.request_stop();
  outcome none;
  none.token = before.get_token();
  auto never = small.reserve_async(1).connect(outcome::receiver{&none});
  never.start();
  CHECK(none.over);
  CHECK_FALSE(none.room);
}

TEST_CASE(
    "a tail that two share is copied when there is room for the copy, and comes back where nothing is kept") {
  small_cache<> f(6, 64);
  REQUIRE(pattern::append(*f.tokens, 8, 1, 1));
  sequence fork = f.cache().fork(*f.tokens);
  sequence filler = f.cache().make_sequence();
  f.script.hold = true;
  REQUIRE(pattern::append(filler, 5 * 16, 1, 3));
  const block_id shared = fork.pages().rows[0][0];
  outcome o;
  auto operation = fork.reserve_async(24).connect(outcome::receiver{&o});
  operation.start();
  CHECK_FALSE(o.over);
  f.script.hold = false;
  f.settle();
  REQUIRE(o.room);
  CHECK(fork.pages().rows[0].size() == 2);
  CHECK(fork.pages().rows[0][0] != shared);
  o.room.reset();
  CHECK(fork.pages().rows[0] == std::vector{shared});
}

TEST_CASE("a batch has room for all of its tokens or for none, and nothing else is asked of it meanwhile") {
  full_cache f;
  sequence a = f.cache().make_sequence(), b = f.cache().make_sequence();
  batch both(f.cache());
  sequence* const members[] = {&a, &b};
  REQUIRE(both.assign(members));
  const std::vector<std::uint32_t> tokens{20, 30}, one{16, 0};
  ending how = ending::none;
  {
    ex::inplace_stop_source stop;
    auto operation = both.reserve_async(tokens).connect(watcher{&how, stop.get_token()});
    operation.start();
    CHECK(how == ending::none);
    CHECK(both.reserve(one).error().code == errc::invalid_argument);
    CHECK(both.assign(members).error().code == errc::invalid_argument);
    CHECK(both.drop(0).error().code == errc::invalid_argument);
    CHECK(f.ctx.sync_wait(both.next(0)).error().code == errc::invalid_argument);
    stop.request_stop();
    while (how == ending::none) f.ctx.poll();
    CHECK(how == ending::stopped);
  }
  CHECK(a.pages().rows[0].empty());
  CHECK(b.pages().rows[0].empty());
  f.script.hold = false;
  f.settle();
  REQUIRE(f.ctx.sync_wait(both.reserve_async(tokens)));
  CHECK(both.new_tokens(0) == 20);
  CHECK(both.new_tokens(1) == 30);
  for (std::size_t i = 0; i < 2; ++i) pattern::write(both.reserved(i), 1, 5);
  both.commit(tokens);
  CHECK(a.length() == 20);
  CHECK(b.length() == 30);

  {
    auto own = b.reserve(1);  // the second member cannot, so the first has nothing either
    REQUIRE(own);
    CHECK(f.ctx.sync_wait(both.reserve_async(tokens)).error().code == errc::invalid_argument);
    CHECK(both.new_tokens(0) == 0);
    CHECK(a.reserve(1));
  }
}

TEST_CASE("while a batch waits for room, nobody else changes those that it reserves for") {
  full_cache f;
  sequence a = f.cache().make_sequence(), b = f.cache().make_sequence(), idle = f.cache().make_sequence();
  batch all(f.cache());
  sequence* const members[] = {&a, &b, &idle};
  REQUIRE(all.assign(members));
  const std::vector<std::uint32_t> tokens{20, 30, 0};
  ending how = ending::none;
  auto operation = all.reserve_async(tokens).connect(watcher{&how, {}});
  operation.start();
  REQUIRE(how == ending::none);
  for (sequence* const s : {&a, &b}) {
    CHECK(s->reserve(1).error().code == errc::invalid_argument);
    CHECK(s->truncate(0).error().code == errc::invalid_argument);
    CHECK(s->suspend().error().code == errc::invalid_argument);
  }
  CHECK(idle.suspend());
  f.script.hold = false;
  f.settle();
  REQUIRE(how == ending::value);
  CHECK(all.tokens(0) == 20);
  CHECK(all.tokens(1) == 30);
  all.commit(tokens);
}

TEST_CASE("one that is refused while it is asked to stop keeps nothing from the next in line") {
  small_cache<> f(6, 64);
  REQUIRE(f.append(4));
  f.settle();
  const auto ids = f.ids();
  auto held = f.ctx.sync_wait(f.cache().acquire(std::span(ids).first(3)));  // three of six slots
  REQUIRE(held);
  f.script.hold = true;
  REQUIRE(f.append(2));
  sequence large = f.cache().make_sequence(), small = f.cache().make_sequence();
  ex::inplace_stop_source stop;
  outcome o, next;
  o.token = stop.get_token();
  auto operation = large.reserve_async(5 * 16).connect(outcome::receiver{&o});
  auto behind = small.reserve_async(16).connect(outcome::receiver{&next});
  operation.start();
  behind.start();
  REQUIRE_FALSE(o.over);
  f.script.release_all();  // the last transfers end, and it fails
  stop.request_stop();     // or is stopped first
  while (!o.over || !next.over) {
    f.ctx.poll();
    f.script.release_all();
  }
  CHECK(next.room);
}
