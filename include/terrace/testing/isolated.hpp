#pragma once
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>

namespace terrace {

/// How a function fared in a process of its own.
struct isolated_outcome {
  bool completed = false;  ///< it returned
  std::string said;        ///< what it returned; else what it printed to stderr and what ended it
};

/// Calls f() -> std::string in a child process, so that a broken assertion, a crash and a hang are outcomes like any
/// other. The child is killed after `seconds`. Nothing that it changes is visible here. Precondition: the calling
/// process has no threads that hold locks.
template <class F>
isolated_outcome run_isolated(F f, unsigned seconds) {
  int out[2], err[2];
  if (::pipe(out) != 0) return {false, "no pipe"};
  if (::pipe(err) != 0) return ::close(out[0]), ::close(out[1]), isolated_outcome{false, "no pipe"};
  const ::pid_t child = ::fork();
  if (child == 0) {
    for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM}) std::signal(signal, SIG_DFL);
    ::alarm(seconds);
    ::dup2(err[1], STDERR_FILENO);
    const std::string result = f();
    for (std::size_t at = 0; at < result.size();) {
      const auto n = ::write(out[1], result.data() + at, result.size() - at);
      if (n <= 0) ::_exit(1);
      at += static_cast<std::size_t>(n);
    }
    ::_exit(0);
  }
  ::close(out[1]);
  ::close(err[1]);
  // Both at a time: a child that has filled one pipe goes on when that is read. One that ends closes both.
  std::string result, errors;
  ::pollfd pipes[]{{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  while (pipes[0].fd >= 0 || pipes[1].fd >= 0) {
    if (::poll(pipes, 2, -1) < 0) {
      if (errno == EINTR) continue;
      break;
    }
    for (::pollfd& p : pipes) {
      if (p.fd < 0 || p.revents == 0) continue;
      char piece[4096];
      const auto n = ::read(p.fd, piece, sizeof piece);
      if (n > 0)
        (&p == pipes ? result : errors).append(piece, static_cast<std::size_t>(n));
      else if (n == 0 || errno != EINTR)
        p.fd = -1;  // poll ignores it
    }
  }
  ::close(out[0]);
  ::close(err[0]);
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) return {false, "no process"};
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {true, std::move(result)};
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
    errors += "it did not end in time";
  else if (WIFSIGNALED(status))
    errors.append("ended by: ").append(::strsignal(WTERMSIG(status)));
  else
    errors += "ended with a failure";
  return {false, std::move(errors)};
}

}  // namespace terrace
