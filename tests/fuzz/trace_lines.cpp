// Trace files of hostile bytes, as trace_replay reads them: refused with a sentence, or requests whose blocks are
// dense.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "trace_replay/load.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int file = ::memfd_create("trace", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  if (::ftruncate(file, 0) != 0 || ::pwrite(file, data, size, 0) != static_cast<::ssize_t>(size))
    std::abort();
  const auto trace = replay::load(path);
  if (!trace) {
    if (trace.error().sentence.empty()) std::abort();
    return 0;
  }
  std::size_t accesses = 0;
  for (std::size_t i = 0; i < trace->requests(); ++i) {
    accesses += (*trace)[i].blocks.size();
    for (const std::uint32_t block : (*trace)[i].blocks)
      if (block >= trace->distinct()) std::abort();
  }
  if (accesses != trace->accesses()) std::abort();
  return 0;
}
