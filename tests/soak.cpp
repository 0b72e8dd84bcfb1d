// A long mixed load over a ladder whose middle tier fails at random: sequences that grow, fork, are cut and forgotten,
// prefetches, flushes, sizes that change, names that come and go, leases held for a while.
//
//     soak --minutes M [--seed N] [--dir DIR]
//
// Every token says what it is, and every block that can be had is compared with what was written. 0: all right; 1: a
// block was wrong, a pin is left, or memory has grown by more than 1% since the first tenth was over.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/terrace.hpp"
#include "terrace/testing/scripted.hpp"

namespace {

using namespace terrace;
using soaked_cache = tiered_cache<tier<ram>, tier<ram>, tier<scripted>, tier<nvme>, tier<directory>, lru>;

// Blocks of 16 KiB.
constexpr std::uint32_t layers = 2, tokens_a_block = 16, heads = 4, dim = 64;
const kv_layout layout{{{.layers = layers, .tokens = tokens_a_block, .k = {heads, dim}, .v = {heads, dim}}}};
constexpr std::size_t hot = 48_MiB, warm = 16_MiB;

[[noreturn]] void refuse(const char* sentence) {
  std::fprintf(stderr, "soak: %s\n", sentence);
  std::exit(2);
}

// The elements of one head of one token: four at a time follow from its tag.
using head_row = std::array<std::uint64_t, dim / 4>;
head_row row_of(std::uint32_t tag, std::uint32_t layer, bool values, std::uint32_t head) {
  head_row row;
  std::uint64_t x =
      (std::uint64_t{tag} << 16 | layer << 8 | head << 1 | (values ? 1u : 0u)) * 0x9e3779b97f4a7c15u;
  for (std::uint64_t& part : row) {
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
    part = x;
  }
  return row;
}
void fill(const reservation& r, const std::vector<std::uint32_t>& tags) {
  for (std::uint32_t layer = 0; layer < layers; ++layer)
    for (const bool values : {false, true}) {
      const plane_rows rows = values ? r.v(layer) : r.k(layer);
      for (std::uint32_t t = 0; t < rows.tokens(); ++t)
        for (std::uint32_t h = 0; h < heads; ++h) {
          const head_row row = row_of(tags[r.first_position() + t], layer, values, h);
          std::memcpy(static_cast<void*>(rows.row<fp16>(t, h).data()), row.data(), sizeof row);
        }
    }
}
bool holds(const std::byte* data, std::uint32_t layer, const std::uint32_t* tags) {
  const layer_group& g = layout.groups[0];
  for (const bool values : {false, true}) {
    const plane& p = values ? g.v : g.k;
    for (std::uint32_t h = 0; h < heads; ++h)
      for (std::uint32_t t = 0; t < tokens_a_block; ++t) {
        const head_row row = row_of(tags[t], layer, values, h);
        const std::byte* const at =
            data + (values ? g.v_offset() : g.k_offset()) + h * g.head_stride(p) + t * g.token_stride(p);
        if (std::memcmp(at, row.data(), sizeof row) != 0) return false;
      }
  }
  return true;
}

std::size_t resident_bytes() {
  std::size_t size = 0, resident = 0;
  std::FILE* const file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr || std::fscanf(file, "%zu %zu", &size, &resident) != 2)
    refuse("/proc/self/statm cannot be read");
  std::fclose(file);
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

struct counts {
  std::uint64_t steps = 0, tokens = 0, verified = 0, wrong = 0, lost = 0, refused = 0, flushes = 0,
                failed_flushes = 0;
  std::uint64_t failed_reads = 0, failed_writes = 0, flipped_bits = 0, stalls = 0, forks = 0, cuts = 0,
                resizes = 0;
};

class soak {
 public:
  soak(context& ctx, soaked_cache& cache, medium_script& script, std::uint64_t seed)
      : context_(ctx), cache_(cache), script_(script), random_(seed) {}

  counts done;

  void step() {
    ++done.steps;
    cache_.advance_step(done.steps);
    inject();
    switch (below(16)) {
      case 0:
        return below(200) == 0 ? start() : append();
      case 1:
        return below(200) == 0 ? fork() : append();
      case 2:
        return cut();
      case 3:
        return forget_front();
      case 4:
        return prefetch();
      case 5:
        return below(8) == 0 ? flush() : void();
      case 6:
        return below(8) == 0 ? resize() : void();
      case 7:
        return name();
      case 8:
        return look_up();
      case 9:
        if (!held_.empty()) held_.pop_front();
        return;
      case 10:
      case 11:
      case 12:
        return read();
      default:
        return append();
    }
  }

