// Bugs of the kinds that users of every KV cache report, planted into what a cache is composed of: the simulator must
// find each of them. A simulator that finds nothing proves nothing.
#include <list>
#include <string>
#include <utility>

#include "catch.hpp"
#include "simulator/ladders.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/testing/archetypes.hpp"

using namespace terrace;
using simulated::on_disk;
using simulated::slot;

namespace {

constexpr std::size_t operations = 20'000;

// --- Media that lie.

template <class M>
class liar : public faulty {
 public:
  using faulty::faulty;
  static result<std::unique_ptr<M>> open(context& ctx, options o) { return std::make_unique<M>(ctx, o); }
};

class honest : public liar<honest> {
  using liar::liar;
};

// Says that a write is complete, and reads the buffer when it comes to it: the slot has another block by then.
class hasty : public liar<hasty> {
 public:
  using liar::liar;
  auto write(extent e, const_bytes from) {
    return ex::then(ex::just(), [this, e, from]() noexcept {
      ex::start(
          late_.emplace_back(elide{[&] { return ex::connect(faulty::write(e, from), nobody{}); }}).operation);
    });
  }

 private:
  struct nobody {
    using receiver_concept = ex::receiver_t;
    void set_value() noexcept {}
    void set_error(const error&) noexcept {}
    void set_stopped() noexcept {}
    ex::env<> get_env() const noexcept { return {}; }
  };
  using inner = ex::connect_result_t<decltype(std::declval<faulty&>().write({}, {})), nobody>;
  struct late_write {
    template <class Make>
    explicit late_write(Make make) : operation(make) {}
    inner operation;
  };
  std::list<late_write> late_;
};

// Its writes fail, and it says that all is well.
class smiling : public liar<smiling> {
 public:
  using liar::liar;
  auto write(extent e, const_bytes from) {
    return ex::upon_error(faulty::write(e, from), [](const error&) noexcept {});
  }
};

// A read that says how it ended as often as `times` says: one in 16 reads never, or twice.
template <int Times>
class miscounting : public liar<miscounting<Times>> {
 public:
  using liar<miscounting<Times>>::liar;

  template <class R>
  struct operation : task {
    using operation_state_concept = ex::operation_state_t;
    operation(context& c, R r) : task(&again), ctx(c), receiver(std::move(r)) {}
    void start() noexcept {
      if (Times == 0) return;
      auto* const second = new operation(ctx, receiver);
      ctx.post(*second);
      ex::set_value(std::move(receiver));
    }
    static void again(task* t) noexcept { ex::set_value(std::move(static_cast<operation*>(t)->receiver)); }
    context& ctx;
    R receiver;
  };
  struct sender {
    using sender_concept = ex::sender_t;
    template <class Self, class... E>
    static consteval auto get_completion_signatures() {
      return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error), ex::set_stopped_t()>{};
    }
    template <class R>
    struct either {
      using operation_state_concept = ex::operation_state_t;
      using real = ex::connect_result_t<decltype(std::declval<faulty&>().read({}, {})), R>;
      either(const sender& s, R r)
          : wrong(*s.ctx, r),
            right(ex::connect(s.medium->faulty::read(s.at, s.into), std::move(r))),
            lies(s.lies) {}
      void start() noexcept { lies ? ex::start(wrong) : ex::start(right); }
      operation<R> wrong;
      real right;
      bool lies;
    };
    template <class R>
    either<R> connect(R receiver) const {
      return {*this, std::move(receiver)};
    }
    context* ctx;
    miscounting* medium;
    extent at;
    mutable_bytes into;
    bool lies;
  };
  miscounting(context& ctx, const faulty::options& o) : liar<miscounting<Times>>(ctx, o), ctx_(&ctx) {}
  sender read(extent e, mutable_bytes into) noexcept { return {ctx_, this, e, into, ++reads_ % 16 == 0}; }

 private:
  context* ctx_;
  unsigned reads_ = 0;
};

// Says that it has half of the room that it gives, and where it hides that, that it uses no more.
template <bool Hides>
class boundless : public liar<boundless<Hides>> {
 public:
  using liar<boundless<Hides>>::liar;
  std::size_t capacity() const noexcept { return faulty::capacity() / 2; }
  std::size_t used() const noexcept { return Hides ? std::min(faulty::used(), capacity()) : faulty::used(); }
};

