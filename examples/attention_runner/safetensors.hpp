#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "input_file.hpp"
#include "safetensors_header.hpp"
#include "terrace/core/element.hpp"

namespace runner {

/// The tensors of a checkpoint: all *.safetensors files of one directory, be it one or many shards. The
/// headers are read and checked when it is opened; data is read when it is asked for, and nothing of it is
/// ever executed.
class safetensors {
 public:
  /// Opens every shard in `directory`. Refuses, with the name of the file: a directory without shards, a
  /// shard that is no valid safetensors file, and a tensor that two shards hold. A shard index is not needed
  /// and not read.
  static outcome<safetensors> open(const std::filesystem::path& directory) {
    auto paths = shards(directory);
    if (!paths) return terrace::failure{std::move(paths.error())};
    safetensors checkpoint;
    for (const auto& path : *paths)
      if (auto added = checkpoint.add(path); !added) return terrace::failure{std::move(added.error())};
    return checkpoint;
  }

  /// The tensor of that name, or null. O(log n).
  const tensor_info* find(std::string_view name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
  }
  /// All tensors by name.
  const std::map<std::string, tensor_info, std::less<>>& tensors() const noexcept { return tensors_; }
  /// The file that holds `tensor`, in quotes.
  std::string file_of(const tensor_info& tensor) const { return files_[tensor.file].input.name(); }

  /// Reads the elements from `first` on as floats, in the order of the file. F32, F16 and BF16 are exact;
  /// another type is refused, and so is a value that is not finite. Precondition: the tensor has `first +
  /// out.size()` elements.
  outcome<void> read(const tensor_info& tensor, std::uint64_t first, std::span<float> out) const {
    if (tensor.dtype == "F32")
      return read_as<std::uint32_t>(tensor, first, out,
                                    [](std::uint32_t bits) { return std::bit_cast<float>(bits); });
    if (tensor.dtype == "F16")
      return read_as<std::uint16_t>(
          tensor, first, out, [](std::uint16_t bits) { return terrace::to_float(terrace::fp16{bits}); });
    if (tensor.dtype == "BF16")
      return read_as<std::uint16_t>(
          tensor, first, out, [](std::uint16_t bits) { return terrace::to_float(terrace::bf16{bits}); });
    return refuse(in_quotes(tensor.name) + " in " + file_of(tensor) + " is " + tensor.dtype +
                  ", and only F32, F16 and BF16 are read");
  }

 private:
  struct shard {
    input_file input;
    std::uint64_t data = 0;  ///< where the tensors' bytes begin
  };

  static outcome<std::vector<std::filesystem::path>> shards(const std::filesystem::path& directory) {
    std::vector<std::filesystem::path> paths;
    std::error_code failed;
    auto entry = std::filesystem::directory_iterator(directory, failed);
    for (const std::filesystem::directory_iterator end; !failed && entry != end; entry.increment(failed))
      if (entry->path().extension() == ".safetensors") paths.push_back(entry->path());
    if (failed)
      return refuse(in_quotes(directory.native()) + " cannot be read as a directory: " + failed.message());
    if (paths.empty()) return refuse(in_quotes(directory.native()) + " holds no .safetensors file");
    std::sort(paths.begin(), paths.end());  // errors and reads come in the same order on every machine
    return paths;
  }

  outcome<void> add(const std::filesystem::path& path) {
    constexpr std::uint64_t longest_header =
        100'000'000;  // the limit of the format's reference implementation
    auto input = input_file::open(path);
    if (!input) return terrace::failure{std::move(input.error())};
    const std::string file = input->name();

    std::array<std::byte, 8> prefix{};
    if (input->size() < prefix.size()) return refuse(file + " is too short to be a safetensors file");
    if (auto done = input->read(0, prefix); !done) return done;
    std::uint64_t length = 0;
    for (std::size_t i = prefix.size(); i-- > 0;)
      length = length << 8 | std::to_integer<std::uint64_t>(prefix[i]);
    if (length > input->size() - prefix.size()) return refuse(file + " ends before its header does");
    if (length > longest_header) return refuse(file + " has a header of more than 100 MB");

    std::string text(static_cast<std::size_t>(length), '\0');
    if (auto done = input->read(prefix.size(), std::as_writable_bytes(std::span(text))); !done) return done;
    const std::uint64_t data = prefix.size() + length;
    auto tensors = parse_safetensors_header(text, input->size() - data, file);
    if (!tensors) return terrace::failure{std::move(tensors.error())};

    for (auto& tensor : *tensors) {
      tensor.file = static_cast<std::uint32_t>(files_.size());
      const auto [other, added] = tensors_.try_emplace(tensor.name, tensor);
      if (!added)
        return refuse(file + " and " + file_of(other->second) + " both hold " + in_quotes(tensor.name));
    }
    files_.push_back({std::move(*input), data});
    return {};
  }

  /// Through a small buffer, so that loading a model needs its own memory and little more.
  template <class Bits, class Convert>
  outcome<void> read_as(const tensor_info& tensor, std::uint64_t first, std::span<float> out,
                        Convert convert) const {
    static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");
    const shard& from = files_[tensor.file];
    std::array<Bits, 8192> buffer;
    std::uint64_t offset = from.data + tensor.begin + first * sizeof(Bits);
    while (!out.empty()) {
      const std::span part(buffer.data(), std::min(out.size(), buffer.size()));
      if (auto done = from.input.read(offset, std::as_writable_bytes(part)); !done) return done;
      for (std::size_t i = 0; i < part.size(); ++i) {
        out[i] = convert(part[i]);
        if (!std::isfinite(out[i]))
          return refuse(in_quotes(tensor.name) + " in " + file_of(tensor) +
                        " holds a value that is not finite");
      }
      offset += part.size_bytes();
      out = out.subspan(part.size());
    }
    return {};
  }

  std::vector<shard> files_;
  std::map<std::string, tensor_info, std::less<>> tensors_;
};

}  // namespace runner