  /// Everything as at the beginning but for what is named, and all of memory touched: what is resident now can be
  /// compared with what was at another such moment.
  std::size_t settle() {
    held_.clear();
    script_.hold = false;
    script_.release_all();
    script_.fail_reads = script_.fail_writes = script_.flip_reads = 0;
    static_cast<void>(cache_.resize(0, hot));
    static_cast<void>(cache_.resize(1, warm));
    {
      std::vector<std::uint32_t> tags(tokens_a_block, 1);
      std::vector<sequence> scratch;
      for (std::size_t blocks = 0; blocks < 2 * (hot + warm) / layout.largest_block(); blocks += layers) {
        scratch.push_back(cache_.make_sequence());
        auto r = scratch.back().reserve(tokens_a_block);
        if (!r) break;
        fill(*r, tags);
        scratch.back().commit(std::move(*r), tokens_a_block);
      }
    }
    static_cast<void>(context_.sync_wait(cache_.flush()));
    ::malloc_trim(0);
    return resident_bytes();
  }
  void end() {
    held_.clear();
    conversations_.clear();
    while (!names_.empty()) drop_name(names_.begin()->first);
    script_.hold = false;
    script_.release_all();
    static_cast<void>(context_.sync_wait(cache_.flush()));
  }

 private:
  struct conversation {
    sequence tokens;
    std::vector<std::uint32_t> tags;
  };
  struct named {
    std::uint32_t layer;
    std::vector<std::uint32_t> tags;
  };

  std::size_t below(std::size_t n) { return random_() % n; }
  conversation* any() {
    return conversations_.empty() ? nullptr : &conversations_[below(conversations_.size())];
  }

  // One step in a hundred has a fault; a stall holds transfers until some steps later, or beyond their deadline.
  void inject() {
    if (script_.hold && below(20) == 0) {
      script_.hold = false;
      script_.release_all();
    }
    if (below(100) != 0) return;
    switch (below(8)) {
      case 0:
        if (below(8) != 0) return;
        script_.hold = true;
        ++done.stalls;
        return;
      case 1:
      case 2:
        ++script_.flip_reads;
        ++done.flipped_bits;
        return;
      case 3:
      case 4:
      case 5:
        ++script_.fail_reads;
        ++done.failed_reads;
        return;
      default:
        ++script_.fail_writes;
        ++done.failed_writes;
    }
  }

  void drop_any() {
    if (!conversations_.empty())
      conversations_.erase(conversations_.begin() +
                           static_cast<std::ptrdiff_t>(below(conversations_.size())));
  }
  void start() {
    if (conversations_.size() >= 24) drop_any();
    conversations_.push_back({cache_.make_sequence(), {}});
  }
  void fork() {
    if (conversations_.size() >= 24) drop_any();
    const conversation* const c = any();
    if (c == nullptr) return;
    ++done.forks;
    conversation copy{cache_.fork(c->tokens), c->tags};
    conversations_.push_back(std::move(copy));
  }
  void append() {
    conversation* const c = conversations_.size() < 12 ? nullptr : any();
    if (c == nullptr) return start();
    const auto count = static_cast<std::uint32_t>(below(4) == 0 ? below(200) + 1 : below(20) + 1);
    if (c->tags.size() + count > 8000) return drop_any();
    auto r = c->tokens.reserve(count);
    if (!r) {
      ++done.refused;
      return drop_any();
    }
    for (std::uint32_t i = 0; i < count; ++i) c->tags.push_back(static_cast<std::uint32_t>(random_()));
    fill(*r, c->tags);
    const auto keep = static_cast<std::uint32_t>(below(5) == 0 ? below(count + 1) : count);
    c->tokens.commit(std::move(*r), keep);
    c->tags.resize(c->tags.size() - count + keep);
    done.tokens += keep;
  }
  void cut() {
    conversation* const c = any();
    if (c == nullptr || c->tags.empty()) return;
    const std::size_t most = below(50) == 0 ? c->tags.size() : std::min<std::size_t>(c->tags.size(), 40);
    cut_to(*c, c->tags.size() - below(most + 1));
  }
  void cut_to(conversation& c, std::size_t tokens) {
    if (!c.tokens.truncate(tokens)) return;
    c.tags.resize(tokens);
    ++done.cuts;
  }
  void forget_front() {
    conversation* const c = any();
    if (c == nullptr || below(40) != 0) return;
    c->tokens.forget(0, below(c->tags.size() + 1));
  }
  void prefetch() {
    const conversation* const c = any();
    if (c == nullptr) return;
    static_cast<void>(
        cache_.prefetch(ids_of(*c, static_cast<std::uint32_t>(below(layers)), below(c->tags.size() + 1), 8)));
  }
  void flush() { ++(context_.sync_wait(cache_.flush()) ? done.flushes : done.failed_flushes); }
  void resize() {
    ++done.resizes;
    const std::size_t tier = below(2);
    static_cast<void>(cache_.resize(tier, (tier == 0 ? hot : warm) / 8 * (below(5) + 4)));
  }

