// Sizes of hostile text, as every command line reads them: nothing, or a number of bytes that reads back as itself.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "terrace/core/bytes.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto bytes = terrace::parse_size(text);
  if (!bytes) return 0;
  if (*bytes >= std::size_t{1} << 63) std::abort();
  // Beyond 2^53 a size is near what was written, not equal to it.
  if (*bytes < std::size_t{1} << 53 && terrace::parse_size(std::to_string(*bytes)) != bytes) std::abort();
  if (text.find('-') != std::string_view::npos || text.find(' ') != std::string_view::npos) std::abort();
  return 0;
}
