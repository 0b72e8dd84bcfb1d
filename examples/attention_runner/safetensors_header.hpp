#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runner_error.hpp"
#include "terrace/core/bytes.hpp"

namespace runner {

/// One tensor of a safetensors file: its type by name ("F16"), its shape (row major), and where its bytes
/// lie, from the start of the file's data.
struct tensor_info {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint32_t file = 0;  ///< which of the checkpoint's files has it
};

/// Bytes of one element of a safetensors type; nothing for a type that the format does not have.
inline std::optional<std::size_t> dtype_bytes(std::string_view dtype) noexcept {
  static constexpr std::array<std::pair<std::string_view, std::size_t>, 15> types{{
      {"F32", 4},
      {"F16", 2},
      {"BF16", 2},
      {"F64", 8},
      {"F8_E4M3", 1},
      {"F8_E5M2", 1},
      {"BOOL", 1},
      {"U8", 1},
      {"I8", 1},
      {"U16", 2},
      {"I16", 2},
      {"U32", 4},
      {"I32", 4},
      {"U64", 8},
      {"I64", 8},
  }};
  for (const auto& [name, bytes] : types)
    if (name == dtype) return bytes;
  return std::nullopt;
}

namespace detail {

/// Accepts the events of a JSON parser as long as they make a safetensors header,
///   {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {"key": "text"}},
/// and stops at the first that does not. No tree is built: what a hostile header can allocate is bounded by its own
/// length, and a name that is given twice is noticed, which a tree would hide.
class header_events {
 public:
  using json = nlohmann::json;

  std::vector<tensor_info> tensors;
  std::string problem;  ///< the end of a sentence that begins with the file; empty where all is well

  bool start_object(std::size_t) {
    if (at_ == place::outside) return enter(place::names);
    if (at_ == place::name_value) return enter(metadata_ ? place::metadata : place::fields);
    return unexpected();
  }
  bool end_object() {
    if (at_ == place::names) return enter(place::outside);
    if (at_ == place::metadata) return enter(place::names);
    if (at_ != place::fields) return unexpected();
    if (seen_ != (has_dtype | has_shape | has_offsets))
      return stop(tensor() + " lacks its dtype, its shape or its data_offsets");
    return enter(place::names);
  }
  bool key(std::string& text) {
    if (at_ == place::metadata) return true;
    if (at_ == place::names) {
      metadata_ = text == "__metadata__";
      if (!names_.insert(text).second) return stop("holds " + in_quotes(text) + " twice");
      if (!metadata_) tensors.emplace_back().name = text;
      seen_ = 0;
      return enter(place::name_value);
    }
    if (at_ != place::fields) return unexpected();
    if (text == "dtype") return field(place::dtype, has_dtype);
    if (text == "shape") return field(place::shape_value, has_shape);
    if (text == "data_offsets") return field(place::offsets_value, has_offsets);
    return stop(tensor() + " has an unknown field " + in_quotes(text));
  }
  bool string(std::string& text) {
    if (at_ == place::metadata) return true;
    if (at_ != place::dtype) return unexpected();
    if (!dtype_bytes(text)) return stop(tensor() + " has the unknown dtype " + in_quotes(text));
    tensors.back().dtype = text;
    return enter(place::fields);
  }
  bool start_array(std::size_t) {
    if (at_ == place::shape_value) return enter(place::shape);
    if (at_ == place::offsets_value) return enter(place::offsets);
    return unexpected();
  }
  bool end_array() {
    if (at_ == place::offsets && offsets_ != 2) return stop(tensor() + " needs two data_offsets");
    offsets_ = 0;
    return enter(place::fields);
  }
  bool number_unsigned(std::uint64_t number) {
    constexpr std::size_t most_dimensions = 8;
    if (at_ == place::shape) {
      if (tensors.back().shape.size() == most_dimensions)
        return stop(tensor() + " has more than 8 dimensions");
      tensors.back().shape.push_back(number);
      return true;
    }
    if (at_ != place::offsets) return unexpected();
    if (offsets_ == 2) return stop(tensor() + " needs two data_offsets");
    (offsets_++ == 0 ? tensors.back().begin : tensors.back().end) = number;
    return true;
  }
  bool number_integer(std::int64_t) { return not_a_size(); }
  bool number_float(double, const std::string&) { return not_a_size(); }
  bool null() { return unexpected(); }
  bool boolean(bool) { return unexpected(); }
  bool binary(json::binary_t&) { return unexpected(); }
  bool parse_error(std::size_t position, const std::string&, const json::exception&) {
    return stop("is not JSON at byte " + std::to_string(position));
  }

