#pragma once
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "refusal.hpp"
#include "trace.hpp"

namespace replay {

/// Reads a trace of one JSON object a line: {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids":
/// [...]}. Only `hash_ids` is required; the other fields must be numbers if present. Blank lines are skipped. A line
/// that cannot be read is refused with its number, status 1.
inline outcome<trace> load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return refuse("--trace cannot be opened: " + path + ": " + std::strerror(errno));
  trace out;
  std::vector<std::uint64_t> ids;
  std::string line;
  for (std::size_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto bad = [&](const char* why) {
      return refuse("line " + std::to_string(number) + " of the trace " + why, 1);
    };
    const nlohmann::json value = nlohmann::json::parse(line, nullptr, false);
    if (value.is_discarded() || !value.is_object()) return bad("is not a JSON object");
    for (const char* field : {"timestamp", "input_length", "output_length"})
      if (const auto found = value.find(field); found != value.end() && !found->is_number())
        return bad("has a timestamp or a length that is not a number");
    const auto found = value.find("hash_ids");
    if (found == value.end() || !found->is_array()) return bad("has no array hash_ids");
    ids.clear();
    for (const nlohmann::json& id : *found) {
      if (!id.is_number_integer()) return bad("has a hash id that is not an integer");
      ids.push_back(id.is_number_unsigned() ? id.get<std::uint64_t>()
                                            : static_cast<std::uint64_t>(id.get<std::int64_t>()));
    }
    out.add(ids);
  }
  if (file.bad()) return refuse("the trace cannot be read to its end: " + path, 1);
  return out;
}

}  // namespace replay