  // The sealed blocks of a row from a position on, as far as they are not forgotten.
  std::vector<block_id> ids_of(const conversation& c, std::uint32_t layer, std::size_t position,
                               std::size_t most) const {
    std::vector<block_id> ids;
    const page_table& pages = c.tokens.pages();
    for (std::size_t i = position / tokens_a_block; i < pages.sealed(layer) && ids.size() < most; ++i) {
      if (!pages.rows[layer][i].valid()) break;
      ids.push_back(pages.rows[layer][i]);
    }
    return ids;
  }
  void read() {
    conversation* const c = any();
    if (c == nullptr || c->tags.empty()) return;
    const auto layer = static_cast<std::uint32_t>(below(layers));
    const std::size_t first = below(c->tags.size()) / tokens_a_block;
    const auto ids = ids_of(*c, layer, first * tokens_a_block, below(16) + 1);
    if (ids.empty()) return;
    auto held = context_.sync_wait(cache_.acquire(ids));
    if (!held) return recover(*c, first, ids, held.error());
    for (std::size_t i = 0; i < ids.size(); ++i)
      check((*held)[i].data, layer, &c->tags[(first + i) * tokens_a_block]);
    if (below(4) == 0) held_.push_back(std::move(*held));
    if (held_.size() > 8) held_.pop_front();
  }
  // A lost block would be computed anew: everything from it on is.
  template <class Error>
  void recover(conversation& c, std::size_t first, const std::vector<block_id>& ids, const Error& why) {
    if (why.lost.empty()) {
      ++done.refused;
      return held_.clear();
    }
    done.lost += why.lost.size();
    for (std::size_t i = 0; i < ids.size(); ++i)
      for (const lost_block& l : why.lost)
        if (l.id == ids[i]) return cut_to(c, (first + i) * tokens_a_block);
  }
  void check(const std::byte* data, std::uint32_t layer, const std::uint32_t* tags) {
    ++done.verified;
    if (holds(data, layer, tags)) return;
    ++done.wrong;
    std::fprintf(stderr, "soak: step %llu: a block is wrong\n", static_cast<unsigned long long>(done.steps));
  }

  void name() {
    const conversation* const c = any();
    if (c == nullptr || c->tags.size() < tokens_a_block) return;
    if (names_.size() >= 400)
      drop_name(std::next(names_.begin(), static_cast<std::ptrdiff_t>(below(names_.size())))->first);
    const auto layer = static_cast<std::uint32_t>(below(layers));
    const std::size_t block = below(c->tags.size() / tokens_a_block);
    const auto ids = ids_of(*c, layer, block * tokens_a_block, 1);
    const std::uint64_t key = ++next_name_ % 600 + 1;  // keys are used again
    if (ids.empty() || names_.contains(key) || !cache_.name(ids[0], {.low = key, .high = 1})) return;
    const auto from = c->tags.begin() + static_cast<std::ptrdiff_t>(block * tokens_a_block);
    names_[key] = {layer, {from, from + tokens_a_block}};
  }
  void drop_name(std::uint64_t key) {
    cache_.forget({.low = key, .high = 1});
    names_.erase(key);
  }
  void look_up() {
    if (names_.empty()) return;
    const auto& [key, what] = *std::next(names_.begin(), static_cast<std::ptrdiff_t>(below(names_.size())));
    const auto id = cache_.find({.low = key, .high = 1});
    if (!id) {
      ++done.wrong;
      std::fprintf(stderr, "soak: a name is gone\n");
      return;
    }
    const auto held = context_.sync_wait(cache_.acquire({&*id, 1}));
    if (held) return check((*held)[0].data, what.layer, what.tags.data());
    if (held.error().lost.empty()) {
      ++done.refused;
      return held_.clear();
    }
    ++done.lost;
    drop_name(key);
  }

