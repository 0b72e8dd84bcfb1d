// Which policy hits what: replays a trace of requests, or a generated workload, through the cache's policies, in
// tiers of given sizes that store nothing. The path of an access: replay.hpp > terrace/cache/tier_control.hpp >
// terrace/policy.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "load.hpp"
#include "report.hpp"

namespace {

using namespace replay;

result run_one(const trace& t, const std::string& name, const std::vector<std::size_t>& capacities) {
  if (name == belady_name) return run_belady(t, capacities);
  const auto is = [&](const known_policy& p) { return p.name == name; };
  return run(t, name, std::find_if(policies.begin(), policies.end(), is)->open(capacities));
}

outcome<void> write_json(const std::string& path, const nlohmann::ordered_json& value) {
  const std::string text = value.dump(2) + "\n";
  if (path == "-") {
    std::cout << text << std::flush;
    return {};
  }
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text << std::flush;
  if (!file) return refuse("--json cannot be written: " + path, 1);
  return {};
}

outcome<void> work(const command_line& c) {
  auto wanted = job_of(c);
  if (!wanted) return terrace::failure<refusal>{wanted.error()};
  outcome<trace> t = c.generate.empty() ? load(c.trace) : generate(c.generate, c.requests, c.seed);
  if (!t) return terrace::failure<refusal>{t.error()};

  std::FILE* const table = c.json == "-" ? stderr : stdout;
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  std::fprintf(table, "%zu requests, %zu accesses, %zu blocks\n", t->requests(), t->accesses(),
               t->distinct());
  print_head(table, *wanted);
  for (const std::vector<std::size_t>& capacities : wanted->runs)
    for (const std::string& name : wanted->policies) {
      if (terminal) std::fprintf(stderr, "%s ...", name.c_str());
      const result r = run_one(*t, name, capacities);
      if (terminal) std::fputs("\r\033[K", stderr);
      print(table, r, *wanted);
      all.push_back(to_json(r, *wanted));
    }
  return c.json.empty() ? outcome<void>() : write_json(c.json, all);
}

}  // namespace

int main(int argc, char** argv) {
  command_line c;
  CLI::App app("Replays block accesses through the cache's policies, and says what each of them hits.");
  declare(app, c);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    std::cerr << "trace_replay: " << e.what() << '\n';
    return 2;
  }
  const auto done = work(c);
  if (done) return 0;
  std::cerr << "trace_replay: " << done.error().sentence << '\n';
  return done.error().exit_code;
}
