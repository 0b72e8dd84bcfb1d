#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace replay {

/// Requests over prefix blocks. Each distinct id becomes a dense index, in the order of first appearance, so that
/// replaying needs plain arrays and no hashing.
class trace {
 public:
  /// One request: its blocks in ascending depth. The block before each is its parent.
  struct request {
    std::span<const std::uint32_t> blocks;
    std::uint32_t turn =
        0;  ///< 0 where nothing of its prefix was known; else one more than what it continues
  };

  std::size_t requests() const noexcept { return ends_.size(); }
  std::size_t accesses() const noexcept { return blocks_.size(); }
  /// Distinct blocks.
  std::size_t distinct() const noexcept { return turns_.size(); }
  /// All accesses, request after request.
  std::span<const std::uint32_t> blocks() const noexcept { return blocks_; }

  request operator[](std::size_t n) const noexcept {
    const std::size_t begin = n == 0 ? 0 : ends_[n - 1];
    return {std::span(blocks_).subspan(begin, ends_[n] - begin), request_turns_[n]};
  }

  /// Appends a request. O(1) expected for each id.
  void add(std::span<const std::uint64_t> ids) {
    const std::size_t known = distinct();
    std::uint32_t turn = 0;
    bool prefix = true;
    for (const std::uint64_t id : ids) {
      const std::uint32_t next = static_cast<std::uint32_t>(dense_.size());
      const std::uint32_t block = dense_.try_emplace(id, next).first->second;
      prefix = prefix && block < known;
      if (prefix) turn = turns_[block] + 1;
      blocks_.push_back(block);
    }
    turns_.resize(dense_.size(), turn);
    request_turns_.push_back(turn);
    ends_.push_back(blocks_.size());
  }

 private:
  std::unordered_map<std::uint64_t, std::uint32_t> dense_;
  std::vector<std::uint32_t> blocks_;
  std::vector<std::size_t> ends_;
  std::vector<std::uint32_t> request_turns_;
  std::vector<std::uint32_t> turns_;  // of the request that brought each block first
};

}  // namespace replay
