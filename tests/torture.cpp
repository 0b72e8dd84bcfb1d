// Writes blocks through tiers that keep them, until it is killed; or says whether every block that an earlier run has
// acknowledged is there and right:
//
//     torture --dir DIR --seconds S [--seed N]    prints "ack ID" after each flush that covers block ID
//     torture --dir DIR --verify FILE             FILE has those lines. 0: all right, 1: missing, 3: wrong
//
// What a block holds follows from its ID alone, which is its name in the store as well.
#include <fcntl.h>
#include <sys/stat.h>

#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/terrace.hpp"

namespace {

using namespace terrace;

using torture_cache = tiered_cache<tier<ram>, tier<ram>, tier<nvme>, tier<directory>, lru>;

// Blocks of 64 KiB: 64 tokens, keys and values of 4 heads of 64 halves.
const kv_layout layout{{{.layers = 1, .tokens = 64, .k = {4, 64}, .v = {4, 64}}}};
constexpr std::uint32_t block_tokens = 64;

struct arguments {
  std::string dir, verify;
  double seconds = 0;
  std::uint64_t seed = 0;
};

[[noreturn]] void refuse(const char* sentence) {
  std::fprintf(stderr, "torture: %s\n", sentence);
  std::exit(2);
}
[[noreturn]] void fail_with(const char* what, const error& why) {
  std::fprintf(stderr, "torture: %s: %s\n", what, why.message().c_str());
  std::exit(4);
}

template <class T>
T number(std::string_view text, const char* sentence) {
  T value{};
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || end != text.data() + text.size()) refuse(sentence);
  return value;
}

arguments parse(int argc, char** argv) {
  arguments a;
  bool timed = false, seeded = false;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view option = argv[i];
    if (option == "--help") {
      std::puts(
          "torture --dir DIR --seconds S [--seed N]    writes blocks, and prints \"ack ID\" when they are "
          "durable\n"
          "torture --dir DIR --verify FILE             0: all that FILE names are right, 1: one is missing, "
          "3: wrong");
      std::exit(0);
    }
    if (i + 1 == argc) refuse("every option has a value; --help lists them");
    if (option == "--dir")
      a.dir = argv[i + 1];
    else if (option == "--verify")
      a.verify = argv[i + 1];
    else if (option == "--seconds")
      a.seconds = number<double>(argv[i + 1], "--seconds is a number"), timed = true;
    else if (option == "--seed")
      a.seed = number<std::uint64_t>(argv[i + 1], "--seed is a whole number"), seeded = true;
    else
      refuse("an option is not known; --help lists them");
  }
  if (a.dir.empty()) refuse("--dir says where the store is");
  if (timed == !a.verify.empty()) refuse("either --seconds or --verify is needed, not both");
  if (timed && !(a.seconds >= 0)) refuse("--seconds is not negative");
  if (!seeded) a.seed = std::random_device{}();
  return a;
}

block_key key_of(std::uint64_t id) { return {.low = id, .high = 0x746f7274757265}; }

// The bits of the i-th element of a block: any bits, as blocks are kept as they are.
std::uint16_t bits_at(std::uint64_t id, std::uint64_t i) {
  std::uint64_t x = (id ^ (i << 40) ^ i) * 0x9e3779b97f4a7c15u;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  return static_cast<std::uint16_t>(x >> 40);
}

void fill(const reservation& r, std::uint64_t id) {
  std::uint64_t i = 0;
  for (const bool values : {false, true}) {
    const plane_rows rows = values ? r.v(0) : r.k(0);
    for (std::uint32_t h = 0; h < rows.heads(); ++h)
      for (std::uint32_t t = 0; t < rows.tokens(); ++t)
        for (fp16& x : rows.row<fp16>(t, h)) x.bits = bits_at(id, i++);
  }
}
bool holds(const std::byte* data, std::uint64_t id) {
  const std::size_t elements = layout.groups[0].block_bytes() / sizeof(std::uint16_t);
  for (std::uint64_t i = 0; i < elements; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, data + i * sizeof bits, sizeof bits);
    if (bits != bits_at(id, i)) return false;
  }
  return true;
}

result<torture_cache> open(context& ctx, const std::string& dir) {
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST)
    return fail(errc::io_error, "the folder of the store cannot be made", errno);
  return torture_cache::open(ctx, layout, {.capacity = 8_MiB}, {.capacity = 4_MiB},
                             {.capacity = 64_MiB, .path = dir + "/kv", .keep = true},
                             {.capacity = 3776_MiB, .path = dir, .keep = true});
}

