#include "terrace/execution/memory_pressure.hpp"

#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/sync_wait.hpp"

using terrace::available_memory;
using terrace::context;
using terrace::errc;
using terrace::memory_pressure;
using terrace::memory_readings;
using level = memory_pressure::level;

namespace {

constexpr auto forever = context::clock::time_point::max();

// A system that says what a test wants, below a folder of its own.
struct fake_system {
  fake_system() : root((std::filesystem::temp_directory_path() / "terrace-test-XXXXXX").string()) {
    REQUIRE(::mkdtemp(root.data()) != nullptr);
  }
  fake_system(const fake_system&) = delete;
  ~fake_system() { std::filesystem::remove_all(root); }
  std::string path(const std::string& name) const {
    std::filesystem::create_directories(std::filesystem::path(root + name).parent_path());
    return root + name;
  }
  void file(const std::string& name, const std::string& text) const { std::ofstream(path(name)) << text; }
  void machine(int available_of_1000) const {
    file("/proc/meminfo", "MemTotal:         1000 kB\nMemFree:            1 kB\nMemAvailable:     " +
                              std::to_string(available_of_1000) + " kB\n");
  }
  std::string root;
};

// poll() reports POLLPRI on one end once a byte out of band was sent to the other, until it is taken.
struct urgent {
  urgent() {
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) ends[0] = ends[1] = -1;
  }
  urgent(const urgent&) = delete;
  ~urgent() { ::close(ends[1]); }
  bool raise() const { return ::send(ends[1], "!", 1, MSG_OOB) == 1; }
  void take() const {
    char byte = 0;
    CHECK(::recv(ends[0], &byte, 1, MSG_OOB) == 1);
  }
  int ends[2];
};

}  // namespace

TEST_CASE("what is available is the machine's, where no control group has less") {
  const fake_system system;
  const memory_readings readings(system.root);
  CHECK(readings.read().error().code == errc::unavailable);
  system.machine(250);
  auto m = readings.read();
  REQUIRE(m);
  CHECK(m->bytes == 250 * 1024);
  CHECK(m->total == 1000 * 1024);
  CHECK(m->share() == 0.25);

  system.file("/proc/self/cgroup", "0::/a/b\n");
  system.file("/sys/fs/cgroup/a/b/memory.current", "900\n");
  system.file("/sys/fs/cgroup/a/b/memory.max", "max\n");
  CHECK(readings.read()->total == 1000 * 1024);  // no limit
  system.file("/sys/fs/cgroup/a/b/memory.max", "1000\n");
  CHECK(readings.read()->bytes == 100);
  system.file("/sys/fs/cgroup/a/b/memory.high", "950\n");
  CHECK(readings.read()->bytes == 50);
  system.file("/sys/fs/cgroup/a/b/memory.stat", "anon 1\ninactive_file 300\nactive_file 2\n");
  CHECK(readings.read()->bytes == 250 * 1024);  // the group has 350 of 950: the machine is scarcer
  system.machine(900);
  CHECK(readings.read()->bytes == 350);
  system.file("/sys/fs/cgroup/a/b/memory.current", "2000\n");
  CHECK(readings.read()->bytes == 0);
}

TEST_CASE("control groups of version 1, and those of a container, whose paths are the host's") {
  const fake_system system;
  system.machine(900);
  system.file("/proc/self/cgroup", "9:name=systemd:/\n5:cpu,memory:/docker/0123\n0::/\n");
  const memory_readings readings(system.root);
  CHECK(readings.read()->bytes == 900 * 1024);
  system.file("/sys/fs/cgroup/memory/memory.usage_in_bytes", "75\n");
  system.file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  CHECK(readings.read()->bytes == 900 * 1024);
  system.file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "100\n");
  system.file("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 25\n");
  CHECK(readings.read()->bytes == 50);
  CHECK(readings.read()->total == 100);
}

TEST_CASE("hostile files are no readings, and end nothing") {
  const fake_system system;
  for (const char* text :
       {"", "\n\n", "MemTotal:", "MemTotal: x\nMemAvailable: y\n", "MemAvailable: 5 kB\n"}) {
    system.file("/proc/meminfo", text);
    CHECK_FALSE(memory_readings(system.root).read());
  }
  system.machine(500);
  for (const char* text : {"", ":", "::", "0::", "0:memory", "\n:\n0::\n", "0::/../../x"}) {
    system.file("/proc/self/cgroup", text);
    CHECK(memory_readings(system.root).read()->bytes == 500 * 1024);
  }
}

