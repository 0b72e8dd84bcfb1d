// Whose a file is: one cache at a time has it, nothing of anybody else's is cut, removed or trusted.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "catch.hpp"
#include "sandbox.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"

using namespace terrace;
using sandbox::folder;

namespace {

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Makes a store of one named page at `path`, and closes it.
void make_store(const std::string& path) {
  context ctx;
  auto m = nvme::open(ctx, {.capacity = 64_KiB, .path = path, .keep = true});
  REQUIRE(m);
  const auto e = (*m)->reserve(4096);
  REQUIRE((*m)->label(*e, {.key = {1, 2}, .encoded = 4096}));
  REQUIRE(ctx.sync_wait((*m)->sync()));
}

// Gives `path` to another user; says so, and that nothing is tested, where only root may do that.
bool give_away(const std::string& path) {
  if (::chown(path.c_str(), ::geteuid() + 1, static_cast<::gid_t>(-1)) == 0) return true;
  WARN("skipped: only root can give a file to another user");
  return false;
}

}  // namespace

TEST_CASE("nvme: a file is one cache's at a time, kept or not, and the second one changes nothing") {
  for (const bool first_keeps : {false, true})
    for (const bool second_keeps : {false, true}) {
      CAPTURE(first_keeps, second_keeps);
      context ctx;
      const folder f;
      {
        auto first = nvme::open(ctx, {.capacity = 64_KiB, .path = f / "kv", .keep = first_keeps});
        REQUIRE(first);
        std::fstream(f / "kv", std::ios::in | std::ios::out).seekp(40000) << "something";
        const std::string before = contents(f / "kv");
        {
          const auto second = nvme::open(ctx, {.capacity = 16_KiB, .path = f / "kv", .keep = second_keeps});
          REQUIRE_FALSE(second);
          CHECK(second.error().code == errc::unavailable);
          CHECK(std::string(second.error().text).find("in use by another cache") != std::string::npos);
        }
        CHECK(contents(f / "kv") == before);
      }
      CHECK(nvme::open(ctx, {.capacity = 64_KiB, .path = f / "kv", .keep = first_keeps}));
    }
}

TEST_CASE("nvme: another process is refused as well") {
  const folder f;
  int opened[2];
  REQUIRE(::pipe2(opened, O_CLOEXEC) == 0);
  // Before there are threads: a sanitizer lets no process start some that was forked beside others.
  const ::pid_t child = ::fork();
  if (child == 0) {
    char go = 0;
    if (::read(opened[0], &go, 1) != 1) ::_exit(3);
    context own;
    const auto second = nvme::open(own, {.capacity = 64_KiB, .path = f / "kv"});
    ::_exit(second ? 1 : second.error().code == errc::unavailable ? 0 : 2);
  }
  REQUIRE(child > 0);
  context ctx;
  const auto first = nvme::open(ctx, {.capacity = 64_KiB, .path = f / "kv"});
  REQUIRE(::write(opened[1], "", 1) == 1);
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  ::close(opened[0]);
  ::close(opened[1]);
  REQUIRE(first);
  CHECK(status == 0);
  CHECK(std::filesystem::file_size(f / "kv") == 64_KiB);
}

TEST_CASE("nvme: a store is not cut by who does not ask for one") {
  const folder f;
  make_store(f / "kv");
  const std::string before = contents(f / "kv");
  context ctx;
  {
    const auto m = nvme::open(ctx, {.capacity = 16_KiB, .path = f / "kv"});
    REQUIRE_FALSE(m);
    CHECK(m.error().code == errc::invalid_argument);
    CHECK(std::string(m.error().text).find("`keep`") != std::string::npos);
  }
  CHECK(contents(f / "kv") == before);
  auto kept = nvme::open(ctx, {.capacity = 64_KiB, .path = f / "kv", .keep = true});
  REQUIRE(kept);
  unsigned found = 0;
  (*kept)->scan([&](extent, const extent_header&) { return ++found != 0; });
  CHECK(found == 1);
}

TEST_CASE("nvme: what has been put in place of its file is not removed") {
  context ctx;
  const folder f;
  {
    const auto m = nvme::open(ctx, {.capacity = 64_KiB, .path = f / "kv"});
    REQUIRE(m);
    std::filesystem::rename(f / "kv", f / "moved");
    std::ofstream(f / "kv") << "mine";
  }
  CHECK(contents(f / "kv") == "mine");
  CHECK(std::filesystem::exists(f / "moved"));  // it has another name now
}