  context& context_;
  soaked_cache& cache_;
  medium_script& script_;
  std::mt19937_64 random_;
  std::vector<conversation> conversations_;
  std::map<std::uint64_t, named> names_;
  std::uint64_t next_name_ = 0;
  std::deque<lease> held_;
};

template <class T>
T number(std::string_view text, const char* sentence) {
  T value{};
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || end != text.data() + text.size()) refuse(sentence);
  return value;
}

int run(double minutes, std::uint64_t seed, const std::string& dir) {
  context ctx{{.codec_threads = 1}};
  medium_script script;
  auto cache = soaked_cache::open(ctx, layout, {.capacity = hot}, {.capacity = warm},
                                  {.capacity = 16_MiB, .script = &script},
                                  {.capacity = 48_MiB, .path = dir + "/kv", .keep = true},
                                  {.capacity = 256_MiB, .path = dir, .keep = true}, {},
                                  {.transfers = {.deadline = std::chrono::milliseconds(500)}});
  if (!cache) {
    std::fprintf(stderr, "soak: %s\n", cache.error().message().c_str());
    return 2;
  }
  soak load(ctx, *cache, script, seed);
  const auto begin = context::clock::now();
  const auto share = [&] {
    const std::chrono::duration<double> passed = context::clock::now() - begin;
    return minutes > 0 ? passed.count() / 60 / minutes : 1;
  };
  while (share() < 0.1) load.step();
  const std::size_t before = load.settle();
  while (share() < 1) load.step();
  const std::size_t after = load.settle();
  const cache_stats busy = cache->stats();
  load.end();
  const std::size_t pins = cache->stats().pins;

  const counts& n = load.done;
  const auto print = [](const char* what, std::uint64_t value) {
    std::printf("  %-34s %llu\n", what, static_cast<unsigned long long>(value));
  };
  std::printf("soak: %.1f minutes, seed %llu\n", minutes, static_cast<unsigned long long>(seed));
  print("steps", n.steps);
  print("tokens written", n.tokens);
  print("blocks verified", n.verified);
  print("blocks wrong", n.wrong);
  print("blocks lost to faults", n.lost);
  print("refused for want of room", n.refused);
  print("flushes", n.flushes);
  print("flushes that said they failed", n.failed_flushes);
  print("forks", n.forks);
  print("cuts", n.cuts);
  print("resizes", n.resizes);
  print("reads made to fail", n.failed_reads);
  print("writes made to fail", n.failed_writes);
  print("bits flipped", n.flipped_bits);
  print("stalls", n.stalls);
  for (const tier_stats& t : busy.tiers)
    std::printf("  %-10.*s stores %9llu  loads %9llu  read %8.1f MiB  written %8.1f MiB\n",
                static_cast<int>(t.medium.size()), t.medium.data(), static_cast<unsigned long long>(t.stores),
                static_cast<unsigned long long>(t.loads), static_cast<double>(t.bytes_read) / 1048576,
                static_cast<double>(t.bytes_written) / 1048576);
  const double grown = 100.0 * (static_cast<double>(after) / static_cast<double>(before) - 1);
  std::printf("  resident after warm-up %.2f MiB, at the end %.2f MiB: %+.2f%%\n",
              static_cast<double>(before) / 1048576, static_cast<double>(after) / 1048576, grown);
  print("pins left", pins);
  const bool right = n.wrong == 0 && pins == 0 && grown <= 1;
  std::puts(right ? "  all right" : "  NOT all right");
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  double minutes = -1;
  std::uint64_t seed = std::random_device{}();
  std::string dir;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view option = argv[i];
    if (option == "--help") return std::puts("soak --minutes M [--seed N] [--dir DIR]"), 0;
    if (i + 1 == argc) refuse("every option has a value; --help lists them");
    if (option == "--minutes")
      minutes = number<double>(argv[i + 1], "--minutes is a number");
    else if (option == "--seed")
      seed = number<std::uint64_t>(argv[i + 1], "--seed is a whole number");
    else if (option == "--dir")
      dir = argv[i + 1];
    else
      refuse("an option is not known; --help lists them");
  }
  if (!(minutes >= 0)) refuse("--minutes says for how long");
  if (!dir.empty()) return run(minutes, seed, dir);
  std::string place = std::filesystem::temp_directory_path().string() + "/terrace-soak-XXXXXX";
  if (::mkdtemp(place.data()) == nullptr) refuse("no temporary folder can be made");
  const int status = run(minutes, seed, place);
  std::filesystem::remove_all(place);
  return status;
}
