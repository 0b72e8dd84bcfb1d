#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <utility>

#include "terrace/core/crc32c.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/execution/event_source.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/watched_clock.hpp"
#include "terrace/observe/trace_log.hpp"
#include "terrace/transfer/job.hpp"
#include "terrace/transfer/route.hpp"
#include "terrace/transfer/staging.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Carries blocks between tiers. One flat operation state serves every pair of tiers (read > work > write): sender
/// adaptors nested across tiers would cost seconds of compile time, and nothing else. Memory is allocated at start:
/// one carrier for each of the planner's jobs, and the staging buffers, which bound what is in flight.
///
/// A job that has not ended by its deadline is reported to the planner as overdue, and its I/O is asked to stop.
/// Deadlines only count time in which the owner polled (execution/watched_clock.hpp). The job keeps its carrier and
/// staging buffers until it has really ended.
template <class... Tiers>
class transfer_engine final : public transfer_port, private event_source {
  static constexpr std::size_t count = sizeof...(Tiers);
  template <std::size_t I>
  using tier_at = std::tuple_element_t<I, std::tuple<Tiers...>>;

 public:
  /// The medium of each tier, as a type-erased pointer; nullptr if the tier was left out.
  using media = std::array<void*, count>;
  static constexpr std::array<route_end, count> ends{route_end::of<Tiers>()...};

  /// How much staging the routes between the open tiers need.
  struct staging_needs {
    std::size_t buffers = 0;  ///< the most that a route takes at once; 0 if none needs any
    bool raw_blocks = false;  ///< some route stages a raw block
  };
  static staging_needs needs(const std::array<bool, count>& open) noexcept {
    staging_needs all;
    for (std::size_t from = 0; from < count; ++from) {
      for (std::size_t to = 0; to < count; ++to) {
        if (!open[from] || !open[to]) continue;
        all.buffers = std::max(all.buffers, routes_[from][to].staging_buffers());
        // If the host cannot address the first tier, its blocks are staged too: they are raw.
        const route& r = routes_[from][to];
        all.raw_blocks =
            all.raw_blocks || r.scratch || (from == 0 && r.stage_source) || (to == 0 && r.stage_target);
      }
    }
    return all;
  }

  transfer_engine(context& ctx, media m, staging& buffers, std::size_t carriers,
                  context::clock::duration deadline)
      : context_(ctx),
        media_(m),
        staging_(buffers),
        watched_(deadline),
        carriers_(std::make_unique<carrier[]>(carriers)) {
    for (std::size_t i = 0; i < carriers; ++i) {
      carriers_[i].engine = this;
      carriers_[i].next = std::exchange(free_, &carriers_[i]);
    }
    context_.attach(*this);
  }
  ~transfer_engine() override { context_.detach(*this); }

  /// Before the first job starts.
  void report_to(transfer_listener& l) noexcept { listener_ = &l; }

  void start(transfer_job& job) noexcept override {
    carrier& c = *std::exchange(free_, free_->next);
    ++under_way_;
    c.job = &job;
    c.how = &routes_[job.from][job.to];
    c.next = nullptr;
    (waiting_ == nullptr ? waiting_ : last_waiting_->next) = &c;
    last_waiting_ = &c;
    if (on_time_.first == nullptr) watched_.begin(context_.now());
    c.due = watched_.now() + watched_.patience();
    c.stop.emplace();
    on_time_.push_back(c);
    begin_waiting();
  }
  std::size_t staging_in_use() const noexcept override { return staging_.bytes_in_use(); }
  std::size_t staging_bytes() const noexcept override { return staging_.bytes(); }

 private:
  struct carrier;
  struct receiver {
    using receiver_concept = ex::receiver_t;
    carrier* c;
    void set_value() noexcept { c->io_done({}); }
    void set_error(error e) noexcept { c->io_done(propagate(e)); }
    void set_stopped() noexcept { c->io_done(fail(errc::stopped, "a transfer was stopped")); }
    struct env {
      ex::inplace_stop_token token;
      ex::inplace_stop_token query(ex::get_stop_token_t) const noexcept { return token; }
    };
    env get_env() const noexcept { return {c->stop->get_token()}; }
  };
  template <class Tier>
  using read_operation =
      ex::connect_result_t<decltype(std::declval<typename Tier::medium_type&>().read({}, {})), receiver>;
  template <class Tier>
  using write_operation =
      ex::connect_result_t<decltype(std::declval<typename Tier::medium_type&>().write({}, {})), receiver>;

