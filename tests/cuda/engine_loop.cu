// The decode loop of an engine that has its own stream, graphs and kernels, against stubs of the engine: it
// compiles, as a .cu file does in an engine. tests/cuda_runtime/batch.cpp runs it.
#include <vector>

#include "terrace/cuda/batch.hpp"
#include "terrace/terrace.hpp"

namespace {

struct engine {
  cudaStream_t stream = nullptr;
  std::vector<terrace::sequence*> sequences;
  std::vector<std::uint32_t> draft, accepted;
  float *partial = nullptr, *state = nullptr;
  std::uint32_t layers = 0;

  bool running() { return false; }
  void schedule() {}
  void preempt() {}
  void qkv(std::uint32_t, const std::int64_t*) {}
  void paged_decode(std::uint32_t, const terrace::cuda::window& w, float*) {
    static_cast<void>(w.indptr());
    static_cast<void>(w.indices());
    static_cast<void>(w.last_page_len());
  }
  void merge(float*, const float*) {}
  void recompute(std::span<const terrace::lost_block>) {}
};

}  // namespace

void decode_loop(engine& e, terrace::kv_store& cache, terrace::context& ctx) {
  auto made = terrace::cuda::batch::make(cache, {.sequences = 256, .pages = 1 << 16});
  if (!made) return;
  terrace::cuda::batch& batch = **made;  // its device tables stay where they are: graphs keep them
  for (std::uint64_t step = 0; e.running(); ++step) {
    e.schedule();
    cache.advance_step(step);
    if (!batch.assign(e.sequences)) return;
    auto slots = batch.reserve(e.draft, e.stream);  // 1 + k draft tokens each
    if (!slots) {
      e.preempt();
      continue;
    }
    for (std::uint32_t layer = 0; layer < e.layers; ++layer) {
      e.qkv(layer, slots->mapping(layer));
      while (auto window =
                 batch.next(layer, e.stream)) {  // enqueues copies and the stream's wait; no host wait
        e.paged_decode(layer, *window, e.partial);
        e.merge(e.state, e.partial);
        std::move(*window).release(e.stream);  // reusable after this event
      }
      ctx.poll();
    }
    if (!batch.lost().empty()) e.recompute(batch.lost());
    batch.commit(e.accepted);  // rejected drafts vanish; only now may a block seal
  }
}
