// What Terrace costs to compile: a translation unit that opens a cache of four tiers, and one that also attends over
// it; with headers only, with TERRACE_PREBUILT, and with precompiled headers as well. Each is compared with one that
// only includes terrace.hpp, for each compiler found at configuration. Seconds are CPU time, not wall-clock time, so
// that a busy machine changes them little; memory is the compiler's peak.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "report.hpp"
#include "scratch_path.hpp"

namespace {

constexpr std::string_view include_only = R"(
#include "terrace/terrace.hpp"
int main() {}
)";

// Opens a cache, writes and reads through it; with ATTEND, streams attention over it as well.
#define HEADERS_OF_FOUR_TIERS            \
  "#include <terrace/codec/chain.hpp>\n" \
  "#include <terrace/codec/q4_0.hpp>\n"  \
  "#include <terrace/codec/zstd.hpp>\n"  \
  "#include <terrace/medium/nvme.hpp>\n" \
  "#include <terrace/terrace.hpp>\n"
constexpr std::string_view headers_of_four_tiers = HEADERS_OF_FOUR_TIERS;
constexpr std::string_view four_tiers = HEADERS_OF_FOUR_TIERS R"(
using namespace terrace;
using kv_cache = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<nvme, chain<q4_0, zstd<>>>,
                              tier<directory, chain<q4_0, zstd<>>>, lru>;
int main() {
  context ctx{{.codec_threads = 1}};
  const kv_layout layout{{{.layers = 4, .tokens = 64, .k = {2, 64}, .v = {2, 64}}}};
  auto cache = kv_cache::open(ctx, layout, {.capacity = 1_MiB}, {.capacity = 1_MiB}, {.capacity = 8_MiB},
                              {.capacity = 8_MiB, .path = "cold"});
  if (!cache) return 1;
  auto sequence = cache->make_sequence();
  auto tokens = sequence.reserve(64);
  if (!tokens) return 1;
#if defined(ATTEND)
  std::vector<float> query(64 * 8 * 64), out(64 * 8 * 64);
  if (!ctx.sync_wait(stream(*cache, sequence, *tokens, 0, query, out))) return 1;
#endif
  sequence.commit(std::move(*tokens), 64);
  return ctx.sync_wait(cache->acquire(sequence.pages().rows[0])) ? 0 : 1;
}
)";

struct cost {
  double seconds = 0, mebibytes = 0;
};

// A folder that goes with this.
class scratch_folder {
 public:
  scratch_folder() : path_(bench::scratch_path("compile") + "-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr)
      throw std::runtime_error("a folder for the sources cannot be made");
  }
  scratch_folder(scratch_folder&&) = delete;
  ~scratch_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

// A source in a folder of its own, compiled with one command. Headers to precompile are precompiled here, the g++ way.
class compilation {
 public:
  compilation(std::vector<std::string> command, const std::vector<std::string>& flags,
              std::string_view extension, std::string_view source, std::string_view precompiled)
      : command_(std::move(command)) {
    const std::string file = write("unit." + std::string(extension), source);
    command_.insert(command_.end(), flags.begin(), flags.end());
    const std::vector<std::string> unit = command_;
    if (!precompiled.empty()) {
      const std::string header = write("headers.hpp", precompiled);
      command_.insert(command_.end(), {"-x", "c++-header", header, "-o", header + ".gch"});
      run();
      command_ = unit;
      command_.insert(command_.end(), {"-include", header});
    }
    command_.insert(command_.end(), {"-c", file, "-o", folder_.path() + "/unit.o"});
  }

  cost run() const {
    const ::pid_t child = ::fork();
    if (child == 0) {
      std::vector<char*> arguments;
      for (const std::string& a : command_) arguments.push_back(const_cast<char*>(a.c_str()));
      arguments.push_back(nullptr);
      ::execvp(arguments[0], arguments.data());
      ::_exit(127);
    }
    int status = 0;
    ::rusage used{};  // of the compiler and all that it started
    if (child < 0 || ::wait4(child, &status, 0, &used) != child || status != 0)
      throw std::runtime_error("does not compile with " + command_[0]);
    const auto seconds_of = [](const ::timeval& t) {
      return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
    };
    return {.seconds = seconds_of(used.ru_utime) + seconds_of(used.ru_stime),
            .mebibytes = static_cast<double>(used.ru_maxrss) / 1024};
  }

