#include "terrace/cuda/host_link.hpp"

#include <cstring>
#include <optional>
#include <vector>

#include "catch.hpp"
#include "fake/fake_runtime.hpp"
#include "terrace/cuda/senders.hpp"
#include "terrace/execution/sync_wait.hpp"

using namespace terrace;
using cuda::copy_direction;
using cuda::host_link;
using cuda::transfer_choice;
using cuda::transfer_method;

namespace {

std::byte* device_memory(std::size_t bytes) {
  void* at = nullptr;
  REQUIRE(cudaMalloc(&at, bytes) == cudaSuccess);
  return static_cast<std::byte*>(at);
}
std::vector<std::byte> bytes_of(std::size_t n, unsigned seed) {
  std::vector<std::byte> v(n);
  for (std::size_t i = 0; i < n; ++i) v[i] = static_cast<std::byte>((i * 7 + seed * 31 + i / 251) & 0xff);
  return v;
}

struct ended : cuda::device_work {
  void complete(cudaError_t e) noexcept override { how = e; }
  std::optional<cudaError_t> how;
};

struct receiver {
  using receiver_concept = ex::receiver_t;
  int* value;
  int* stopped;
  ex::inplace_stop_token token;
  void set_value() noexcept { ++*value; }
  void set_error(error) noexcept {}
  void set_stopped() noexcept { ++*stopped; }
  struct env {
    ex::inplace_stop_token token;
    ex::inplace_stop_token query(ex::get_stop_token_t) const noexcept { return token; }
  };
  env get_env() const noexcept { return {token}; }
};

}  // namespace

TEST_CASE("bytes go up and come back, whatever order the streams run in") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    fake_cuda::reset({.seed = seed});
    std::byte* const device = device_memory(1 << 16);
    context ctx{{.codec_threads = 0}};
    host_link& link = **host_link::of(ctx);
    CHECK(*host_link::of(ctx) == &link);
    const auto sent = bytes_of(1 << 16, static_cast<unsigned>(seed));
    std::vector<std::byte> back(sent.size());
    REQUIRE(ctx.sync_wait(cuda::copy_up(link, device, sent)));
    REQUIRE(ctx.sync_wait(cuda::copy_down(link, back, device)));
    CHECK(back == sent);
    REQUIRE(cudaFree(device) == cudaSuccess);
  }
}

TEST_CASE("a copy begins after what the engine's streams were given before") {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    fake_cuda::reset({.seed = seed});
    constexpr std::size_t n = 4096;
    std::byte* const device = device_memory(n);
    cudaStream_t engine = nullptr;
    REQUIRE(cudaStreamCreateWithFlags(&engine, cudaStreamNonBlocking) == cudaSuccess);
    {
      context ctx{{.codec_threads = 0}};
      host_link& link = **host_link::of(ctx);
      std::vector<std::byte> host(n), seen(n);
      const auto pins = link.pin(host, true);
      link.follow(engine);
      // Down: it reads what the kernel wrote. Up, into the same place: not before the kernel has read it.
      fake_cuda::launch(engine, [=] { std::memset(device, 1, n); });
      REQUIRE(ctx.sync_wait(cuda::copy_down(link, host, device)));
      CHECK(host == std::vector<std::byte>(n, std::byte{1}));
      fake_cuda::launch(engine, [=, &seen] { std::memcpy(seen.data(), device, n); });
      std::fill(host.begin(), host.end(), std::byte{2});
      REQUIRE(ctx.sync_wait(cuda::copy_up(link, device, host)));
      REQUIRE(ctx.sync_wait(cuda::done(link, engine)));
      CHECK(seen == std::vector<std::byte>(n, std::byte{1}));
      // What it was given before it is followed no longer still comes first.
      fake_cuda::launch(engine, [=, &seen] { std::memcpy(seen.data(), device, n); });
      link.unfollow(engine);
      std::fill(host.begin(), host.end(), std::byte{3});
      REQUIRE(ctx.sync_wait(cuda::copy_up(link, device, host)));
      CHECK(seen == std::vector<std::byte>(n, std::byte{2}));
    }
    REQUIRE(cudaStreamDestroy(engine) == cudaSuccess);
    REQUIRE(cudaFree(device) == cudaSuccess);
  }
}

