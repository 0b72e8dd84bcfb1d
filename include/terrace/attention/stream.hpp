#pragma once
#include <atomic>
#include <cstdint>
#include <optional>
#include <ranges>
#include <span>
#include <utility>
#include <vector>

#include "terrace/attention/stream_run.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/sequence.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// The sender that `stream` returns. Completes on the owner with set_value() when `out` is written. On
/// set_error(block_error), which names lost blocks and holds the others of their window, or set_stopped(), `out` is
/// not touched. `Who` gives the cache and the members whose new tokens attend (one_sequence, below; whole_batch).
template <class Who, element_type Q, element_type O>
class stream_sender {
 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(block_error), ex::set_stopped_t()>{};
  }

  struct arguments {
    Who who;
    std::uint32_t layer;
    std::span<const Q> queries;
    std::span<O> out;
    stream_options options;
  };
  explicit stream_sender(arguments a) noexcept : arguments_(a) {}

  template <class R>
  class operation : stream_run {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(const arguments& a, R r)
        : stream_run(*a.who.cache, a.layer, a.options, &finish),
          who_(a.who),
          queries_(a.queries),
          out_(a.out),
          context_(a.who.cache->owner()),
          receiver_(std::move(r)) {}
    operation(operation&&) = delete;

    void start() noexcept {
      const auto token = ex::get_stop_token(ex::get_env(receiver_));
      if (token.stop_requested()) return ex::set_stopped(std::move(receiver_));
      hold_.emplace(who_.held());
      auto loaded = this->load(who_, queries_);
      if (loaded && out_.size() != this->result_size())
        loaded = fail(errc::invalid_argument, "the result of a stream needs [token][q_head][v dim] elements");
      if (!loaded) {
        this->give_back();
        hold_.reset();
        return ex::set_error(std::move(receiver_), block_error(loaded.error()));
      }
      stop_.emplace(token, on_stop{this});
      stream_run::start();
    }

   private:
    using token_type = ex::stop_token_of_t<ex::env_of_t<R>>;
    struct on_stop {
      operation* self;
      void operator()() noexcept { self->stop_requested(); }
    };
    struct stop_task : task {
      explicit stop_task(operation* o) noexcept : task(&run), self(o) {}
      static void run(task* t) noexcept { static_cast<stop_task*>(t)->self->give_up(); }
      operation* self;
    };
    // On any thread; the owner gives up later.
    void stop_requested() noexcept {
      posted_.store(true, std::memory_order_release);
      context_.post(stop_task_);
    }
    void give_up() noexcept {
      gave_up_ = true;
      if (ended_) return deliver();
      this->stop();
    }
    static void finish(stream_run* r) noexcept {
      auto& self = *static_cast<operation*>(r);
      self.ended_ = true;
      self.stop_.reset();
      if (!self.posted_.load(std::memory_order_acquire) || self.gave_up_) self.deliver();
    }
    void deliver() noexcept {
      if (!this->stopped && !this->failure && this->attends()) this->write_result(out_);
      this->give_back();
      hold_.reset();
      if (this->stopped) return ex::set_stopped(std::move(receiver_));
      if (this->failure) return ex::set_error(std::move(receiver_), std::move(*this->failure));
      ex::set_value(std::move(receiver_));
    }

    Who who_;
    std::optional<typename Who::hold> hold_;  // from start to completion
    std::span<const Q> queries_;
    std::span<O> out_;
    context& context_;
    R receiver_;
    stop_task stop_task_{this};
    std::atomic<bool> posted_{false};
    bool ended_ = false, gave_up_ = false;
    std::optional<ex::stop_callback_for_t<token_type, on_stop>> stop_;
  };

  template <class R>
  operation<R> connect(R receiver) const {
    return operation<R>(arguments_, std::move(receiver));
  }

 private:
  arguments arguments_;
};

/// A sequence's open reservation, as a stream sees it.
struct one_sequence {
  struct hold {
    explicit hold(const sequence&) noexcept {}
  };
  kv_store* cache;
  const sequence* tokens;
  const reservation* reserved;
  const sequence& held() const noexcept { return *tokens; }
  void members(std::vector<walk_member>& all) const {
    const std::uint64_t first = reserved->first_position();
    all.push_back({&tokens->pages(), first, first + reserved->tokens()});
  }
};

/// Attention of the reserved tokens over everything that `tokens` has in `layer`, the reserved ones included,
/// each query up to its own position. Returns a sender of no value, which writes `out`.
///
/// `queries` is [token][q_head][dim], `out` is [token][q_head][v dim], both contiguous ranges of fp16, bf16 or float;
/// the number of query heads follows from the size of `queries`. Without a scale in the options, that of the logits
/// is 1 / sqrt(dim). With a single latent plane (MLA), queries are absorbed ones, and the result is in the latent
/// space. With `only` in the options it reads only those sealed blocks (attention/select.hpp chooses them) and the
/// open ones, and the softmax is over these. Everything it refers to must stay in place, unchanged, until it
/// completes. Errors: block_error (see stream_sender), invalid_argument if the sequence was changed meanwhile.
/// O(blocks) requests, O(tokens * context) compute.
template <std::ranges::contiguous_range Queries, std::ranges::contiguous_range Out>
auto stream(kv_store& cache, const sequence& tokens, const reservation& reserved, std::uint32_t layer,
            const Queries& queries, Out&& out, stream_options options = {}) {
  using q = std::ranges::range_value_t<Queries>;
  using o = std::ranges::range_value_t<Out>;
  return stream_sender<one_sequence, q, o>(
      {{&cache, &tokens, &reserved}, layer, std::span<const q>(queries), std::span<o>(out), options});
}

}  // namespace TERRACE_EX
}  // namespace terrace
