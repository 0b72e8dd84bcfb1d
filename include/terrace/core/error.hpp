#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "terrace/core/result.hpp"

namespace terrace {

/// What went wrong, as broad categories that a caller can act on.
enum class errc : std::uint8_t {
  invalid_argument,  ///< the caller asked for something that cannot be
  out_of_capacity,   ///< every slot is pinned or in use, and no transfer will free one
  out_of_memory,     ///< the operating system gave no memory
  io_error,          ///< a medium failed to read or write
  corrupt,           ///< bytes were read that cannot be what was written
  deadline,          ///< an operation did not end in time; its buffer is in quarantine until it does
  unavailable,       ///< the tier is set aside, or the machine has no such device or library
  lost,              ///< no tier has the block any more
  stopped,           ///< the operation was asked to stop
};

constexpr std::string_view name(errc code) noexcept {
  switch (code) {
    case errc::invalid_argument:
      return "invalid argument";
    case errc::out_of_capacity:
      return "out of capacity";
    case errc::out_of_memory:
      return "out of memory";
    case errc::io_error:
      return "I/O error";
    case errc::corrupt:
      return "corrupt data";
    case errc::deadline:
      return "deadline passed";
    case errc::unavailable:
      return "unavailable";
    case errc::lost:
      return "lost";
    case errc::stopped:
      return "stopped";
  }
  return "unknown error";
}

/// One error: a code to act on, a sentence to print, and the system's error number if there is one. The text is a
/// string literal or lives as long as the program, so carrying an error costs nothing.
struct error {
  errc code = errc::invalid_argument;
  const char* text = "";
  int system = 0;                                   ///< errno, or a CUDA error number; 0 where there is none
  const char* (*describe)(int) noexcept = nullptr;  ///< what `system` means, where it is not an errno

  /// "text: system message", for people.
  std::string message() const {
    std::string out = *text != 0 ? std::string(text) : std::string(name(code));
    if (system != 0) out.append(": ").append(describe != nullptr ? describe(system) : std::strerror(system));
    return out;
  }
  friend bool operator==(const error& a, const error& b) noexcept {
    return a.code == b.code && a.system == b.system;
  }
};

template <class T>
using result = basic_result<T, error>;

/// `return fail(errc::invalid_argument, "a capacity of 0 holds no block")`.
inline failure<error> fail(errc code, const char* text, int system = 0) noexcept {
  return failure<error>{error{code, text, system, nullptr}};
}

/// `return propagate(opened.error())`: passes an error on.
inline failure<error> propagate(const error& e) noexcept { return {e}; }

}  // namespace terrace
