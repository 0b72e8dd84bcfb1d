// A program that is not Terrace's: its own flags, the public headers, and whichever library the machine has.
#include <cstdio>

#include "terrace/core/bytes.hpp"
#include "terrace/core/result.hpp"
#if __has_include("terrace/terrace.hpp")
#include "terrace/terrace.hpp"
#endif
#if __has_include(<zstd.h>)
#include <zstd.h>
#endif
#if __has_include(<lz4.h>)
#include <lz4.h>
#endif
#if __has_include(<liburing.h>)
#include <liburing.h>
#endif

int main() {
  const terrace::basic_result<int, char> answer = 42;
  if (!answer || *answer != 42) return 1;
    // A library whose header is there has to be linked, because Terrace's own headers call it then.
#if __has_include(<zstd.h>)
  std::printf("zstd %u\n", ZSTD_versionNumber());
#endif
#if __has_include(<lz4.h>)
  std::printf("lz4 %d\n", LZ4_versionNumber());
#endif
#if __has_include(<liburing.h>)
  io_uring ring;
  if (io_uring_queue_init(1, &ring, 0) == 0) io_uring_queue_exit(&ring);
  std::puts("liburing");
#endif
}