TEST_CASE("without triggers readings are judged, only while the context is polled") {
  const fake_system system;
  system.machine(500);
  context ctx;
  std::vector<level> seen;
  auto watch = memory_pressure::open(ctx, [&](level how) { seen.push_back(how); },
                                     {.root = system.root, .interval = std::chrono::milliseconds(0)});
  REQUIRE(watch);
  CHECK_FALSE((*watch)->uses_triggers());
  CHECK(ctx.poll() == 0);
  system.machine(99);
  CHECK(seen.empty());
  CHECK(ctx.poll() == 1);
  system.machine(49);
  ctx.poll();
  system.machine(100);
  ctx.poll();
  CHECK(seen == std::vector{level::some, level::full});
  CHECK(ctx.idle());
  watch->reset();
  system.machine(1);
  CHECK(ctx.poll() == 0);
}

TEST_CASE("readings are not taken more often than the interval says") {
  context ctx;
  int asked = 0;
  auto watch = memory_pressure::open(ctx, [](level) {},
                                     {.reading = [&]() -> std::optional<level> {
                                        ++asked;
                                        return {};
                                      },
                                      .interval = std::chrono::hours(1)});
  REQUIRE(watch);
  for (int i = 0; i < 100; ++i) ctx.poll();
  CHECK(asked == 1);
}

TEST_CASE("a system that shows nothing is said to be unavailable") {
  const fake_system system;
  context ctx;
  const auto watch = memory_pressure::open(ctx, [](level) {}, {.root = system.root});
  REQUIRE_FALSE(watch);
  CHECK(watch.error().code == errc::unavailable);
  CHECK(std::string(watch.error().text) == "the kernel does not say how much memory is available");
}

TEST_CASE("triggers are asked for in the kernel's words") {
  const fake_system system;
  system.file("/proc/self/cgroup", "0::/a\n");
  std::vector<std::string> said;
  context ctx;
  for (const char* name : {"/proc/pressure/memory", "/sys/fs/cgroup/a/memory.pressure"}) {
    REQUIRE(::mkfifo(system.path(name).c_str(), 0600) == 0);
    auto watch = memory_pressure::open(ctx, [](level) {}, {.root = system.root});
    REQUIRE(watch);
    CHECK((*watch)->uses_triggers());
    std::ifstream pipe(system.path(name), std::ios::binary);
    std::string text(40, '?');
    pipe.read(text.data(), static_cast<std::streamsize>(text.size()));
    CHECK(text == std::string("some 150000 1000000\0full 100000 1000000\0", 40));
    watch->reset();
    std::filesystem::remove(system.path(name));
  }
}

TEST_CASE("a trigger wakes the owner, which gets the worst level") {
  const urgent some, full;
  context ctx;
  std::vector<level> seen;
  bool on_owner = true;
  if (!some.raise()) {
    WARN("skipped: sockets have no urgent data here");
    return;
  }
  auto watch =
      memory_pressure::open(ctx,
                            [&](level how) {
                              on_owner = on_owner && ctx.on_owner_thread();
                              (how == level::full ? full : some).take();
                              seen.push_back(how);
                            },
                            {.triggers = {{some.ends[0], level::some}, {full.ends[0], level::full}}});
  REQUIRE(watch);
  CHECK((*watch)->uses_triggers());
  while (seen.empty()) REQUIRE(ctx.wait(forever));
  REQUIRE(full.raise());
  while (seen.size() < 2) REQUIRE(ctx.wait(forever));
  CHECK(seen == std::vector{level::some, level::full});
  CHECK(on_owner);
  CHECK(ctx.idle());
}

TEST_CASE("a watch ends at any time, with a report on its way or not") {
  for (int round = 0; round < 50; ++round) {
    const urgent trigger;
    context ctx;
    int seen = 0;
    if (!trigger.raise()) return;
    auto watch =
        memory_pressure::open(ctx, [&](level) { ++seen; }, {.triggers = {{trigger.ends[0], level::some}}});
    REQUIRE(watch);
    if (round % 3 == 1) ctx.poll();
    if (round % 3 == 2) REQUIRE(ctx.wait(forever));
    watch->reset();
    const int before = seen;
    while (ctx.poll() != 0) {
    }
    CHECK(seen == before);
    CHECK((round % 3 != 2 || seen > 0));
  }
}

TEST_CASE("this system can be watched, by triggers or by readings") {
  context ctx;
  auto watch = memory_pressure::open(ctx, [](level) {});
  if (!watch) CHECK(watch.error().code == errc::unavailable);
  ctx.poll();
}
