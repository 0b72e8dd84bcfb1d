// The power goes at every moment of runs over media that keep, and what the disk may then have is opened again: what
// a flush has acknowledged is there, nothing is wrong, and nothing is larger than it may be.
// TERRACE_POWER_LOSS_IMAGES says how many disks are looked at; tests/crash/power_loss sets it.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "catch.hpp"
#include "crash/disk_log.hpp"
#include "crash/kept_ladders.hpp"
#include "crash/name_ledger.hpp"
#include "crash/recorder.hpp"
#include "terrace/terrace.hpp"

using namespace terrace;
using namespace power_loss;

namespace {

name_ledger::answer read(context& ctx, kv_store& cache, std::uint64_t name) {
  using kind = name_ledger::answer::kind;
  const auto id = cache.find(key_of(name));
  if (!id) return {kind::absent};
  const auto held = ctx.sync_wait(cache.acquire({&*id, 1}));
  if (!held) return {kind::lost};
  std::vector<std::uint16_t> elements(block / 2);
  std::memcpy(elements.data(), (*held)[0].data, block);
  const std::uint32_t version = elements[0] | (std::uint32_t{elements[1]} << 16);
  for (std::size_t i = 0; i < elements.size(); ++i)
    if (elements[i] != bits_of(version, i)) return {kind::garbage};
  return {kind::found, version};
}

// Files may take what their tiers were given, and no more.
std::optional<std::string> too_large(const std::string& root) {
  std::error_code none;
  if (std::filesystem::exists(root + "/kv") && std::filesystem::file_size(root + "/kv") > 256_KiB)
    return "the file of the nvme tier is larger than its capacity";
  std::size_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root + "/cold/kv-store", none))
    if (entry.path().filename() != "index") bytes += (entry.file_size() + 4095) / 4096 * 4096;
  if (bytes > 256_KiB) return "the files of the directory tier take more than its capacity";
  return std::nullopt;
}

// A run: deeds in random order, all of them noted.
template <class Ladder>
class run {
 public:
  run(const std::string& root, name_ledger& ledger, std::uint32_t& versions, std::uint64_t seed)
      : ledger_(ledger), versions_(versions), random_(seed), opened_(Ladder::open(ctx_, root)) {
    REQUIRE(opened_);
    // A process that was killed may have left more, or less, than it has acknowledged.
    for (const std::uint64_t name : ledger_.names()) {
      const auto a = read(ctx_, *opened_, name);
      if (a.what == name_ledger::answer::kind::lost) opened_->forget(key_of(name));
      if (a.v != ledger_.now(name)) ledger_.set(name, a.v, recorder::instance().now());
    }
  }

  void step() {
    switch (random_() % 12) {
      case 0:
      case 1:
        return flush();
      case 2:
        if (!sequences_.empty())
          sequences_.erase(sequences_.begin() + static_cast<std::ptrdiff_t>(random_() % sequences_.size()));
        return;
      case 3:
      case 4:
        return forget(random_() % Ladder::names);
      case 5:
        return scratch();
      case 6:
        return look();
      case 7:
        return rename();
      default:
        return write();
    }
  }
  // Now and then names change while it is under way.
  void flush() {
    outcome said = outcome::none;
    auto operation = ex::connect(opened_->flush(), receiver{&said});
    ledger_.flush_begins();
    ex::start(operation);
    while (said == outcome::none) {
      if (random_() % 3 == 0) random_() % 2 == 0 ? rename() : forget(random_() % Ladder::names);
      if (said == outcome::none) ctx_.wait(context::clock::now() + std::chrono::seconds(1));
    }
    if (said == outcome::done) ledger_.flush_ended(recorder::instance().now());
  }

 private:
  enum class outcome { none, done, failed };
  struct receiver {
    using receiver_concept = ex::receiver_t;
    outcome* said;
    void set_value() noexcept { *said = outcome::done; }
    void set_error(error) noexcept { *said = outcome::failed; }
    void set_stopped() noexcept { *said = outcome::failed; }
    ex::env<> get_env() const noexcept { return {}; }
  };