  static constexpr std::size_t operation_bytes =
      std::max({std::size_t{1}, sizeof(read_operation<Tiers>)..., sizeof(write_operation<Tiers>)...});
  static constexpr std::size_t operation_align = std::max(
      {alignof(std::max_align_t), alignof(read_operation<Tiers>)..., alignof(write_operation<Tiers>)...});

  static constexpr std::array<std::array<route, count>, count> routes_ = routes_between(ends);

  struct pool_work : task {
    explicit pool_work(carrier* c) noexcept : task(&run), owner(c) {}
    static void run(task* t) noexcept { static_cast<pool_work*>(t)->owner->transcode_now(); }
    carrier* owner;
  };
  struct back_home : task {
    explicit back_home(carrier* c) noexcept : task(&run), owner(c) {}
    static void run(task* t) noexcept { static_cast<back_home*>(t)->owner->work_done(); }
    carrier* owner;
  };

  // One job under way. Everything but transcode_now() runs on the owner.
  struct carrier {
    transfer_engine* engine = nullptr;
    transfer_job* job = nullptr;
    const route* how = nullptr;
    carrier* next = nullptr;
    std::byte* staged_source = nullptr;
    std::byte* staged_target = nullptr;
    std::byte* scratch = nullptr;
    trace_log* trace = nullptr;
    std::int64_t io_began = 0;  // if it is traced
    result<std::size_t> worked = std::size_t{0};
    pool_work work{this};
    back_home home{this};
    bool writing = false;
    std::optional<ex::inplace_stop_source> stop;  // asked when the job is overdue
    watched_clock::duration due{};
    carrier* earlier = nullptr;  // among those that are on time
    carrier* later = nullptr;
    bool giving_up = false;
    std::optional<result<void>> ended;  // the outcome, if it ended while giving up

    void begin() noexcept {
      job->begun = true;
      staging& buffers = engine->staging_;
      if (how->stage_source) staged_source = buffers.take();
      if (how->stage_target) staged_target = buffers.take();
      if (how->scratch) scratch = buffers.take();
      writing = false;
      trace = engine->context_.trace();
      if (how->read)
        engine->with_tier(job->from, [this]<std::size_t I>() { this->template read<I>(); });
      else
        work_or_write();
    }
    void io_done(result<void> outcome) noexcept {
      trace_io();
      job->write_failed = !outcome && writing;
      if (!outcome || writing || job->overdue) return finish(outcome);
      work_or_write();
    }
    void work_or_write() noexcept {
      if (how->what == route::work::none && !how->verify && !how->sum) return place(job->source.bytes);
      // A check takes less time than waking a thread and being woken by it. So the owner does it, unless other
      // transfers are under way that could proceed meanwhile.
      if (how->what == route::work::none && engine->under_way_ == 1)
        transcode_now();
      else
        engine->context_.pool().submit(work);
      // This comes last: the listener may poll, and then the work may be done and this operation gone.
      if (how->read) engine->listener_->source_read(*job);
    }
    void transcode_now() noexcept {
      static constexpr std::array names{"check", "copy", "encode", "decode", "recode"};
      {
        const trace_scope scope(trace, trace_track::copy, names[static_cast<std::size_t>(how->what)],
                                job->block, job->group->block_bytes());
        worked = check_and_transcode();
      }
      engine->context_.post(home);
    }
    // Checksums cover the encoded bytes as stored in the medium. What was read is checked before a codec sees it.
    result<std::size_t> check_and_transcode() noexcept {
      const const_bytes from{how->read && !how->stage_source ? target() : source(), job->source.bytes};
      if (how->verify && crc32c(from) != job->source_checksum)
        return fail(errc::corrupt, "a block that was read is not what was written: its checksum differs");
      auto done = transcode(how->what, ends[job->from].codec, ends[job->to].codec, *job->group, from,
                            {target(), target_bytes()}, {scratch, engine->staging_.buffer_bytes()});
      if (done && how->sum) {
        const bool unchanged = how->what == route::work::none || how->what == route::work::copy;
        job->target_checksum = how->verify && unchanged ? job->source_checksum
                                                        : crc32c({unchanged ? from.data() : target(), *done});
      }
      return done;
    }
    void work_done() noexcept {
      if (!worked) return finish(propagate(worked.error()));
      place(*worked);
    }
    // Moves the encoded bytes from where the work left them to the target, unless they are there already.
    void place(std::size_t bytes) noexcept {
      if (job->to != 0 && bytes < job->target.bytes && !engine->listener_->shrink_target(*job, bytes)) {
        job->write_failed = true;
        return finish(fail(errc::out_of_capacity, "a tier was made smaller than what was on its way to it"));
      }
      if (!how->write) {
        // If nothing is written, the target has an address, but the compiler cannot see that.
        if (std::byte* const to = engine->address(job->to, job->target); how->stage_target && to != nullptr)
          std::memcpy(to, staged_target, bytes);
        return finish({});
      }
      writing = true;
      engine->with_tier(job->to, [this]<std::size_t I>() { this->template write<I>(); });
    }