TEST_CASE("the host waits for no device") {
  fake_cuda::reset();
  std::byte* const device = device_memory(1 << 20);
  {
    context ctx{{.codec_threads = 0}};
    host_link& link = **host_link::of(ctx);
    std::vector<std::byte> host(1 << 20);
    const auto pins = link.pin(host, true);
    fake_cuda::stall(true);
    ended up, down;
    link.copy(up, {device, host.data(), 1 << 19}, copy_direction::up);
    link.copy(down, {host.data() + (1 << 19), device + (1 << 19), 1 << 19}, copy_direction::down);
    for (int i = 0; i < 10; ++i) ctx.poll();
    CHECK(!up.how);
    CHECK(!down.how);
    CHECK(link.pending() == 2);
    CHECK(fake_cuda::now().host_waits == 0);
    fake_cuda::stall(false);
    while (link.pending() != 0) ctx.poll();
    CHECK(up.how == cudaSuccess);
    CHECK(down.how == cudaSuccess);
    CHECK(fake_cuda::now().host_waits == 0);
  }
  REQUIRE(cudaFree(device) == cudaSuccess);
}

TEST_CASE("copies that are started together travel by the method that is chosen") {
  constexpr std::size_t count = 64, bytes = 4096;
  const auto run = [&](const transfer_choice& choice, bool driver_knows, bool pageable = true) {
    fake_cuda::reset({.batched_copies = driver_knows, .batched_pageable = pageable});
    std::byte* const device = device_memory(count * bytes);
    {
      context ctx{{.codec_threads = 0}};
      host_link& link = **host_link::of(ctx);
      link.use(choice);
      const auto host = bytes_of(count * bytes, 3);
      std::vector<ended> works(count);
      for (std::size_t i = 0; i < count; ++i)
        link.copy(works[i], {device + i * bytes, host.data() + (count - 1 - i) * bytes, bytes},
                  copy_direction::up);
      while (link.pending() != 0) ctx.poll();
      const fake_cuda::device_access access;
      for (std::size_t i = 0; i < count; ++i) {
        CHECK(works[i].how == cudaSuccess);
        CHECK(std::memcmp(device + i * bytes, host.data() + (count - 1 - i) * bytes, bytes) == 0);
      }
    }
    const fake_cuda::counts after = fake_cuda::now();
    REQUIRE(cudaFree(device) == cudaSuccess);
    return after;
  };
  CHECK(run(transfer_choice::always(transfer_method::copies), true).copies == count);
  CHECK(run(transfer_choice::always(transfer_method::batched), true).batched_calls == 1);
  CHECK(run(transfer_choice::always(transfer_method::batched), false).copies == count);
  CHECK(run({}, true).batched_calls == 1);
  // Refused for this memory, not for all.
  CHECK(run(transfer_choice::always(transfer_method::batched), true, false).copies == count);
  // No kernel was given, and pageable memory is out of a kernel's reach.
  CHECK(run(transfer_choice::always(transfer_method::kernel), true).batched_copies == count);
}

