#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "accuracy.hpp"
#include "interruption.hpp"
#include "ladder_batch.hpp"
#include "open_ladder.hpp"
#include "progress.hpp"
#include "run_result.hpp"
#include "synthetic_kv.hpp"

namespace runner {

/// Attention alone over synthetic KV: fills the cache with a context, then decodes. There is no prefill, and no layer
/// but attention is computed.
class shape_job : recomputation {
 public:
  shape_job(const model_shape& shape, const run_request& request)
      : request_(request), kv_(shape), outputs_(shape.layers), accuracy_(kv_, request) {}

  outcome<run_result> run(const run_plan& plan, terrace::context& ctx) {
    run_result r = run_result::of(request_, plan);
    auto opened = open_ladder(ctx, plan, request_.policy, prefetcher_named(request_.prefetch, plan));
    if (!opened) return refuse_opening(opened.error());
    std::vector<std::unique_ptr<ladder>>& sequences = sequences_;
    sequences.push_back(std::move(*opened));
    sequences.front()->repair_with(*this, request_.inject);
    if (request_.attend.selects()) sequences.front()->select_by(request_.attend);
    progress bar(plan.codec);

    const auto start = std::chrono::steady_clock::now();
    if (auto filled = fill(*sequences.front(), plan.chunk, bar); !filled)
      return failed(filled.error(), "filling the context failed");
    r.prefill_s = seconds_since(start);
    if (auto* const selector = sequences.front()->selector()) selector->start();
    while (sequences.size() < request_.batch) sequences.push_back(sequences.front()->fork());

    // Sequences that select blocks attend each for itself; others read what they share together.
    std::optional<ladder_batch> together;
    if (sequences.size() > 1 && !request_.attend.selects()) together.emplace(sequences);

    ctx.trace(request_.trace);
    for (std::uint32_t step = 0; step < request_.decode_tokens; ++step) {
      if (auto going = go_on(); !going) return failed(going.error(), "decode failed");
      auto took = together ? decode(*together, step, ctx) : decode_each(step, ctx);
      if (!took) return failed(took.error(), "decode failed");
      sequences.front()->end_step();
      r.decode_s.push_back(*took);
      bar.at(request_.context_tokens + step + 1, request_.context_tokens + request_.decode_tokens);
    }
    ctx.trace(nullptr);
    r.error = accuracy_.found();
    r.stats = sequences.front()->stats();
    r.health = sequences.front()->health();
    r.recomputed_blocks = sequences.front()->recomputed_blocks();
    for (const auto& s : sequences)
      if (s->selector() != nullptr)
        (r.selection ? *r.selection : r.selection.emplace()) += s->selector()->result();
    if (plan.codec != "resident") {
      const auto repeat = [&](step_parts parts, std::span<const std::byte> stand_in) {
        return together ? together->repeat_last_token(parts, stand_in) : repeat_each(parts, stand_in);
      };
      auto measured = measure_steps(*sequences.front(), repeat);
      if (!measured) return failed(measured.error(), "measuring a step failed");
      r.step = *measured;
    }
    r.process_bytes_peak = process_bytes_peak();
    together.reset();
    sequences.clear();
    return r;
  }

 private:
  using plane = synthetic_kv::plane;

  // Rows of a reservation, written by all threads: one layer is one piece of work.
  void write(const terrace::reservation& to, std::uint32_t layer, std::uint32_t sequence) const noexcept {
    write_rows(to.k(layer), to.v(layer), layer, to.first_position(), sequence);
  }
  // The tokens of the context are the same for all sequences.
  void write_rows(const terrace::plane_rows& k, const terrace::plane_rows& v, std::uint32_t layer,
                  std::uint64_t first, std::uint32_t sequence) const noexcept {
    for (std::uint32_t h = 0; h < kv_.shape().kv_heads; ++h)
      for (std::uint32_t t = 0; t < k.tokens(); ++t) {
        const std::uint32_t own = first + t < request_.context_tokens ? 0 : sequence;
        std::ranges::copy(kv_.row(plane::k, layer, h, first + t, own), k.row<terrace::fp16>(t, h).begin());
        std::ranges::copy(kv_.row(plane::v, layer, h, first + t, own), v.row<terrace::fp16>(t, h).begin());
      }
  }

  // Synthetic data is simply made again.
  terrace::result<void> compute(ladder& kv, block_place place) override {
    std::uint32_t sequence = 0;
    while (sequences_[sequence].get() != &kv) ++sequence;
    return kv.restore(place, [&](terrace::restoration& to) {
      write_rows(to.k(place.layer), to.v(place.layer), place.layer, to.range().first_token, sequence);
      return terrace::result<void>{};
    });
  }

