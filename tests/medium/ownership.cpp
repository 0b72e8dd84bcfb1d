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
  context ctx;
  const folder f;
  const auto first = nvme::open(ctx, {.capacity = 64_KiB, .path = f / "kv"});
  REQUIRE(first);
  const ::pid_t child = ::fork();
  if (child == 0) {
    // A descriptor that was inherited would share the lock, so the file is opened anew.
    context own;
    const auto second = nvme::open(own, {.capacity = 64_KiB, .path = f / "kv"});
    ::_exit(second ? 1 : second.error().code == errc::unavailable ? 0 : 2);
  }
  REQUIRE(child > 0);
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
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
