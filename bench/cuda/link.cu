// Host memory to the device over a host_link: large blocks, and small scattered pieces by each method, compared with
// plain copies of as many bytes in one cudaMemcpyAsync. GB/s.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../report.hpp"
#include "device.cuh"
#include "terrace/cuda/calibrate.hpp"
#include "terrace/cuda/kernels.cuh"
#include "terrace/execution/context.hpp"

namespace {

using namespace terrace;
using cuda::transfer_choice;
using cuda::transfer_method;

constexpr std::size_t total = std::size_t{256} << 20;

class link_bench {
 public:
  explicit link_bench(cuda::host_link& link)
      : link_(link),
        host_(total),
        in_one_(bench::allocate<std::byte>(total, bench::place::pinned)),
        device_(bench::allocate<std::byte>(total)) {
    pinned_ = link.pin(host_, true);
    for (cudaEvent_t* event : {&begin_, &end_}) bench::check(cudaEventCreate(event));
  }

  /// GB/s of what `enqueue(stream)` copies, `bytes` in all. The time includes the host's calls.
  template <class Enqueue>
  double rate(std::size_t bytes, Enqueue enqueue) {
    const cudaStream_t up = link_.stream(cuda::copy_direction::up);
    float milliseconds = 0;
    bench::check(cudaEventRecord(begin_, up));
    bench::check(enqueue(up));
    bench::check(cudaEventRecord(end_, up));
    bench::check(cudaEventSynchronize(end_));
    bench::check(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return static_cast<double>(bytes) / 1e6 / static_cast<double>(milliseconds);
  }
  double through_link(const std::vector<cuda::copy_piece>& pieces) {
    return rate(pieces.size() * pieces.front().bytes,
                [&](cudaStream_t up) { return link_.enqueue(pieces, cuda::copy_direction::up, up); });
  }
  double by(const transfer_choice& choice, const std::vector<cuda::copy_piece>& pieces) {
    link_.use(choice);
    return through_link(pieces);
  }
  double loop_of_copies(const std::vector<cuda::copy_piece>& pieces) {
    return rate(pieces.size() * pieces.front().bytes, [&](cudaStream_t up) {
      for (const cuda::copy_piece& p : pieces)
        if (const cudaError_t e = cudaMemcpyAsync(p.to, p.from, p.bytes, cudaMemcpyDefault, up);
            e != cudaSuccess)
          return e;
      return cudaSuccess;
    });
  }
  double one_copy(std::size_t bytes) {
    return rate(bytes, [&](cudaStream_t up) {
      return cudaMemcpyAsync(device_, in_one_, bytes, cudaMemcpyDefault, up);
    });
  }
  /// Pieces that lie in random order on the host; none crosses a chunk of the pinning.
  std::vector<cuda::copy_piece> scattered(std::size_t bytes, std::size_t count) const {
    std::vector<std::size_t> order(total / bytes);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    std::vector<cuda::copy_piece> pieces;
    for (std::size_t i = 0; i < count; ++i)
      pieces.push_back({device_ + i * bytes, host_.data() + order[i] * bytes, bytes});
    return pieces;
  }

 private:
  cuda::host_link& link_;
  std::vector<std::byte> host_;
  const std::byte* in_one_;  // pinned as one; the link pins in chunks that no copy may cross
  std::byte* device_;
  std::unique_ptr<cuda::host_link::pinned_memory> pinned_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
  bench::need_device();
  bench::report out("cuda_link", argc, argv);
  context ctx{{.codec_threads = 0}};
  auto found = cuda::host_link::of(ctx);
  if (!found) bench::check(failure<error>{found.error()});
  cuda::host_link& link = **found;
  auto choice = cuda::calibrated(link, {.kernel = cuda::device_kernels().copy});
  if (!choice) bench::check(failure<error>{choice.error()});
  link_bench b(link);

  const auto blocks = b.scattered(std::size_t{2} << 20, 128);
  out.compare(
      {.name = "2 MiB blocks", .unit = "GB/s", .limit_name = "one memcpy", .goal = 0.95},
      [&] { return b.by(*choice, blocks); }, [&] { return b.one_copy(total); });
  for (const std::size_t kib : {4, 8, 16, 32, 64, 128, 256, 512})
    for (const std::size_t count : {1, 16, 256, 4096}) {
      const std::size_t bytes = kib << 10;
      if (bytes * count > total) continue;
      const auto pieces = b.scattered(bytes, count);
      const std::string name = std::to_string(count) + " x " + std::to_string(kib) + " KiB";
      const auto best = [&] {
        double most = 0;
        for (const auto m : {transfer_method::copies, transfer_method::batched, transfer_method::kernel})
          most = std::max(most, b.by(transfer_choice::always(m), pieces));
        return most;
      };
      out.compare(
          {.name = name, .unit = "GB/s", .limit_name = "the best method", .goal = 0.95},
          [&] { return b.by(*choice, pieces); }, best);
    }
  const auto small = b.scattered(std::size_t{8} << 10, 4096);
  out.compare(
      {.name = "4096 x 8 KiB, to a loop", .unit = "GB/s", .limit_name = "cudaMemcpyAsync each", .goal = 3.0},
      [&] { return b.by(*choice, small); }, [&] { return b.loop_of_copies(small); });
  return out.finish();
}
