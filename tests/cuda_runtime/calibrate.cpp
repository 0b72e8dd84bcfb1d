// Which method is chosen, on a device whose clock runs as each test says.
#include "terrace/cuda/calibrate.hpp"

#include <algorithm>
#include <cstring>

#include "catch.hpp"
#include "fake/fake_runtime.hpp"
#include "terrace/execution/context.hpp"

using namespace terrace;
using cuda::transfer_choice;
using cuda::transfer_method;

namespace {

// Microseconds, and the rate of the copy engine: 50 bytes a nanosecond.
constexpr double copy_call = 2.3, batched_call = 6, batched_piece = 0.5, kernel_call = 9, kib = 0.02048;

fake_cuda::options machine(int devices = 1) {
  return {.devices = devices,
          .costs = {.copy_call = copy_call,
                    .batched_call = batched_call,
                    .batched_piece = batched_piece,
                    .copied_kib = kib}};
}

// Slower than the copy engine by a quarter, and without a cost for each piece.
double kernel_time(std::size_t bytes) { return kernel_call + 1.25 * kib * static_cast<double>(bytes) / 1024; }
cudaError_t copy_by_kernel(const std::byte* const* from, std::byte* const* to, std::uint32_t count,
                           std::size_t bytes, cudaStream_t stream) {
  fake_cuda::launch(
      stream,
      [=] {
        for (std::uint32_t i = 0; i < count; ++i) std::memcpy(to[i], from[i], bytes);
      },
      kernel_time(count * bytes));
  return cudaSuccess;
}

// What the costs above say.
transfer_method cheapest(std::size_t bytes, std::size_t count, bool with_kernel, double advantage) {
  const auto n = static_cast<double>(count);
  const double bare = kib * n * static_cast<double>(bytes) / 1024;
  const double copies = bare + copy_call * n, batched = bare + batched_call + batched_piece * n;
  const double fewest = count > 1 ? std::min(copies, batched) : copies;
  if (with_kernel && kernel_time(count * bytes) * advantage < fewest) return transfer_method::kernel;
  return count > 1 && batched < copies ? transfer_method::batched : transfer_method::copies;
}

cuda::host_link& link_of(context& ctx) {
  auto link = cuda::host_link::of(ctx);
  REQUIRE(link);
  return **link;
}

}  // namespace

TEST_CASE("each cell gets the method that is fastest there") {
  const bool with_kernel = GENERATE(false, true);
  const double advantage = GENERATE(1.0, 1.5);
  CAPTURE(with_kernel, advantage);
  fake_cuda::reset(machine());
  context ctx{{.codec_threads = 0}};
  cuda::host_link& link = link_of(ctx);
  constexpr std::size_t most = std::size_t{4} << 20;
  auto found = cuda::calibrate(
      link,
      {.kernel = with_kernel ? &copy_by_kernel : nullptr, .most_bytes = most, .kernel_advantage = advantage});
  REQUIRE(found);
  std::size_t chosen[cuda::transfer_methods]{};
  for (std::size_t s = 0; s < transfer_choice::sizes; ++s)
    for (std::size_t c = 0; c < transfer_choice::counts; ++c) {
      const std::size_t bytes = transfer_choice::bytes_of(s);
      // Beyond the bound, the next smaller count that is within it.
      std::size_t measured = c;
      while (measured > 0 && bytes * transfer_choice::count_of(measured) > most) --measured;
      const std::size_t count = transfer_choice::count_of(measured);
      CAPTURE(bytes, count);
      const transfer_method method = found->pick(bytes, transfer_choice::count_of(c));
      CHECK(method == cheapest(bytes, count, with_kernel, advantage));
      ++chosen[static_cast<std::size_t>(method)];
    }
  CHECK(chosen[static_cast<std::size_t>(transfer_method::copies)] > 0);
  CHECK(chosen[static_cast<std::size_t>(transfer_method::batched)] > 0);
  CHECK((chosen[static_cast<std::size_t>(transfer_method::kernel)] > 0) == with_kernel);
}

TEST_CASE("a link keeps its choice until it is given another, and nothing of the measurement stays") {
  fake_cuda::reset(machine());
  context ctx{{.codec_threads = 0}};
  cuda::host_link& link = link_of(ctx);
  link.use(transfer_choice::always(transfer_method::kernel));
  const auto before = fake_cuda::now();
  REQUIRE(cuda::calibrate(link));
  CHECK(link.choice() == transfer_choice::always(transfer_method::kernel));
  CHECK(fake_cuda::now().device_bytes == before.device_bytes);
  CHECK(fake_cuda::now().pinned_bytes == before.pinned_bytes);
  CHECK(fake_cuda::now().live_events == before.live_events);
}

TEST_CASE("a driver without batched copies gets copies") {
  fake_cuda::options o = machine();
  o.batched_copies = false;
  fake_cuda::reset(o);
  context ctx{{.codec_threads = 0}};
  auto found = cuda::calibrate(link_of(ctx));
  REQUIRE(found);
  CHECK(*found == transfer_choice::always(transfer_method::copies));
}

TEST_CASE("a failure is told, and the link is as it was") {
  for (const char* function : {"cudaMalloc", "cudaEventCreateWithFlags", "cudaEventRecord", "cudaMemcpyAsync",
                               "cudaEventElapsedTime"}) {
    CAPTURE(function);
    fake_cuda::reset(machine());
    context ctx{{.codec_threads = 0}};
    cuda::host_link& link = link_of(ctx);
    const transfer_choice before = link.choice();
    const auto counts = fake_cuda::now();
    fake_cuda::fail_call(function, cudaErrorUnknown);
    CHECK_FALSE(cuda::calibrate(link));
    CHECK(link.choice() == before);
    CHECK(fake_cuda::now().device_bytes == counts.device_bytes);
    CHECK(fake_cuda::now().live_events == counts.live_events);
  }
}

TEST_CASE("a device is measured once in a process, and again after a failure") {
  fake_cuda::reset(machine());
  context ctx{{.codec_threads = 0}};
  cuda::host_link& link = link_of(ctx);
  fake_cuda::fail_call("cudaMalloc", cudaErrorMemoryAllocation);
  CHECK_FALSE(cuda::calibrated(link));
  const auto first = cuda::calibrated(link, {.kernel = &copy_by_kernel});
  REQUIRE(first);
  const std::size_t copies = fake_cuda::now().copies;
  CHECK(copies > 0);
  const auto second = cuda::calibrated(link);
  REQUIRE(second);
  CHECK(*first == *second);
  CHECK(fake_cuda::now().copies == copies);
}