int verify(const arguments& a) {
  context ctx;
  std::ifstream lines(a.verify);
  if (!lines) refuse("the file of --verify cannot be read");
  auto cache = open(ctx, a.dir);
  if (!cache) fail_with("the store cannot be opened", cache.error());
  std::size_t found = 0, missing = 0, wrong = 0;
  std::string line;
  while (std::getline(lines, line)) {
    if (lines.eof()) break;  // the writer died within this line: it was not said
    if (!line.starts_with("ack ")) continue;
    const auto id = number<std::uint64_t>(std::string_view(line).substr(4), "an ack line has no number");
    const auto block = cache->find(key_of(id));
    if (!block) {
      std::fprintf(stderr, "torture: block %s is missing\n", line.c_str() + 4);
      ++missing;
      continue;
    }
    const auto held = ctx.sync_wait(cache->acquire({&*block, 1}));
    if (!held) {
      std::fprintf(stderr, "torture: block %s is lost\n", line.c_str() + 4);
      ++missing;
    } else if (!holds((*held)[0].data, id)) {
      std::fprintf(stderr, "torture: block %s is wrong\n", line.c_str() + 4);
      ++wrong;
    } else {
      ++found;
    }
  }
  const cache_stats stats = cache->stats();
  std::printf("%zu right, %zu missing, %zu wrong (read from nvme: %llu, from the directory: %llu)\n", found,
              missing, wrong, static_cast<unsigned long long>(stats.tiers[2].loads),
              static_cast<unsigned long long>(stats.tiers[3].loads));
  return wrong != 0 ? 3 : missing != 0 ? 1 : 0;
}

// What a run leaves of the store to later ones.
constexpr std::size_t bytes_of_a_run = 144_MiB;

// Random lengths of sequences, flushes, reads and releases; what has a name stays.
class writer {
 public:
  writer(torture_cache& cache, context& ctx, std::uint64_t seed)
      : cache_(cache),
        context_(ctx),
        random_(seed),
        next_id_((std::uint64_t{std::random_device{}()} << 32) | 1) {}

  /// One more random deed, when `share` of the run is over: blocks that stay are spread over its time.
  void step(double share) {
    const bool may_write =
        !full_ && static_cast<double>(written_) <= static_cast<double>(bytes_of_a_run) * share;
    switch (random_() % 8) {
      case 0:
        flush();
        break;
      case 1:
        read_again();
        break;
      case 2:
        if (!sequences_.empty()) sequences_.pop_front();
        break;
      case 3:
        scratch();
        break;
      default:
        if (may_write)
          full_ = !write();
        else
          scratch();
    }
  }
  /// Makes durable what has been written since, and says so.
  void flush() {
    if (full_) return;
    if (const auto done = context_.sync_wait(cache_.flush()); !done) {
      std::fprintf(stderr, "torture: nothing more is acknowledged: %s\n", done.error().message().c_str());
      full_ = true;
      return;
    }
    for (const std::uint64_t id : pending_) std::printf("ack %llu\n", static_cast<unsigned long long>(id));
    std::fflush(stdout);
    durable_.insert(durable_.end(), pending_.begin(), pending_.end());
    pending_.clear();
  }

 private:
  bool write() {
    sequences_.push_back(cache_.make_sequence());
    for (auto blocks = random_() % 24 + 1; blocks != 0; --blocks) {
      sequence& s = sequences_.back();
      auto r = s.reserve(block_tokens);
      if (!r) return false;
      fill(*r, next_id_);
      s.commit(std::move(*r), block_tokens);
      if (!cache_.name(s.pages().rows[0].back(), key_of(next_id_))) return false;
      written_ += layout.groups[0].block_bytes();
      pending_.push_back(next_id_++);
    }
    if (sequences_.size() > 8) sequences_.pop_front();
    return true;
  }
  // Blocks without names come and go between those that stay: the room of extents is used again.
  void scratch() {
    sequence s = cache_.make_sequence();
    for (auto blocks = random_() % 16 + 1; blocks != 0; --blocks) {
      auto r = s.reserve(block_tokens);
      if (!r) return;
      fill(*r, 0);
      s.commit(std::move(*r), block_tokens);
    }
  }
  void read_again() {
    if (durable_.empty()) return;
    const std::uint64_t id = durable_[random_() % durable_.size()];
    const auto block = cache_.find(key_of(id));
    const bool right = block && [&] {
      const auto held = context_.sync_wait(cache_.acquire({&*block, 1}));
      return held && holds((*held)[0].data, id);
    }();
    if (right) return;
    std::fprintf(stderr, "torture: block %llu is not what it was\n", static_cast<unsigned long long>(id));
    std::exit(3);
  }

  torture_cache& cache_;
  context& context_;
  std::mt19937_64 random_;
  std::uint64_t next_id_;  // its upper half is this run's own
  std::size_t written_ = 0;
  bool full_ = false;
  std::deque<sequence> sequences_;
  std::vector<std::uint64_t> pending_, durable_;
};

int torture(const arguments& a) {
  context ctx;
  auto cache = open(ctx, a.dir);
  if (!cache) fail_with("the store cannot be opened", cache.error());
  writer w(*cache, ctx, a.seed);
  const auto start = context::clock::now();
  for (double share = 0; share < 1;) {
    w.step(share);
    const std::chrono::duration<double> passed = context::clock::now() - start;
    share = a.seconds > 0 ? passed.count() / a.seconds : 1;
  }
  w.flush();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const arguments a = parse(argc, argv);
  return a.verify.empty() ? torture(a) : verify(a);
}