TEST_CASE("nvme: a path that names another folder by now removes nothing there") {
  context ctx;
  const folder f, other;
  std::ofstream(other / "kv") << "mine";
  const auto here = std::filesystem::current_path();
  {
    std::filesystem::current_path(f.path);
    const auto m = nvme::open(ctx, {.capacity = 64_KiB, .path = "kv"});
    std::filesystem::current_path(other.path);
    CHECK(m);
  }
  std::filesystem::current_path(here);
  CHECK(contents(other / "kv") == "mine");
}

TEST_CASE("nvme: the file of another user is refused, and stays as it was") {
  context ctx;
  const folder f;
  std::ofstream(f / "kv") << "theirs";
  REQUIRE(::chmod((f / "kv").c_str(), 0666) == 0);
  if (!give_away(f / "kv")) return;
  for (const bool keep : {false, true}) {
    const auto m = nvme::open(ctx, {.capacity = 64_KiB, .path = f / "kv", .keep = keep});
    REQUIRE_FALSE(m);
    CHECK(m.error() == error{errc::invalid_argument, ""});
    CHECK(std::string(m.error().text) == "the file of an nvme tier belongs to another user");
  }
  CHECK(contents(f / "kv") == "theirs");
  CHECK(sandbox::mode_of(f / "kv") == 0666);
}

TEST_CASE("directory: a folder and an index that were there are made private") {
  context ctx;
  const folder f;
  const auto open = [&] { return directory::open(ctx, {.capacity = 1_MiB, .path = f.path, .keep = true}); };
  std::filesystem::create_directory(f / "kv-store");
  std::ofstream(f / "kv-store/index").close();
  for (int round = 0; round < 2; ++round) {  // a new store, and one that is there
    REQUIRE(::chmod((f / "kv-store").c_str(), 0777) == 0);
    REQUIRE(::chmod((f / "kv-store/index").c_str(), 0666) == 0);
    REQUIRE(open());
    CHECK(sandbox::mode_of(f / "kv-store") == 0700);
    CHECK(sandbox::mode_of(f / "kv-store/index") == 0600);
  }
}

TEST_CASE("directory: a folder, an index or a file of another user is refused") {
  context ctx;
  const folder f;
  const auto open = [&] { return directory::open(ctx, {.capacity = 1_MiB, .path = f.path, .keep = true}); };
  const auto refused = [&](const char* sentence) {
    const auto m = open();
    return !m && m.error() == error{errc::invalid_argument, ""} && std::string(m.error().text) == sentence;
  };
  std::string file;
  {
    auto m = open();
    REQUIRE(m);
    const auto e = (*m)->reserve(100);
    REQUIRE(ctx.sync_wait((*m)->write(*e, std::vector<std::byte>(100))));
    REQUIRE((*m)->label(*e, {.key = {1, 2}, .encoded = 100}));
    REQUIRE(ctx.sync_wait((*m)->sync()));
    file = (*m)->folder() + "/00000000";
  }
  if (!give_away(f / "kv-store")) return;
  REQUIRE(::chmod((f / "kv-store").c_str(), 0777) == 0);
  CHECK(refused("the folder kv-store of a directory tier belongs to another user"));
  CHECK(sandbox::mode_of(f / "kv-store") == 0777);
  REQUIRE(::chown((f / "kv-store").c_str(), ::geteuid(), static_cast<::gid_t>(-1)) == 0);

  REQUIRE(::chmod((f / "kv-store/index").c_str(), 0666) == 0);
  REQUIRE(give_away(f / "kv-store/index"));
  CHECK(refused("the index of a directory tier belongs to another user"));
  CHECK(sandbox::mode_of(f / "kv-store/index") == 0666);
  REQUIRE(::chown((f / "kv-store/index").c_str(), ::geteuid(), static_cast<::gid_t>(-1)) == 0);

  REQUIRE(give_away(file));
  auto m = open();
  REQUIRE(m);
  unsigned found = 0;
  (*m)->scan([&](extent, const extent_header&) { return ++found != 0; });
  CHECK(found == 0);  // its owner can write to it
}