    // The deadline has passed. If the job ends while it is asked to stop or while the planner is told, its end is put
    // off until both calls have returned, because they refer to it.
    void give_up() noexcept {
      engine->on_time_.erase(*this);
      job->overdue = true;
      const bool in_line = !job->begun && engine->leave_line(*this);
      giving_up = true;
      stop->request_stop();
      engine->listener_->overdue(*job);
      giving_up = false;
      if (in_line) return release(fail(errc::deadline, "a transfer found no staging before its deadline"));
      if (ended) finish(*std::exchange(ended, std::nullopt));
    }

    // Where the encoded source is, and where the encoded target goes. A direct read lands in the target's slot; a
    // direct write leaves from the source.
    std::byte* source() noexcept {
      return how->stage_source ? staged_source : engine->address(job->from, job->source);
    }
    std::byte* target() noexcept {
      return how->stage_target ? staged_target : engine->address(job->to, job->target);
    }
    std::size_t target_bytes() const noexcept {
      return how->stage_target ? engine->staging_.buffer_bytes() : job->target.bytes;
    }

    void trace_io() noexcept {
      if (trace == nullptr) [[likely]]
        return;
      trace->add({.name = writing ? "write" : "read",
                  .begin = io_began,
                  .end = trace_log::now(),
                  .bytes = writing ? job->target.bytes : job->source.bytes,
                  .block = job->block,
                  .track = trace_track::io});
    }

    template <std::size_t I>
    void read() noexcept {
      if constexpr (tier_at<I>::medium_type::addressable != reach::host) {
        auto& medium = engine->template medium_of<I>();
        std::byte* into = how->stage_source ? staged_source : target();
        const std::size_t bytes = align_up(job->source.bytes, tier_at<I>::medium_type::alignment);
        auto* io = ::new (storage)
            read_operation<tier_at<I>>(ex::connect(medium.read(job->source, {into, bytes}), receiver{this}));
        end_io = [](void* p) noexcept { std::destroy_at(static_cast<read_operation<tier_at<I>>*>(p)); };
        if (trace != nullptr) io_began = trace_log::now();
        ex::start(*io);
      }
    }
    template <std::size_t I>
    void write() noexcept {
      if constexpr (tier_at<I>::medium_type::addressable != reach::host) {
        auto& medium = engine->template medium_of<I>();
        const std::byte* from = how->stage_target ? staged_target : source();
        const std::size_t bytes = align_up(job->target.bytes, tier_at<I>::medium_type::alignment);
        end_operation();
        auto* io = ::new (storage) write_operation<tier_at<I>>(
            ex::connect(medium.write(job->target, {from, bytes}), receiver{this}));
        end_io = [](void* p) noexcept { std::destroy_at(static_cast<write_operation<tier_at<I>>*>(p)); };
        if (trace != nullptr) io_began = trace_log::now();
        ex::start(*io);
      }
    }
    void end_operation() noexcept {
      if (end_io != nullptr) std::exchange(end_io, nullptr)(storage);
    }
    void finish(result<void> outcome) noexcept {
      if (giving_up) {
        ended = outcome;
        return;
      }
      end_operation();
      if (!job->overdue) engine->on_time_.erase(*this);
      staging& buffers = engine->staging_;
      if (how->stage_source) buffers.give_back(staged_source);
      if (how->stage_target) buffers.give_back(staged_target);
      if (how->scratch) buffers.give_back(scratch);
      release(outcome);
    }
    void release(result<void> outcome) noexcept {
      transfer_engine& e = *engine;
      transfer_job& done = *job;
      next = std::exchange(e.free_, this);
      --e.under_way_;
      e.begin_waiting();
      e.listener_->finished(done, outcome);
    }