// A codec that cannot read one block in 50, says that it could, and leaves in the slot what was there: a block of
// another request.
struct careless : codec_archetype {
  static constexpr std::uint32_t format_id = 0xfffffffdu;
  static inline unsigned decoded = 0;
  static result<void> decode(const layer_group& group, const_bytes in, mutable_bytes raw) noexcept {
    if (++decoded % 50 == 0) return {};
    return codec_archetype::decode(group, in, raw);
  }
};

// --- What the simulator says of them.

template <class Cache>
make_ladder ladder_of(std::vector<std::size_t> units, std::chrono::hours deadline = {}) {
  return [units = std::move(units), deadline](std::uint64_t seed) {
    simulated_setup s = simulated::setup_of(seed, units);
    if (deadline != std::chrono::hours(0)) s.tuning.transfers.deadline = deadline;
    return std::make_unique<ladder_over<Cache>>(std::move(s));
  };
}
template <class M>
using over = tiered_cache<tier<ram>, tier<M>, tier<faulty>, lru>;
template <class M>
using staged_over = tiered_cache<tier<ram>, tier<M, q8_0>, lru>;

std::string verdict(const make_ladder& make, const simulated_mix& mix = usual_mix) {
  return simulate(make, 1, random_program(1, operations, mix), 60).violation;
}
bool says(const std::string& verdict, std::string_view part) {
  UNSCOPED_INFO("the simulator said: " << verdict);
  return verdict.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("of honest media and codecs there is nothing to say") {
  CHECK(verdict(ladder_of<over<honest>>({slot, on_disk, on_disk})).empty());
  CHECK(verdict(ladder_of<staged_over<honest>>({slot, on_disk}, std::chrono::hours(10'000))).empty());
  using coded = tiered_cache<tier<ram>, tier<ram, codec_archetype>, tier<faulty>, lru>;
  CHECK(verdict(ladder_of<coded>({slot, slot, on_disk})).empty());
}

TEST_CASE("garbage after offload: a slot is used again before its write has been read") {
  simulated_mix nothing_fails =
      usual_mix;  // a store that fails behind the cache's back would be noticed first
  nothing_fails[static_cast<std::size_t>(simulated_verb::fault)] = 0;
  CHECK(
      says(verdict(ladder_of<over<hasty>>({slot, on_disk, on_disk}), nothing_fails), "no fault has struck"));
}

TEST_CASE("another request's block is served after a read that failed") {
  using coded = tiered_cache<tier<ram>, tier<ram, careless>, tier<faulty>, lru>;
  CHECK(says(verdict(ladder_of<coded>({slot, slot, on_disk})), "wrong bytes"));
}

TEST_CASE("a pin leaks, or is given back twice") {
  simulated_mix nobody_waits{};  // who does would say so first
  for (const auto v : {simulated_verb::begin, simulated_verb::append, simulated_verb::prefetch,
                       simulated_verb::wait, simulated_verb::settle})
    nobody_waits[static_cast<std::size_t>(v)] = 1;
  CHECK(says(verdict(ladder_of<over<miscounting<0>>>({slot, on_disk, on_disk}), nobody_waits), "pins"));
  CHECK_FALSE(verdict(ladder_of<over<miscounting<2>>>({slot, on_disk, on_disk})).empty());
}

TEST_CASE("staging is full, and somebody waits for it without an end") {
  // Who waits is seen to wait, or is told in the end that there is nothing to be had, though nothing has failed.
  const std::string said =
      verdict(ladder_of<staged_over<miscounting<0>>>({slot, on_disk}, std::chrono::hours(10'000)));
  CHECK((says(said, "wait") || says(said, "no fault has struck: blocks could not be had")));
}

TEST_CASE("a disk tier grows beyond its capacity, openly or not") {
  CHECK(says(verdict(ladder_of<over<boundless<false>>>({slot, on_disk, on_disk})),
             "grown beyond its capacity"));
  CHECK(says(verdict(ladder_of<over<boundless<true>>>({slot, on_disk, on_disk})), "room leaked"));
}

TEST_CASE("stores fail, and the figures say that all is well") {
  // Failures that are not counted, or the stores that are counted instead: whichever is seen first.
  const std::string said = verdict(ladder_of<over<smiling>>({slot, on_disk, on_disk}));
  CHECK((says(said, "figures do not say so") || says(said, "counts stores that its device has not seen")));
}
