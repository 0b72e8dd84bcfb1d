// The decode loop of an engine that has its own stream, graphs and kernels, against stubs of the engine: it
// compiles, as a .cu file does in an engine. Nothing runs: cuda/batch.hpp is a contract so far.
#include <vector>

#include "terrace/cuda/batch.hpp"
#include "terrace/terrace.hpp"

namespace {

struct engine {
  cudaStream_t stream = nullptr;
  std::vector<terrace::sequence*> sequences;
  std::vector<std::uint32_t> draft, accepted;
  float *partial = nullptr, *state = nullptr;
  std::uint32_t layers = 0, rows = 0, dim = 0;

  bool running() { return false; }
  void schedule() {}
  void preempt() {}
  void qkv(std::uint32_t, const std::int64_t*) {}
  void paged_decode(std::uint32_t, const terrace::cuda::window& w, float*) {
    static_cast<void>(w.indptr());
    static_cast<void>(w.indices());
    static_cast<void>(w.last_page_len());
  }
  void recompute(std::span<const terrace::lost_block>) {}
};

}  // namespace

void decode_loop(engine& e, terrace::kv_store& cache, terrace::context& ctx) {
  terrace::cuda::batch batch{cache,
                             {.sequences = 256, .pages = 1 << 16}};  // fixed device tables: graphs keep them
  for (std::uint64_t step = 0; e.running(); ++step) {
    e.schedule();
    cache.advance_step(step);
    batch.assign(e.sequences);
    auto slots = batch.reserve(e.draft);  // 1 + k draft tokens each
    if (!slots) {
      e.preempt();
      continue;
    }
    for (std::uint32_t layer = 0; layer < e.layers; ++layer) {
      e.qkv(layer, slots->mapping(layer));
      while (auto window =
                 batch.next(layer, e.stream)) {  // enqueues copies and the stream's wait; no host wait
        e.paged_decode(layer, *window, e.partial);
        static_cast<void>(terrace::cuda::merge(e.state, e.partial, e.rows, e.dim, e.stream));
        std::move(*window).release(e.stream);  // reusable after this event
      }
      ctx.poll();
    }
    if (!batch.lost().empty()) e.recompute(batch.lost());
    batch.commit(e.accepted);  // rejected drafts vanish; only now may a block seal
  }
}
