// Sequences that share a context ten times larger than tier 0, and decode a token each: by a stream over the batch,
// by the windows of the batch, and one after the other; compared with compute or transfers alone, whichever takes
// longer.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "report.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"

namespace {

using namespace terrace;
using cache_type = tiered_cache<tier<ram>, tier<nvme>, step_aware>;

constexpr std::uint32_t layers = 4, q_heads = 32, kv_heads = 8, dim = 128, block_tokens = 64,
                        context_tokens = 16384;
constexpr std::size_t width = std::size_t{q_heads} * dim;

[[noreturn]] void give_up(const error& why) {
  std::fprintf(stderr, "shared_context: %s\n", why.message().c_str());
  std::exit(1);
}
template <class T>
T must(result<T> r) {
  if (!r) give_up(r.error());
  return std::move(*r);
}
inline void must(result<void> r) {
  if (!r) give_up(r.error());
}

// Elements in (-1, 1); which ones does not matter, as long as they are not all the same.
std::vector<fp16> some_elements() {
  std::vector<fp16> out(1 << 16);
  std::uint32_t x = 1;
  for (fp16& e : out) {
    x = x * 1664525 + 1013904223;
    e = to_fp16(static_cast<float>(x >> 16) / 32768.0f - 1);
  }
  return out;
}

class decoder {
 public:
  decoder(context& ctx, cache_type& cache, std::uint32_t sequences)
      : context_(ctx),
        cache_(cache),
        batch_(cache, {.sequences = sequences}),
        one_(sequences, 1),
        none_(sequences, 0) {
    sequences_.push_back(cache.make_sequence());
    for (std::uint32_t at = 0; at < context_tokens; at += block_tokens) {
      reservation room = must(sequences_[0].reserve(block_tokens));
      write(room);
      sequences_[0].commit(std::move(room), block_tokens);
    }
    while (sequences_.size() < sequences) sequences_.push_back(cache.fork(sequences_[0]));
    std::vector<sequence*> all;
    for (sequence& s : sequences_) all.push_back(&s);
    must(batch_.assign(all));
    for (const fp16 e : elements_) queries_.push_back(to_float(e));
    queries_.resize(sequences * width);
    out_.resize(queries_.size());
    tiles_ = std::vector<query_tile>(sequences);
    states_ = std::vector<partial_state>(sequences);
  }

  void together(const stream_options& how = {}) {
    step([&](std::uint32_t layer) {
      auto done = context_.sync_wait(stream(cache_, batch_, layer, queries_, out_, how));
      if (!done) give_up(done.error());
    });
  }
  void by_windows() {
    step([&](std::uint32_t layer) {
      must(load(batch_, layer, queries_, tiles_, states_));
      for (;;) {
        auto window = context_.sync_wait(batch_.next(layer, lease_form::attendable));
        if (!window) give_up(window.error());
        if (window->empty()) break;
        attend(*window, tiles_, states_);
      }
      must(finish(states_, out_));
    });
  }
  void one_by_one() {
    for (sequence& s : sequences_) {
      cache_.advance_step(++step_);
      const reservation room = must(s.reserve(1));
      write(room);
      for (std::uint32_t layer = 0; layer < layers; ++layer) {
        auto done = context_.sync_wait(
            stream(cache_, s, room, layer, std::span(queries_).first(width), std::span(out_).first(width)));
        if (!done) give_up(done.error());
      }
    }
  }

 private:
  // The tokens are dropped again, so the context keeps its length.
  template <class Attend>
  void step(Attend attend_layer) {
    cache_.advance_step(++step_);
    must(batch_.reserve(one_));
    for (std::size_t i = 0; i < batch_.size(); ++i) write(batch_.reserved(i));
    for (std::uint32_t layer = 0; layer < layers; ++layer) attend_layer(layer);
    batch_.commit(none_);
  }
  void write(const reservation& room) {
    for (std::uint32_t layer = 0; layer < layers; ++layer)
      for (const plane_rows& rows : {room.k(layer), room.v(layer)})
        for (std::uint32_t t = 0; t < rows.tokens(); ++t)
          for (std::uint32_t h = 0; h < kv_heads; ++h) {
            next_ = (next_ + 97) % (elements_.size() - dim);
            std::memcpy(rows.row<fp16>(t, h).data(), elements_.data() + next_, dim * sizeof(fp16));
          }
  }

  context& context_;
  cache_type& cache_;
  std::vector<sequence> sequences_;
  batch batch_;
  std::vector<std::uint32_t> one_, none_;
  std::vector<fp16> elements_ = some_elements();
  std::size_t next_ = 0;
  std::uint64_t step_ = 0;
  std::vector<float> queries_, out_;
  std::vector<query_tile> tiles_;
  std::vector<partial_state> states_;
};

}  // namespace

int main(int argc, char** argv) {
  bench::report out("shared_context", argc, argv);
  constexpr std::size_t stand_in_bytes = 128_MiB;  // larger than the last cache
  const std::vector<std::byte> stand_in(stand_in_bytes);
  for (const std::uint32_t sequences : {1u, 8u}) {
    const std::string all = std::to_string(sequences) + (sequences == 1 ? " sequence" : " sequences");
    if (!out.wanted(all)) continue;
    const kv_layout layout{
        {{.layers = layers, .tokens = block_tokens, .k = {kv_heads, dim}, .v = {kv_heads, dim}}}};
    const std::size_t kv_bytes = context_tokens * layout.token_bytes();
    context ctx{{.codec_threads = 1}};
    auto cache = must(cache_type::open(ctx, layout, {.capacity = kv_bytes / 10}, {.capacity = kv_bytes}));
    decoder decode(ctx, cache, sequences);

    enum { batch_stream, windows, each, parts };
    std::vector<double> rates[parts], limits;
    for (int round = -1; round < out.rounds(); ++round) {
      const double rate = sequences;
      const double took[parts] = {bench::seconds([&] { decode.together(); }),
                                  bench::seconds([&] { decode.by_windows(); }),
                                  bench::seconds([&] { decode.one_by_one(); })};
      const double transfers = bench::seconds([&] { decode.together({.attend = false}); });
      const double compute = bench::seconds([&] { decode.together({.stand_in = stand_in}); });
      if (round < 0) continue;
      for (int p = 0; p < parts; ++p) rates[p].push_back(rate / took[p]);
      limits.push_back(rate / std::max(transfers, compute));
    }
    const auto row = [&](const std::string& how, const std::vector<double>& figures) {
      out.add({all + ", " + how, "tokens/s", "max(compute, transfers)"}, figures, limits);
    };
    row("a stream over the batch", rates[batch_stream]);
    row("the batch's windows", rates[windows]);
    row("each alone", rates[each]);
  }
  return out.finish();
}
