#pragma once
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <vector>

#include "hand_attention.hpp"
#include "problem.hpp"

namespace equal_memory {

/// What one writes first: slots that evict the least recently used block, and a read at each miss, waited for before
/// anything is computed. Up to `blocks_a_read` missing neighbours come in one call; with 1, each on its own.
class blocking : public contestant {
 public:
  blocking(context& ctx, const problem& p, const std::string& path, std::size_t blocks_a_read)
      : problem_(p), attention_(ctx, p), most_(blocks_a_read) {
    file_ = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (file_ < 0) file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file_ < 0) give_up("the file of KV cannot be opened");
    slots_ = (p.budget - attention_.tail_bytes()) / p.block_bytes;
    memory_ = bench::huge_memory(slots_ * p.block_bytes);
    std::fill_n(memory_.get(), slots_ * p.block_bytes, std::byte{});
    slot_of_.resize(std::size_t{problem::layers} * problem::blocks_a_layer);
    for (std::size_t s = 0; s < slots_; ++s) free_.push_back(s);
  }
  blocking(const blocking&) = delete;
  ~blocking() override { ::close(file_); }

  void step(std::span<float> out) override {
    for (std::uint32_t layer = 0; layer < problem::layers; ++layer) {
      attention_.begin(layer);
      for (std::uint32_t first = 0; first < problem::blocks_a_layer; first += problem::piece) {
        std::array<const std::byte*, problem::piece> here{};
        const std::size_t block = std::size_t{layer} * problem::blocks_a_layer + first;
        for (std::size_t b = 0; b < here.size(); ++b) here[b] = place(block + b);
        read_missing();
        attention_.fold(first, here);
      }
      attention_.finish(layer, out);
    }
  }
  std::size_t peak_bytes() const override { return slots_ * problem_.block_bytes + attention_.tail_bytes(); }
  std::uint64_t bytes_read() const override { return read_; }

 private:
  struct resident {
    std::size_t block, slot;
  };
  using place_in_order = std::list<resident>::iterator;
  struct where {
    bool here = false;
    place_in_order at{};
  };

  // Where the block lies, or will lie after read_missing().
  const std::byte* place(std::size_t block) {
    where& w = slot_of_[block];
    if (w.here) {
      order_.splice(order_.end(), order_, w.at);
    } else {
      if (!free_.empty()) {
        order_.push_back({block, free_.back()});
        free_.pop_back();
      } else {
        slot_of_[order_.front().block].here = false;
        order_.front().block = block;
        order_.splice(order_.end(), order_, order_.begin());
      }
      w = {true, std::prev(order_.end())};
      if (missing_ == most_ || (missing_ != 0 && first_missing_ + missing_ != block)) read_missing();
      if (missing_ == 0) first_missing_ = block;
      into_[missing_++] = {memory_.get() + w.at->slot * problem_.block_bytes, problem_.block_bytes};
    }
    return memory_.get() + w.at->slot * problem_.block_bytes;
  }
  void read_missing() {
    const std::size_t bytes = std::exchange(missing_, 0) * problem_.block_bytes;
    if (bytes == 0) return;
    const auto offset = static_cast<off_t>(first_missing_ * problem_.block_bytes);
    const auto count = static_cast<int>(bytes / problem_.block_bytes);
    if (::preadv(file_, into_.data(), count, offset) != static_cast<ssize_t>(bytes))
      give_up("a block cannot be read");
    read_ += bytes;
  }

  const problem& problem_;
  hand_attention attention_;
  std::size_t most_, slots_ = 0;
  int file_ = -1;
  bench::memory memory_;
  std::list<resident> order_;  // the least recently used first
  std::vector<where> slot_of_;
  std::vector<std::size_t> free_;
  std::array<iovec, problem::piece> into_{};
  std::size_t first_missing_ = 0, missing_ = 0;
  std::uint64_t read_ = 0;
};

}  // namespace equal_memory
