#pragma once
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace bench {

/// A path that no other program uses, for what a bench calls `name`: below $TMPDIR, or /tmp if that is unset or
/// empty.
inline std::string scratch_path(const char* name) {
  const char* const folder = std::getenv("TMPDIR");
  return std::string(folder != nullptr && *folder != 0 ? folder : "/tmp") + "/terrace-bench-" + name + "-" +
         std::to_string(::getpid());
}

}  // namespace bench