  terrace::result<void> fill(ladder& kv, std::uint32_t chunk, progress& bar) {
    for (std::uint32_t at = 0; at < request_.context_tokens;) {
      if (auto going = go_on(); !going) return going;
      const std::uint32_t count = std::min(chunk, request_.context_tokens - at);
      if (auto room = kv.reserve(count); !room) return room;
      kv.owner().parallel_for(kv_.shape().layers, [&](std::size_t layer) noexcept {
        write(kv.reserved(), static_cast<std::uint32_t>(layer), 0);
      });
      if (auto kept = kv.commit(count); !kept) return kept;
      bar.at(at += count, request_.context_tokens + request_.decode_tokens);
    }
    return {};
  }

  std::size_t width() const noexcept { return std::size_t{kv_.shape().q_heads} * kv_.shape().head_dim; }

  // A token of each sequence through every layer, one sequence after the other; returns the seconds that it took.
  // Synthetic data is made outside of the timed part, here and below.
  terrace::result<double> decode_each(std::uint32_t step, terrace::context& ctx) {
    double took = 0;
    for (std::uint32_t s = 0; s < sequences_.size(); ++s) {
      ladder& kv = *sequences_[s];
      make_queries(step, s);
      const auto start = std::chrono::steady_clock::now();
      if (auto room = kv.reserve(1); !room) return terrace::propagate(room.error());
      for (std::uint32_t layer = 0; layer < kv_.shape().layers; ++layer) {
        write(kv.reserved(), layer, s);
        if (auto done = kv.attend(layer, query_of(layer), outputs_[layer]); !done)
          return terrace::propagate(done.error());
      }
      kv.keep(1);
      took += seconds_since(start);
      accuracy_.compare(ctx, step, s, queries_, outputs_);
    }
    return took;
  }
  terrace::result<void> repeat_each(step_parts parts, std::span<const std::byte> stand_in) {
    for (const auto& s : sequences_)
      if (auto done = s->repeat_last_token(parts, stand_in); !done) return done;
    return {};
  }

  // The same for all sequences together.
  terrace::result<double> decode(ladder_batch& all, std::uint32_t step, terrace::context& ctx) {
    const std::uint32_t layers = kv_.shape().layers;
    const std::size_t count = sequences_.size();
    together_.resize(layers);
    for (std::uint32_t s = 0; s < count; ++s) {
      make_queries(step, s);
      for (std::uint32_t layer = 0; layer < layers; ++layer) {
        together_[layer].queries.resize(count * width());
        together_[layer].out.resize(count * width());
        std::ranges::copy(query_of(layer), part(together_[layer].queries, s).begin());
      }
    }
    const auto start = std::chrono::steady_clock::now();
    if (auto room = all.reserve(); !room) return terrace::propagate(room.error());
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      for (std::uint32_t s = 0; s < count; ++s) write(all.reserved(s), layer, s);
      if (auto done = all.attend(layer, together_[layer].queries, together_[layer].out); !done)
        return terrace::propagate(done.error());
    }
    all.keep();
    const double took = seconds_since(start);
    for (std::uint32_t s = 0; s < count; ++s) {
      make_queries(step, s);
      for (std::uint32_t layer = 0; layer < layers; ++layer)
        std::ranges::copy(part(together_[layer].out, s), outputs_[layer].begin());
      accuracy_.compare(ctx, step, s, queries_, outputs_);
    }
    return took;
  }

  // Makes the queries of one sequence, for all layers, and room for the results.
  void make_queries(std::uint32_t step, std::uint32_t sequence) {
    queries_.resize(kv_.shape().layers * width());
    for (std::uint32_t layer = 0; layer < kv_.shape().layers; ++layer) {
      outputs_[layer].resize(width());
      kv_.queries(layer, std::uint64_t{request_.context_tokens} + step, request_.context_tokens, sequence,
                  query_of(layer));
    }
  }
  std::span<float> query_of(std::uint32_t layer) {
    return std::span(queries_).subspan(layer * width(), width());
  }
  std::span<float> part(std::vector<float>& all, std::size_t s) const {
    return std::span(all).subspan(s * width(), width());
  }

  run_request request_;
  synthetic_kv kv_;
  std::vector<float> queries_;               // [layer][q_head][dim]
  std::vector<std::vector<float>> outputs_;  // likewise
  struct layer_of_all {
    std::vector<float> queries, out;  // [sequence][q_head][dim]
  };
  std::vector<layer_of_all> together_;
  accuracy accuracy_;
  std::vector<std::unique_ptr<ladder>> sequences_;  // while it runs
};

}  // namespace runner