    void (*end_io)(void*) noexcept = nullptr;
    alignas(operation_align) std::byte storage[operation_bytes];
  };

  // All jobs have the same time limit, so they pass their deadlines in the order in which they were started.
  struct queue_by_time {
    carrier* first = nullptr;
    carrier* last = nullptr;
    void push_back(carrier& c) noexcept {
      c.earlier = std::exchange(last, &c);
      c.later = nullptr;
      (c.earlier == nullptr ? first : c.earlier->later) = &c;
    }
    void erase(carrier& c) noexcept {
      (c.earlier == nullptr ? first : c.earlier->later) = c.later;
      (c.later == nullptr ? last : c.later->earlier) = c.earlier;
    }
  };

  // As an event source, it waits only for deadlines.
  std::size_t poll() noexcept override {
    if (on_time_.first == nullptr) return 0;
    const auto now = watched_.look(context_.now());
    std::size_t passed = 0;
    for (; on_time_.first != nullptr && on_time_.first->due <= now; ++passed) on_time_.first->give_up();
    return passed;
  }
  std::size_t pending() const noexcept override { return 0; }
  int descriptor() const noexcept override { return -1; }
  context::clock::time_point due() const noexcept override {
    return on_time_.first == nullptr ? context::clock::time_point::max()
                                     : watched_.next_look(on_time_.first->due);
  }

  void begin_waiting() noexcept {
    while (waiting_ != nullptr && waiting_->how->staging_buffers() <= staging_.available()) {
      carrier& c = *std::exchange(waiting_, waiting_->next);
      c.begin();
    }
  }
  // O(jobs in line). False if it is no longer in line.
  bool leave_line(carrier& c) noexcept {
    carrier* before = nullptr;
    for (carrier* at = waiting_; at != nullptr; before = at, at = at->next) {
      if (at != &c) continue;
      (before == nullptr ? waiting_ : before->next) = c.next;
      if (last_waiting_ == &c) last_waiting_ = before;
      return true;
    }
    return false;
  }
  std::byte* address(std::size_t tier, const extent& e) noexcept {
    std::byte* at = nullptr;
    with_tier(tier, [&]<std::size_t I>() {
      if constexpr (tier_at<I>::medium_type::addressable == reach::host) at = medium_of<I>().address(e);
    });
    return at;
  }
  template <std::size_t I>
  auto& medium_of() noexcept {
    return *static_cast<typename tier_at<I>::medium_type*>(media_[I]);
  }
  // Calls f.operator()<I>() for the I that equals `tier`.
  template <class F>
  void with_tier(std::size_t tier, F f) noexcept {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      static_cast<void>(((I == tier && (f.template operator()<I>(), true)) || ...));
    }
    (std::index_sequence_for<Tiers...>{});
  }

  context& context_;
  media media_;
  staging& staging_;
  watched_clock watched_;
  transfer_listener* listener_ = nullptr;
  queue_by_time on_time_;
  std::unique_ptr<carrier[]> carriers_;
  carrier* free_ = nullptr;
  std::size_t under_way_ = 0;   // jobs started and not ended
  carrier* waiting_ = nullptr;  // jobs that wait for staging, in order of start
  carrier* last_waiting_ = nullptr;
};

}  // namespace TERRACE_EX
}  // namespace terrace