TEST_CASE("a kernel carries pinned memory, and only that") {
  fake_cuda::reset();
  std::byte* const device = device_memory(8192);
  {
    context ctx{{.codec_threads = 0}};
    host_link& link = **host_link::of(ctx);
    link.use(transfer_choice::always(transfer_method::kernel));
    link.use([](const std::byte* const* from, std::byte* const* to, std::uint32_t count, std::size_t bytes,
                cudaStream_t stream) {
      fake_cuda::launch(stream, [=] {
        for (std::uint32_t i = 0; i < count; ++i) std::memcpy(to[i], from[i], bytes);
      });
      return cudaSuccess;
    });
    const auto pageable = bytes_of(4096, 1);
    auto pinned = bytes_of(4096, 2);
    const auto pins = link.pin(pinned, true);
    REQUIRE(ctx.sync_wait(cuda::copy_up(link, device, pageable)));
    CHECK(fake_cuda::now().kernels == 0);
    REQUIRE(ctx.sync_wait(cuda::copy_up(link, device + 4096, pinned)));
    CHECK(fake_cuda::now().kernels == 1);
    const fake_cuda::device_access access;
    CHECK(std::memcmp(device, pageable.data(), 4096) == 0);
    CHECK(std::memcmp(device + 4096, pinned.data(), 4096) == 0);
  }
  REQUIRE(cudaFree(device) == cudaSuccess);
}

TEST_CASE("the legacy stream, which takes no batches, gets copies") {
  fake_cuda::reset();
  std::byte* const device = device_memory(8192);
  {
    context ctx{{.codec_threads = 0}};
    host_link& link = **host_link::of(ctx);
    link.use(transfer_choice::always(transfer_method::batched));
    auto pinned = bytes_of(8192, 2);
    const auto pins = link.pin(pinned, true);
    std::vector<cuda::copy_piece> pieces;
    for (std::size_t at = 0; at < 8192; at += 1024) pieces.push_back({device + at, pinned.data() + at, 1024});
    REQUIRE(link.enqueue(pieces, cuda::copy_direction::up, nullptr) == cudaSuccess);
    fake_cuda::drain();
    CHECK(fake_cuda::now().batched_calls == 0);
    const fake_cuda::device_access access;
    CHECK(std::memcmp(device, pinned.data(), 8192) == 0);
  }
  REQUIRE(cudaFree(device) == cudaSuccess);
}

TEST_CASE("memory is pinned in chunks, and a copy across their ends is cut there") {
  fake_cuda::reset();
  constexpr std::size_t chunk = cuda::pinning::chunk, bytes = chunk + 8192;
  std::byte* const device = device_memory(16384);
  {
    context ctx{{.codec_threads = 0}};
    host_link& link = **host_link::of(ctx);
    std::vector<std::byte> host(bytes);
    for (std::size_t i = chunk - 8192; i < bytes; ++i) host[i] = static_cast<std::byte>(i * 3);
    const auto pins = link.pin(host);
    pins->finish();
    CHECK(pins->pins().pinned_bytes() == bytes);
    REQUIRE(ctx.sync_wait(cuda::copy_up(link, device, std::span(host).subspan(chunk - 8192, 16384))));
    const fake_cuda::device_access access;
    CHECK(std::memcmp(device, host.data() + chunk - 8192, 16384) == 0);
  }
  CHECK(fake_cuda::now().pinned_bytes == 0);
  REQUIRE(cudaFree(device) == cudaSuccess);
}

