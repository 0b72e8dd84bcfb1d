#pragma once
#include <sys/wait.h>
#include <unistd.h>

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
  const auto read_all = [](int from) {
    std::string text;
    char piece[4096];
    for (::ssize_t n; (n = ::read(from, piece, sizeof piece)) > 0;)
      text.append(piece, static_cast<std::size_t>(n));
    ::close(from);
    return text;
  };
  // What is said fits a pipe, or is read here while it is written; a child that ends closes both.
  std::string result = read_all(out[0]), errors = read_all(err[0]);
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
