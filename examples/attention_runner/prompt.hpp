#pragma once
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "runner_error.hpp"

namespace runner {

/// The first `most` bytes of a file as the token ids of a byte-level model. Refuses a model with another
/// vocabulary and a file that is empty or cannot be read. A pipe will do.
inline outcome<std::vector<std::uint32_t>> load_prompt_bytes(const std::filesystem::path& path,
                                                             std::uint32_t vocab_size, std::size_t most) {
  if (vocab_size != 256)
    return refuse("a prompt of bytes needs a model with a vocabulary of 256, and this one has " +
                  std::to_string(vocab_size) + ": give token ids instead");
  std::ifstream file(path, std::ios::binary);
  if (!file) return refuse(in_quotes(path.native()) + " cannot be opened: " + std::strerror(errno));
  std::vector<std::uint32_t> tokens;
  for (int byte = 0; tokens.size() < most && (byte = file.get()) != std::char_traits<char>::eof();)
    tokens.push_back(static_cast<std::uint32_t>(byte));
  if (tokens.empty()) return refuse(in_quotes(path.native()) + " holds no prompt");
  return tokens;
}

/// The first `most` token ids of a text file: whole numbers between spaces, line ends, commas or brackets, so
/// that a JSON array will do. Refuses anything else in it, and an id that the model's vocabulary does not
/// have.
inline outcome<std::vector<std::uint32_t>> load_prompt_ids(const std::filesystem::path& path,
                                                           std::uint32_t vocab_size, std::size_t most) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return refuse(in_quotes(path.native()) + " cannot be opened: " + std::strerror(errno));
  std::vector<std::uint32_t> tokens;
  bool inside = false;  // of a number
  std::uint64_t id = 0;
  while (tokens.size() < most) {
    const int next = file.get();
    const bool end = next == std::char_traits<char>::eof();
    if (!end && next >= '0' && next <= '9') {
      id = (inside ? id * 10 : 0) + static_cast<std::uint64_t>(next - '0');
      inside = true;
      if (id >= vocab_size)
        return refuse(in_quotes(path.native()) + " holds a token id of " + std::to_string(id) +
                      " or more, and the vocabulary has " + std::to_string(vocab_size));
      continue;
    }
    if (inside) tokens.push_back(static_cast<std::uint32_t>(id));
    inside = false;
    if (end) break;
    if (std::strchr(" \t\r\n,[]", next) == nullptr || next == 0)
      return refuse(in_quotes(path.native()) + " holds something else than token ids");
  }
  if (tokens.empty()) return refuse(in_quotes(path.native()) + " holds no token ids");
  return tokens;
}

}  // namespace runner