TEST_CASE("memory is pinned while the engine captures a graph, and threads keep their mode") {
  fake_cuda::reset();
  fake_cuda::capture(true);
  {
    context ctx{{.codec_threads = 0}};
    host_link& link = **host_link::of(ctx);
    std::vector<std::byte> host(8192), other(8192);
    const auto pins = link.pin(host), at_once = link.pin(other, true);
    pins->finish();
    CHECK(pins->pins().pinned_bytes() == 8192);
    CHECK(at_once->pins().pinned_bytes() == 8192);
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    REQUIRE(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
    CHECK(mode == cudaStreamCaptureModeGlobal);
  }
  fake_cuda::capture(false);
}

TEST_CASE("what the system does not let us pin is copied all the same") {
  fake_cuda::reset({.most_pinned = cuda::pinning::chunk});
  constexpr std::size_t bytes = 2 * cuda::pinning::chunk;
  std::byte* const device = device_memory(4096);
  {
    context ctx{{.codec_threads = 0}};
    host_link& link = **host_link::of(ctx);
    std::vector<std::byte> host(bytes, std::byte{9});
    const auto pins = link.pin(host, true);
    CHECK(pins->pins().pinned_bytes() == cuda::pinning::chunk);
    REQUIRE(ctx.sync_wait(cuda::copy_up(link, device, std::span(host).last(4096))));
    const fake_cuda::device_access access;
    CHECK(std::memcmp(device, host.data() + bytes - 4096, 4096) == 0);
  }
  REQUIRE(cudaFree(device) == cudaSuccess);
}

TEST_CASE("errors of the device reach who asked") {
  SECTION("a machine without a device, or with a driver that is too old") {
    context ctx{{.codec_threads = 0}};
    fake_cuda::reset({.devices = 0});
    auto link = host_link::of(ctx);
    REQUIRE(!link);
    CHECK(link.error().code == errc::unavailable);
    CHECK(link.error().message() == "no CUDA device can be used here: no CUDA-capable device is detected");
    fake_cuda::reset();
    fake_cuda::fail_call("cudaGetDeviceCount", cudaErrorInsufficientDriver);
    CHECK(host_link::of(ctx).error().code == errc::unavailable);
    CHECK(host_link::of(ctx, 1).error().code == errc::unavailable);
    CHECK(host_link::of(ctx, -1).error().code == errc::invalid_argument);
  }
  SECTION("a copy that cannot be enqueued; the next one can") {
    for (const char* call : {"cudaMemcpyAsync", "cudaEventRecord", "cudaEventCreateWithFlags"}) {
      fake_cuda::reset();
      std::byte* const device = device_memory(4096);
      {
        context ctx{{.codec_threads = 0}};
        host_link& link = **host_link::of(ctx);
        const std::vector<std::byte> host(4096);
        fake_cuda::fail_call(call, cudaErrorUnknown);
        auto failed = ctx.sync_wait(cuda::copy_up(link, device, host));
        REQUIRE(!failed);
        CHECK(failed.error().code == errc::io_error);
        CHECK(ctx.sync_wait(cuda::copy_up(link, device, host)));
        CHECK(link.pending() == 0);
      }
      CHECK(fake_cuda::now().live_events == 0);
      REQUIRE(cudaFree(device) == cudaSuccess);
    }
  }
  SECTION("an error that sticks: nothing hangs") {
    fake_cuda::reset();
    std::byte* const device = device_memory(4096);
    {
      context ctx{{.codec_threads = 0}};
      host_link& link = **host_link::of(ctx);
      std::vector<std::byte> host(4096);
      fake_cuda::fail_work(cudaErrorIllegalAddress);
      CHECK(!ctx.sync_wait(cuda::copy_up(link, device, host)));
      CHECK(!ctx.sync_wait(cuda::copy_down(link, host, device)));
      CHECK(!ctx.sync_wait(cuda::done(link, nullptr)));
      CHECK(link.pending() == 0);
    }
    CHECK(fake_cuda::now().live_streams == 0);
  }
}

TEST_CASE("a stop that was requested before the start is obeyed, a later one changes nothing") {
  fake_cuda::reset();
  std::byte* const device = device_memory(4096);
  {
    context ctx{{.codec_threads = 0}};
    host_link& link = **host_link::of(ctx);
    int value = 0, stopped = 0;
    ex::inplace_stop_source source;
    const std::vector<std::byte> host(4096);
    auto first = cuda::copy_up(link, device, host).connect(receiver{&value, &stopped, source.get_token()});
    auto second = cuda::copy_up(link, device, host).connect(receiver{&value, &stopped, source.get_token()});
    first.start();
    source.request_stop();
    second.start();
    CHECK(stopped == 1);
    while (link.pending() != 0) ctx.poll();
    CHECK(value == 1);
    CHECK(stopped == 1);
  }
  REQUIRE(cudaFree(device) == cudaSuccess);
}
