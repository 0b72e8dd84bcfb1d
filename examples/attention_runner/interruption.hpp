#pragma once
#include <csignal>

#include "terrace/core/error.hpp"
#include "terrace/core/result.hpp"

namespace runner {

namespace detail {
inline volatile std::sig_atomic_t interrupted = 0;
}

/// From here on Ctrl-C and SIGTERM end a run between two of its steps, so that caches end as always, and remove
/// their files. A second one ends the program at once.
inline void end_runs_on_signals() noexcept {
  struct sigaction how {};
  how.sa_handler = [](int) { detail::interrupted = 1; };
  how.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &how, nullptr);
}

/// Asked between two steps of a run: an error if a signal has come.
inline terrace::result<void> go_on() noexcept {
  if (detail::interrupted != 0) return terrace::fail(terrace::errc::stopped, "a signal has ended the run");
  return {};
}

}  // namespace runner
