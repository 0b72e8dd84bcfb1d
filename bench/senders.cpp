// What Terrace's senders cost compared with a hand-written io_uring loop. Both read eight bytes at a time from
// /dev/zero, 32 in flight: the kernel completes that at once, so no device hides the difference.
#include "report.hpp"

#if __has_include(<liburing.h>)
#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

#include "terrace/execution/context.hpp"
#include "terrace/execution/for_each.hpp"
#include "terrace/execution/io_ring.hpp"
#include "terrace/execution/sync_wait.hpp"

namespace {

using namespace terrace;

constexpr std::size_t operations = 200'000, depth = 32;

[[noreturn]] void give_up(const char* why) {
  std::fprintf(stderr, "senders: %s\n", why);
  std::exit(1);
}

double by_hand(io_uring& ring, int file, std::byte (*buffers)[8]) {
  return bench::seconds([&] {
           std::size_t started = 0, ended = 0;
           const auto start = [&](std::uint64_t slot) {
             io_uring_sqe* const entry = ::io_uring_get_sqe(&ring);
             ::io_uring_prep_read(entry, file, buffers[slot], 8, 0);
             ::io_uring_sqe_set_data64(entry, slot);
             ++started;
           };
           while (started < depth) start(started);
           while (ended < operations) {
             ::io_uring_submit_and_wait(&ring, 1);
             io_uring_cqe* done[depth];
             const unsigned n = ::io_uring_peek_batch_cqe(&ring, done, depth);
             std::uint64_t slots[depth];
             for (unsigned i = 0; i < n; ++i) {
               if (done[i]->res != 8) give_up("a read failed");
               slots[i] = done[i]->user_data;
             }
             ::io_uring_cq_advance(&ring, n);
             ended += n;
             for (unsigned i = 0; i < n && started < operations; ++i) start(slots[i]);
           }
         }) /
         operations * 1e9;
}

double by_senders(context& ctx, io_ring& ring, int file, std::byte (*buffers)[8]) {
  return bench::seconds([&] {
           auto all = for_each(depth, depth, [&](std::size_t slot) noexcept {
             return for_each(operations / depth, 1, [&, slot](std::size_t) noexcept {
               return ring.read(file, mutable_bytes(buffers[slot], 8), 0);
             });
           });
           if (!ctx.sync_wait(std::move(all))) give_up("a read failed");
         }) /
         operations * 1e9;
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("senders", argc, argv);
  context ctx{{.codec_threads = 0}};
  auto ring = io_ring::open(ctx);
  io_uring raw{};
  if (!ring ||
      ::io_uring_queue_init(2 * depth, &raw, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN) < 0) {
    out.note("skipped: io_uring is not available here");
    return out.finish();
  }
  const int file = ::open("/dev/zero", O_RDONLY | O_CLOEXEC);
  alignas(64) std::byte buffers[depth][8];
  out.compare(
      {"8 bytes of /dev/zero, 32 in flight", "ns/op", "a loop by hand", bench::better::smaller},
      [&] { return by_senders(ctx, **ring, file, buffers); }, [&] { return by_hand(raw, file, buffers); });
  ::close(file);
  ::io_uring_queue_exit(&raw);
  return out.finish();
}

#else

int main(int argc, char** argv) {
  bench::report out("senders", argc, argv);
  out.note("skipped: there is no liburing to write the loop with");
  return out.finish();
}
#endif