  void write() {
    sequence s = opened_->make_sequence();
    for (auto n = random_() % 4 + 1; n != 0; --n) {
      const std::uint64_t name = random_() % Ladder::names;
      auto r = s.reserve(tokens);
      if (!r) return;
      if (ledger_.now(name) != 0) forget(name);
      fill(*r, ++versions_);
      s.commit(std::move(*r), tokens);
      REQUIRE(opened_->name(s.pages().rows[0].back(), key_of(name)));
      ledger_.set(name, versions_, recorder::instance().now());
    }
    if (random_() % 2 == 0) sequences_.push_back(std::move(s));
    if (sequences_.size() > 3) sequences_.pop_front();
  }
  void scratch() {
    sequence s = opened_->make_sequence();
    for (auto n = random_() % 12 + 1; n != 0; --n) {
      auto r = s.reserve(tokens);
      if (!r) return;
      fill(*r, 0);
      s.commit(std::move(*r), tokens);
    }
  }
  // Even where a sequence still refers to the block: then its extents stay, and the name does not.
  void forget(std::uint64_t name) {
    if (ledger_.now(name) == 0) return;
    ledger_.set(name, 0, recorder::instance().now());
    opened_->forget(key_of(name));
  }
  // The block of one name gets another one.
  void rename() {
    const std::uint64_t from = random_() % Ladder::names, to = random_() % Ladder::names;
    const std::uint32_t version = ledger_.now(from);
    if (from == to || version == 0) return;
    const block_id id = *opened_->find(key_of(from));
    const std::span<const block_id> ids(&id, 1);
    const auto held = ctx_.sync_wait(opened_->acquire(ids));
    if (!held || ledger_.now(from) != version) return;
    forget(to);
    forget(from);
    if (!opened_->name(id, key_of(to))) return;  // nobody else refers to it: it is gone
    ledger_.set(to, version, recorder::instance().now());
  }
  void look() {
    const std::uint64_t name = random_() % Ladder::names;
    const auto a = read(ctx_, *opened_, name);
    const std::uint32_t now = ledger_.now(name);
    REQUIRE(a.what == (now == 0 ? name_ledger::answer::kind::absent : name_ledger::answer::kind::found));
    REQUIRE(a.v == now);
  }

  name_ledger& ledger_;
  std::uint32_t& versions_;
  std::mt19937_64 random_;
  context ctx_{{.codec_threads = 0}};
  result<typename Ladder::cache> opened_;
  std::deque<sequence> sequences_;
};