 private:
  std::string write(const std::string& name, std::string_view text) const {
    std::string path = folder_.path() + "/" + name;
    std::FILE* const file = std::fopen(path.c_str(), "w");
    if (file == nullptr || std::fwrite(text.data(), 1, text.size(), file) != text.size() ||
        std::fclose(file) != 0)
      throw std::runtime_error("a source cannot be written");
    return path;
  }
  scratch_folder folder_;
  std::vector<std::string> command_;
};

// Compiles the units in turn. Each after the first gets rows, compared with the first.
struct unit {
  std::string name;
  std::string_view source;
  std::vector<std::string> flags = {};
  std::optional<double> promised = {};  // seconds
  std::string_view precompiled = {};    // headers
};
void measure(bench::report& out, const std::string& compiler, const std::vector<std::string>& command,
             std::string_view extension, const std::vector<unit>& units) {
  if (std::none_of(units.begin() + 1, units.end(),
                   [&](const unit& u) { return out.wanted(compiler + ", " + u.name); }))
    return;
  std::vector<std::unique_ptr<compilation>> compilations;
  for (const unit& u : units)
    compilations.push_back(
        std::make_unique<compilation>(command, u.flags, extension, u.source, u.precompiled));
  std::vector<std::vector<double>> seconds(units.size()), memory(units.size());
  const int rounds = std::min(out.rounds(), 7);  // each takes most of a minute
  for (int round = 0; round < rounds; ++round)
    for (std::size_t u = 0; u < units.size(); ++u) {
      const cost c = compilations[u]->run();
      seconds[u].push_back(c.seconds);
      memory[u].push_back(c.mebibytes);
    }
  using bench::better;
  for (std::size_t u = 1; u < units.size(); ++u) {
    const std::string name = compiler + ", " + units[u].name;
    if (units[u].promised)
      out.add({name, "s", "promised", better::smaller, 1.0}, seconds[u],
              std::vector<double>(seconds[u].size(), *units[u].promised));
    out.add({name, "s", units[0].name, better::smaller}, seconds[u], seconds[0]);
    out.add({name + ", memory", "MiB", units[0].name, better::smaller}, memory[u], memory[0]);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  bench::report out("compile_time", argc, argv);
  ::setenv("CCACHE_DISABLE", "1", 1);  // in case the compiler is a link to it
  const std::vector<std::string> flags{"-std=c++20", "-O2", "-DNDEBUG", "-I" TERRACE_INCLUDE_FOLDER};
  const auto with = [&](const char* compiler, std::vector<std::string> more = {}) {
    more.insert(more.begin(), compiler);
    more.insert(more.end(), flags.begin(), flags.end());
    return more;
  };
  const unit bare{"include alone", include_only}, opened{"four tiers", four_tiers};
  const unit attended{"four tiers, attention", four_tiers, {"-DATTEND"}};
  const unit prebuilt{"four tiers, prebuilt", four_tiers, {"-DTERRACE_PREBUILT"}};
  const unit attended_prebuilt{
      "four tiers, attention, prebuilt", four_tiers, {"-DATTEND", "-DTERRACE_PREBUILT"}};
  std::vector<unit> units{bare, opened, prebuilt, attended, attended_prebuilt};
  if (TERRACE_CXX_IS_GNU)
    units.push_back({"four tiers, prebuilt, headers precompiled",
                     four_tiers,
                     {"-DTERRACE_PREBUILT"},
                     3.0,
                     headers_of_four_tiers});
  measure(out, TERRACE_CXX_NAME, with(TERRACE_CXX), "cpp", units);
#if defined(TERRACE_CLANG)
  measure(out, "clang++", with(TERRACE_CLANG), "cpp", {bare, opened, prebuilt});
#endif
#if defined(TERRACE_NVCC)
  measure(out, "nvcc", with(TERRACE_NVCC, {"--extended-lambda", "--expt-relaxed-constexpr", "-w"}), "cu",
          {bare, opened});
#endif
  return out.finish();
} catch (const std::exception& e) {
  std::fprintf(stderr, "compile_time: %s\n", e.what());
  return 1;
}
