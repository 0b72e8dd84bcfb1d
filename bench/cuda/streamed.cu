// Decode attention of one layer whose KV lies in pinned memory, through cuda::batch: the step as it runs, compared
// with the longer of its copies alone and its compute alone; the overlap; and what fewer bytes save. Tier 0 holds a
// tenth.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../report.hpp"
#include "device.cuh"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/cuda/attention.cuh"
#include "terrace/cuda/calibrate.hpp"
#include "terrace/cuda/decode.hpp"
#include "terrace/cuda/kernels.cuh"
#include "terrace/cuda/merge.cuh"
#include "terrace/cuda/pinned_ram.hpp"
#include "terrace/cuda/vram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

namespace {

using namespace terrace;

constexpr std::uint32_t layers = 4, tokens = 65536, q_heads = 32, kv_heads = 8, dim = 128, page_tokens = 128;

template <class Value>
Value checked(result<Value> r) {
  if (!r) bench::check(failure<error>{r.error()});
  return std::move(*r);
}

enum class parts { whole, copy, compute };

/// A context below tier 0, and the steps that are measured over it.
template <class Codec>
class streamed {
 public:
  explicit streamed(cudaStream_t stream) : stream_(stream), ctx_(context::options{}) {
    const plane p{.heads = kv_heads, .dim = dim};
    const kv_layout layout{{{.layers = layers, .tokens = page_tokens, .k = p, .v = p}}};
    const layer_group& g = layout.groups[0];
    const std::size_t all = std::size_t{tokens} / page_tokens * layers * g.block_bytes();
    cache_ = std::make_unique<cache_type>(checked(cache_type::open(
        ctx_, layout, {.capacity = all / 10, .stream = stream}, {.capacity = all + all / 4})));
    cuda::host_link& link = *checked(cuda::host_link::of(ctx_));
    link.use(checked(cuda::calibrated(link, {.kernel = cuda::device_kernels().copy})));
    sequence_.push_back(cache_->make_sequence());
    for (std::uint32_t at = 0; at < tokens; at += page_tokens) {  // what is in the pages does not matter
      auto room = checked(sequence_.front().reserve(page_tokens));
      for (std::uint32_t layer = 0; layer < layers; ++layer)
        bench::check(
            cudaMemsetAsync(room.k(layer).template row<fp16>(0, 0).data(), 0x11, g.block_bytes(), stream));
      sequence_.front().commit(std::move(room), page_tokens);
    }
    bench::check(cudaStreamSynchronize(stream));
    batch_ = checked(cuda::batch::make(
        *cache_,
        {.sequences = 1, .pages = 1024, .tokens = 1, .align = 2, .kernels = cuda::device_kernels()}));
    sequence* const one[] = {sequence_.data()};
    bench::check(batch_->assign(one));
    attention_ = std::make_unique<attention>(
        checked(attention::make(*batch_, {.q_heads = q_heads, .split_blocks = 2})));
    queries_ = bench::allocate<fp16>(2 * q_heads * dim);
    bench::check(cudaMemsetAsync(queries_, 0x11, q_heads * dim * sizeof(fp16), stream));
  }

  /// Seconds of a step, from the first call to the end of the stream's work.
  double seconds(parts what) {
    return bench::seconds([&] {
      batch_->stand_in(what == parts::compute);
      checked(batch_->reserve(std::vector<std::uint32_t>{1}, stream_));
      for (std::uint32_t layer = 0; layer < layers; ++layer) {
        if (what == parts::copy) {
          while (auto window = batch_->next(layer, stream_)) std::move(*window).release(stream_);
        } else {
          bench::check(attention_->run(layer, queries_, queries_ + q_heads * dim, stream_));
        }
        if (batch_->failure()) bench::check(failure<error>{*batch_->failure()});
        ctx_.poll();
      }
      bench::check(cudaStreamSynchronize(stream_));
      batch_->commit(std::vector<std::uint32_t>{0});
    });
  }

 private:
  using cache_type = tiered_cache<tier<vram>, tier<pinned_ram, Codec>, lru>;
  using attention = cuda::decode_attention<fp16, dim>;
  cudaStream_t stream_;
  context ctx_;
  std::unique_ptr<cache_type> cache_;
  std::vector<sequence> sequence_;
  std::unique_ptr<cuda::batch> batch_;
  std::unique_ptr<attention> attention_;
  fp16* queries_ = nullptr;
};

template <class Codec>
void measure_overlap(bench::report& out, streamed<Codec>& s, const std::string& name) {
  using enum parts;
  std::vector<double> wall, bound, ratio;
  for (int round = -1; round < out.rounds(); ++round) {  // the three in turn
    const double all = s.seconds(whole), copies = s.seconds(copy), kernels = s.seconds(compute);
    if (round < 0) continue;
    wall.push_back(all * 1e3);
    bound.push_back(std::max(copies, kernels) * 1e3);
    ratio.push_back((copies + kernels - all) / std::min(copies, kernels));
  }
  out.add({.name = name + ", step",
           .unit = "ms",
           .limit_name = "max(copy, compute)",
           .direction = bench::better::smaller},
          wall, bound);
  out.add({.name = name + ", overlap ratio", .unit = "", .limit_name = "all hidden", .goal = 0.9}, ratio,
          std::vector<double>(ratio.size(), 1.0));
}

}  // namespace

int main(int argc, char** argv) {
  bench::need_device();
  bench::report out("cuda_streamed", argc, argv);
  cudaStream_t stream = nullptr;
  bench::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  {
    streamed<identity> plain(stream);
    streamed<q8_0> eight(stream);
    streamed<q4_0> four(stream);
    measure_overlap(out, plain, "fp16 below");
    measure_overlap(out, eight, "q8_0 below");
    measure_overlap(out, four, "q4_0 below");
    const auto faster = [&](const char* name, auto& encoded, double goal) {
      out.compare(
          {.name = name, .unit = "steps/s", .limit_name = "fp16 below", .goal = goal},
          [&] { return 1 / encoded.seconds(parts::whole); }, [&] { return 1 / plain.seconds(parts::whole); });
    };
    faster("q8_0 below, to fp16", eight, 1.8);
    faster("q4_0 below, to fp16", four, 3.3);
  }
  bench::check(cudaStreamDestroy(stream));
  return out.finish();
}