// A folder in memory where there is one: disks are made and thrown away by the thousand.
struct workplace {
  workplace() {
    std::string place = std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : "/tmp";
    place += "/terrace-test-XXXXXX";
    REQUIRE(::mkdtemp(place.data()) != nullptr);
    path = place;
    ::setenv("TERRACE_NO_IO_URING", "1", 1);
  }
  workplace(const workplace&) = delete;
  ~workplace() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

// Opens what is left of a disk, and says what is wrong with it. `survivors`, if asked for, is what can be told of names
// from here on.
template <class Ladder>
std::optional<std::string> verdict(const std::string& root, const name_ledger& ledger, tick crash,
                                   name_ledger* survivors = nullptr) {
  using kind = name_ledger::answer::kind;
  {
    context ctx{{.codec_threads = 0}};
    auto cache = Ladder::open(ctx, root);
    if (!cache) return "the store cannot be opened: " + cache.error().message();
    for (const std::uint64_t name : ledger.names()) {
      const auto a = read(ctx, *cache, name);
      if (auto objection = ledger.objection(name, a, crash)) return objection;
      if (survivors == nullptr) continue;
      if (a.what == kind::lost) cache->forget(key_of(name));
      if (a.what == kind::found) survivors->set(name, a.v, 0);
    }
    if (survivors == nullptr) return std::nullopt;
    REQUIRE(ctx.sync_wait(cache->flush()));
    survivors->flush_begins();
    survivors->flush_ended(0);
  }
  return too_large(root);
}

// Runs one after another, each on what a crash has left of the one before, and crashes at random moments of each.
// Returns the first thing that is wrong.
template <class Ladder>
std::optional<std::string> lose_power(std::size_t images, std::uint64_t seed,
                                      omission without = omission::none, bool syncs_fail = false) {
  const workplace place;
  const std::string disk = place.path + "/disk", left = place.path + "/left";
  std::mt19937_64 random(seed);
  std::uint32_t versions = 0;
  image base;
  name_ledger before;
  std::optional<std::pair<disk_log, tick>> killed;
  const auto any_kind = [&random] {
    static constexpr fate::kind kinds[] = {fate::kind::all_lost, fate::kind::all_kept, fate::kind::last_kept,
                                           fate::kind::mixed,    fate::kind::mixed,    fate::kind::mixed};
    return kinds[random() % std::size(kinds)];
  };
  for (std::size_t done = 0, generation = 0; done < images; ++generation) {
    if (generation % 6 == 0) {  // from nothing
      base = {};
      before = {};
      killed.reset();
    }
    base.put_into(disk);
    name_ledger ledger = before;
    if (killed)
      recorder::instance().go_on(disk, std::move(killed->first), killed->second);
    else
      recorder::instance().start(disk, base);
    {
      run<Ladder> r(disk, ledger, versions, random());
      if (killed && random() % 2 == 0) r.flush();  // what was found counts as durable
      for (auto steps = random() % 30 + 10; steps != 0; --steps) {
        if (syncs_fail && random() % 8 == 0) recorder::instance().fail_next_sync();
        r.step();
      }
    }
    const tick end = recorder::instance().now();
    disk_log log = recorder::instance().stop();

    const auto crash_once = [&](tick at, fate::kind kind,
                                name_ledger* survivors) -> std::optional<std::string> {
      const std::uint64_t choice = random();
      base = log.at(at, fate(kind, choice), without);
      base.put_into(left);
      ++done;
      auto wrong = verdict<Ladder>(left, ledger, at, survivors);
      if (wrong)
        *wrong += " (seed " + std::to_string(seed) + ", run " + std::to_string(generation) + ", crash at " +
                  std::to_string(at) + " of " + std::to_string(end) + ", fate " +
                  std::to_string(static_cast<int>(kind)) + ")";
      return wrong;
    };
    for (std::size_t i = 0; i < 40 && done < images; ++i)
      if (auto wrong = crash_once(random() % end + 1, any_kind(), nullptr)) return wrong;
    killed.reset();
    if (random() % 3 == 0 && !log.names_forgotten()) {  // the next run follows a process that was killed
      const tick at = random() % 2 == 0 ? random() % end + 1 : log.within_a_sync(random());
      if (auto wrong = crash_once(at, fate::kind::all_kept, nullptr)) return wrong;
      base = log.at(at, fate(fate::kind::all_kept, 0));
      before = ledger;
      before.cut(at);
      killed.emplace(std::move(log), at);
      continue;
    }
    name_ledger survivors;
    if (auto wrong = crash_once(random() % end + 1, any_kind(), &survivors)) return wrong;
    // What opening it has changed is part of it.
    base = {};
    for (const auto& entry : std::filesystem::recursive_directory_iterator(left)) {
      const std::string path = std::filesystem::relative(entry.path(), left);
      if (entry.is_directory()) {
        base.folders.insert(path);
        continue;
      }
      std::ifstream file(entry.path(), std::ios::binary);
      std::vector<std::byte>& bytes = base.files[path];
      bytes.resize(entry.file_size());
      file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
    before = survivors;
  }
  return std::nullopt;
}

std::size_t images_wanted() {
  const char* const said = std::getenv("TERRACE_POWER_LOSS_IMAGES");
  return said == nullptr ? 4500 : std::strtoull(said, nullptr, 10);
}
std::uint64_t seed_wanted() {
  const char* const said = std::getenv("TERRACE_POWER_LOSS_SEED");
  return said == nullptr ? 1 : std::strtoull(said, nullptr, 10);
}

}  // namespace

TEMPLATE_TEST_CASE("when the power goes, what was acknowledged stays, and nothing wrong is served", "",
                   over_nvme, over_directory, over_both) {
  const auto wrong = lose_power<TestType>(images_wanted() / 3, seed_wanted());
  INFO(wrong.value_or(""));
  CHECK_FALSE(wrong);
}

// As above, where syncs fail as well: what a flush has acknowledged must not rest on the sync after one that failed.
TEMPLATE_TEST_CASE("when the power goes after syncs that failed, what was acknowledged stays", "", over_nvme,
                   over_directory, over_both) {
  const auto wrong = lose_power<TestType>(images_wanted() / 9, seed_wanted(), omission::none, true);
  INFO(wrong.value_or(""));
  CHECK_FALSE(wrong);
}

// These tests can fail: a sync that is left out shows.
TEMPLATE_TEST_CASE("when the power goes: what a sync that is left out costs is seen", "", over_nvme,
                   over_directory, over_both) {
  CHECK(lose_power<TestType>(2000, 1, omission::fsync_of_files));
  CHECK(lose_power<TestType>(2000, 1, omission::fdatasync));
  CHECK(lose_power<TestType>(2000, 1, omission::fsync_of_folders));
}
