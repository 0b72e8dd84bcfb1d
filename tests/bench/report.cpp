#include "../../bench/report.hpp"

#include <unistd.h>

#include <fstream>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "catch.hpp"

namespace {

std::vector<double> up_to(int n) {
  std::vector<double> samples(static_cast<std::size_t>(n));
  std::iota(samples.rbegin(), samples.rend(), 1.0);
  return samples;
}

// What a report writes with --json.
struct written {
  written() { REQUIRE(::close(::mkstemp(path.data())) == 0); }
  ~written() { ::unlink(path.c_str()); }
  bench::report open(std::vector<std::string> arguments = {}) {
    arguments.insert(arguments.begin(), {"program", "--json", path});
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    return {"name", static_cast<int>(argv.size()), argv.data()};
  }
  std::string text() const {
    std::ostringstream all;
    all << std::ifstream(path).rdbuf();
    return all.str();
  }
  std::string path = "/tmp/terrace-report-XXXXXX";
};

}  // namespace

TEST_CASE("report: the lower end is the order statistic that the sign test gives") {
  // From tables of the binomial distribution with one half, 2.5% on each side.
  CHECK(bench::lower_end({7.0}) == 7);
  for (const auto& [n, k] :
       {std::pair(5, 1), {6, 1}, {7, 1}, {8, 1}, {9, 2}, {11, 2}, {12, 3}, {15, 4}, {17, 5}, {25, 8}}) {
    CAPTURE(n);
    CHECK(bench::lower_end(up_to(n)) == k);
  }
}

TEST_CASE("report: the median of an even number of samples lies between the two in the middle") {
  CHECK(bench::median({3, 1, 2}) == 2);
  CHECK(bench::median({4, 1, 2, 3}) == 2.5);
}

TEST_CASE("report: rounds alternate, the first is not counted, and the ratio is the higher the better") {
  written file;
  bench::report out = file.open({"--rounds", "7"});
  std::string order;
  double figure = 100, limit = 200;
  out.compare(
      {"larger", "GB/s", "memcpy"}, [&] { return order += 'f', figure -= 10; },
      [&] { return order += 'l', limit; });
  CHECK(order == "lffllffllffllffl");
  limit = 15;
  out.compare(
      {"smaller \"quoted\"", "s", "theirs", bench::better::smaller, 0.5}, [] { return 20.0; },
      [&] { return limit; });
  REQUIRE(out.finish() == 0);
  CHECK(file.text() ==
        "[\n{\"bench\": \"name\", \"case\": \"larger\", \"value\": 50, \"unit\": \"GB/s\", \"limit\": 200, "
        "\"limit_name\": \"memcpy\", \"ratio\": 0.1, \"goal\": null},\n{\"bench\": \"name\", "
        "\"case\": \"smaller \\\"quoted\\\"\", \"value\": 20, \"unit\": \"s\", \"limit\": 15, "
        "\"limit_name\": \"theirs\", \"ratio\": 0.75, \"goal\": 0.5}\n]\n");
}

TEST_CASE("report: --only leaves the other cases out, unmeasured") {
  written file;
  bench::report out = file.open({"--only", "b"});
  out.compare(
      {"a", "s", "theirs"}, []() -> double { throw 1; }, []() -> double { throw 1; });
  out.add({"a", "s", "theirs"}, 1, 1);
  out.add({"ab", "hits", "all"}, 1, 3);
  REQUIRE(out.finish() == 0);
  CHECK(file.text().find("\"a\"") == std::string::npos);
  CHECK(file.text().find("\"ratio\": 0.3333333333333333,") != std::string::npos);
}
