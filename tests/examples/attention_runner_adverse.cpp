// The runner where disks are full, files vanish and the system refuses calls: the text is that of a run without
// trouble, or one sentence says why there is none; and the report says which tier failed.
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "catch.hpp"
#include "examples/workplace.hpp"
#include "medium/sandbox.hpp"

using nlohmann::json;

namespace {

const std::string job = "--codec lossless --baseline --context 512 --decode 4 --hot 1MiB --json - ";

json completed(const workplace::outcome& ran) {
  CAPTURE(ran.err);
  REQUIRE(ran.status == 0);
  json j = ran.value();
  CHECK(j.at("baseline").at("identical_tokens") == true);
  CHECK(j.at("error").at("max_abs") == 0);
  return j;
}

void ended_with_one_sentence(const workplace::outcome& ran, const std::string& says) {
  CAPTURE(ran.err);
  CHECK(ran.status == 1);
  CHECK(ran.out.empty());
  CHECK(ran.err.rfind("attention_runner: ", 0) == 0);
  CHECK(ran.err.find('\n') == ran.err.size() - 1);
  CHECK(ran.err.find(says) != std::string::npos);
}

json tier(const json& j, const std::string& name) {
  for (const json& t : j.at("tiers"))
    if (t.at("name") == name) return t;
  return {};
}

/// Does something while a program runs, until it has been of effect twelve times: f() says whether it was.
class meanwhile {
 public:
  template <class F>
  explicit meanwhile(F f)
      : thread_([this, f] {
          for (int left = 12; left != 0 && !over_.load(); left -= f() ? 1 : 0)
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }) {}
  meanwhile(const meanwhile&) = delete;
  ~meanwhile() {
    over_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> over_{false};
  std::thread thread_;
};

}  // namespace

TEST_CASE(
    "a disk that fills while the run writes to it: the next tier takes over, and the report says "
    "so") {
  const workplace here;
  sandbox::with_small_disk(1 << 20, [&](const std::string& disk) {
    sandbox::without_call(SYS_fallocate, [&] {  // so that nothing is claimed when the tier is opened
      const json j = completed(here.run(job + "--warm 1MiB --cool-path " + disk +
                                        "/kv --cool 4MiB --cold 32MiB --cold-path cold"));
      CHECK(tier(j, "cool").at("failed_stores").get<int>() > 0);
      const json health = tier(j, "cool").at("health");
      CHECK(health.at("times_set_aside").get<int>() > 0);
      CHECK(health.at("last_error").get<std::string>().find("No space left") != std::string::npos);
      CHECK(tier(j, "cold").at("stores").get<int>() > 0);
      CHECK_FALSE(tier(j, "cold").contains("health"));
    });
  });
}

TEST_CASE("a disk that is full, and nothing else: one sentence") {
  const workplace here;
  sandbox::with_small_disk(1 << 20, [&](const std::string& disk) {
    check_refused(here.run(job + "--warm 1MiB --cool-path " + disk + "/kv"), "attention_runner", 2,
                  "no room");
    sandbox::without_call(SYS_fallocate, [&] {
      ended_with_one_sentence(here.run(job + "--warm 1MiB --cool-path " + disk + "/kv"), "No space left");
    });
  });
}

TEST_CASE("the disk tier becomes read-only while it is used: the next tier takes over") {
  const workplace here;
  if (!sandbox::can_refuse_writes(here.folder)) {
    WARN("skipped: no file can be made to refuse writes here");
    return;
  }
  const std::string file = here.folder / "kv";
  {
    // Once it has taken something, and so is open.
    const meanwhile refuser([&] {
      std::error_code ignored;
      const auto changed = std::filesystem::last_write_time(file, ignored);
      return !ignored && std::filesystem::file_time_type::clock::now() - changed < std::chrono::seconds(1) &&
             std::filesystem::exists(here.folder / "cold") && sandbox::refuse_writes(file, true);
    });
    const json j =
        completed(here.run(job + "--warm 1MiB --cool-path kv --cool 16MiB --cold 32MiB --cold-path cold"));
    CHECK(tier(j, "cool").at("failed_stores").get<int>() > 0);
    const json health = tier(j, "cool").at("health");
    CHECK(health.at("times_set_aside").get<int>() > 0);
    CHECK(health.at("last_error").get<std::string>().find("not permitted") != std::string::npos);
    CHECK(tier(j, "cold").at("stores").get<int>() > 0);
  }
  sandbox::refuse_writes(file, false);
}

TEST_CASE(
    "the folder of the cold tier becomes read-only while it is used, and there is no other: one sentence") {
  const workplace here;
  sandbox::with_small_disk(64 << 20, [&](const std::string& disk) {
    std::atomic<bool> happened{false};
    workplace::outcome ran;
    {
      const meanwhile remounter([&] {
        std::error_code ignored;
        if (!happened && !std::filesystem::is_empty(disk, ignored)) happened = sandbox::mount_read_only(disk);
        return false;
      });
      ran = here.run(job + "--warm 2MiB --cool 0 --cold 32MiB --cold-path " + disk + "/cold");
    }
    REQUIRE(happened);
    ended_with_one_sentence(ran, "Read-only file system");
  });
}

TEST_CASE("the file of the disk tier is removed while it is used") {
  const workplace here;
  const std::string file = here.folder / "kv";
  const meanwhile remover([&] { return ::unlink(file.c_str()) == 0; });
  const json j = completed(here.run(job + "--cool-path kv"));
  CHECK(tier(j, "cool").at("lost") == 0);
}

TEST_CASE(
    "the file of the disk tier is cut again and again while it is used: what is lost is computed "
    "anew") {
  const workplace here;
  const std::string file = here.folder / "kv";
  // Only what has come since the last time counts: a slow machine must not be through before anything is written.
  const meanwhile cutter([&] {
    struct stat now {};
    return ::stat(file.c_str(), &now) == 0 && now.st_size != 0 && ::truncate(file.c_str(), 0) == 0;
  });
  const json j = completed(here.run(job + "--cool-path kv"));
  CHECK(j.at("recomputed_blocks").get<int>() > 0);
  CHECK(tier(j, "cool").at("lost").get<int>() > 0);
  CHECK(tier(j, "cool").at("health").at("failures").get<int>() > 0);
}

TEST_CASE("files of the cold tier are removed while it is used: what is lost is computed anew") {
  const workplace here;
  const std::filesystem::path cold = here.folder / "cold";
  const meanwhile remover([&] {
    std::error_code ignored;
    bool any = false;
    for (std::filesystem::recursive_directory_iterator at(cold, ignored), end; at != end;
         at.increment(ignored))
      if (at->is_regular_file(ignored)) any = std::filesystem::remove(at->path(), ignored) || any;
    return any;
  });
  completed(here.run(job + "--warm 1MiB --cool 0 --cold 32MiB --cold-path cold"));
}

TEST_CASE("no io_uring, no memory to lock") {
  const workplace here;
  sandbox::without_io_uring([&] { completed(here.run(job)); });
  rlimit before{};
  ::getrlimit(RLIMIT_MEMLOCK, &before);
  const rlimit little{std::min<rlim_t>(64 << 10, before.rlim_max), before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_MEMLOCK, &little) == 0);
  completed(here.run(job));
  ::setrlimit(RLIMIT_MEMLOCK, &before);
}

TEST_CASE("no file may grow: refused when the tier is opened") {
  const workplace here;
  const sandbox::file_size_limit limit(1 << 20);
  check_refused(here.run(job + "--warm 1MiB"), "attention_runner", 2, "File too large");
}