 private:
  enum class place : std::uint8_t {
    outside,
    names,
    name_value,
    metadata,
    fields,
    dtype,
    shape_value,
    shape,
    offsets_value,
    offsets
  };
  static constexpr unsigned has_dtype = 1, has_shape = 2, has_offsets = 4;

  bool enter(place next) {
    at_ = next;
    return true;
  }
  bool field(place next, unsigned bit) {
    if ((seen_ & bit) != 0) return stop(tensor() + " gives a field twice");
    seen_ |= bit;
    return enter(next);
  }
  bool stop(std::string why) {
    if (problem.empty()) problem = std::move(why);
    return false;
  }
  bool not_a_size() {
    const bool size = at_ == place::shape || at_ == place::offsets;
    return size ? stop(tensor() + " has a size or an offset that is not a whole number") : unexpected();
  }
  bool unexpected() { return stop("is JSON, but no table of tensors"); }
  std::string tensor() const { return "says that " + in_quotes(tensors.back().name); }

  place at_ = place::outside;
  unsigned seen_ = 0;
  int offsets_ = 0;
  bool metadata_ = false;
  std::set<std::string> names_;
};

}  // namespace detail

/// Reads the header of a safetensors file (https://huggingface.co/docs/safetensors, "Format"): `text` is the
/// JSON, `data_bytes` is the length of what follows it, and `file` begins the sentence of an error. The
/// tensors come back in the order of their bytes. Refuses what the format's reference implementation refuses:
/// lengths that are not those of shape and type, and tensors that overlap, leave a gap, end outside of the
/// file or short of its end.
inline outcome<std::vector<tensor_info>> parse_safetensors_header(std::string_view text,
                                                                  std::uint64_t data_bytes,
                                                                  const std::string& file) {
  detail::header_events events;
  if (text.empty() || text.front() != '{') return refuse("the header of " + file + " does not begin with {");
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &events))
    return refuse("the header of " + file + " " + events.problem);

  auto& tensors = events.tensors;
  for (const auto& t : tensors) {
    const std::string subject = file + " says that " + in_quotes(t.name);
    std::optional<std::size_t> bytes = dtype_bytes(t.dtype);
    for (const std::uint64_t n : t.shape) bytes = bytes ? terrace::checked_product(*bytes, n) : std::nullopt;
    if (!bytes) return refuse(subject + " has more elements than memory can address");
    if (t.end > data_bytes || t.begin > t.end) return refuse(subject + " lies outside of the file");
    if (t.end - t.begin != *bytes) return refuse(subject + " has a length that is not that of its shape");
  }
  std::sort(tensors.begin(), tensors.end(), [](const tensor_info& a, const tensor_info& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t covered = 0;
  for (const auto& t : tensors) {
    if (t.begin < covered)
      return refuse(file + " has bytes that belong to two tensors, one is " + in_quotes(t.name));
    if (t.begin > covered)
      return refuse(file + " has bytes that belong to no tensor before " + in_quotes(t.name));
    covered = t.end;
  }
  if (covered != data_bytes) return refuse(file + " has bytes after its last tensor");
  return std::move(tensors);
}

}  // namespace runner
