#pragma once
// What all benches share: rounds in which a figure and its limit alternate, an interval of their ratio, a table, and
// the JSON that bench/run gathers.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace bench {

/// Which of two figures is the better one.
enum class better { larger, smaller };

/// How long `work` takes.
template <class Work>
double seconds(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What a line of the table is about, known before anything is measured.
struct subject {
  std::string name;        ///< the case
  std::string unit;        ///< of the figure and of its limit
  std::string limit_name;  ///< what bounds the figure
  better direction = better::larger;
  std::optional<double> goal = {};  ///< what the ratio should reach, where something was promised
};

/// The middle of the samples. Precondition: there are some. O(n log n).
inline double median(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const std::size_t half = samples.size() / 2;
  return samples.size() % 2 != 0 ? samples[half] : (samples[half - 1] + samples[half]) / 2;
}

/// The lower end of the two-sided 95% confidence interval of the median: the k-th smallest sample, with the largest k
/// for which at most 2.5% of all sets of n samples have fewer than k below the median (the sign test: binomial with
/// one half). It supposes no distribution, which suits a shared machine. With 7 or 8 samples it is the smallest, with
/// 9 to 11 the second. Fewer than 6 have no such interval; the smallest stands in. O(n log n).
inline double lower_end(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const auto n = static_cast<double>(samples.size());
  std::size_t k = 0;
  double probability = std::pow(0.5, n), below = probability;  // of fewer than k + 1 below the median
  while (below <= 0.025 && k < samples.size()) {
    ++k;
    probability *= (n - static_cast<double>(k) + 1) / static_cast<double>(k);
    below += probability;
  }
  return samples[k == 0 ? 0 : k - 1];
}

/// The table of one bench and its JSON. Every bench takes
///
///     --json FILE    write the rows as JSON; - is standard output, and then the table goes to standard error
///     --rounds N     rounds of each comparison, 9 by default
///     --only TEXT    only cases with that text in their names
///
/// and is written like this:
///
///     bench::report out("copy", argc, argv);
///     out.compare({"copy 64 MiB", "GB/s", "memcpy"}, [&] { return our_rate(); }, [&] { return memcpy_rate(); });
///     return out.finish();
class report {
 public:
  /// Bad arguments end the program with one sentence and status 2.
  report(std::string_view bench, int argc, char** argv) : bench_(bench) {
    for (int i = 1; i < argc; ++i) {
      const std::string_view option = argv[i];
      const bool known = option == "--json" || option == "--rounds" || option == "--only";
      if (!known)
        refuse("there is no option '" + std::string(option) + "'; there are --json, --rounds and --only");
      if (i + 1 == argc) refuse(std::string(option) + " needs a value");
      const std::string_view value = argv[++i];
      if (option == "--json") json_ = value;
      if (option == "--only") only_ = value;
      if (option == "--rounds") {
        const auto [end, wrong] = std::from_chars(value.data(), value.data() + value.size(), rounds_);
        if (wrong != std::errc{} || end != value.data() + value.size() || rounds_ < 1)
          refuse("--rounds needs a number of at least 1");
      }
    }
    table_ = json_ == "-" ? stderr : stdout;
    std::fprintf(table_, "%s\n  %-38s %12s %12s  %-22s %6s\n", bench_.c_str(), "case", "figure", "limit", "",
                 "ratio");
  }

  int rounds() const noexcept { return rounds_; }
  /// Whether --only keeps the case. `compare` and `add` check that themselves; asking first saves the work before
  /// them.
  bool wanted(std::string_view name) const noexcept { return name.find(only_) != std::string_view::npos; }

  /// Measures a figure beside its limit: both functions return one sample, in the subject's unit. Each round takes
  /// one sample of both, and rounds alternate which comes first, so that a drift of the machine meets both alike; the
  /// first round is not counted. The row has the medians, and the lower end of the interval of the rounds' ratios.
  template <class Figure, class Limit>
  void compare(const subject& about, Figure&& figure, Limit&& limit) {
    if (!wanted(about.name)) return;
    std::vector<double> figures, limits;
    for (int round = -1; round < rounds_; ++round) {
      double x = 0, bound = 0;
      if (round % 2 == 0) x = figure();
      bound = limit();
      if (round % 2 != 0) x = figure();
      if (round < 0) continue;
      figures.push_back(x);
      limits.push_back(bound);
    }
    add(about, figures, limits);
  }

  /// A row of samples taken elsewhere: a figure and its limit for each round.
  void add(const subject& about, const std::vector<double>& figures, const std::vector<double>& limits) {
    if (!wanted(about.name)) return;
    std::vector<double> ratios;
    for (std::size_t i = 0; i < figures.size(); ++i) ratios.push_back(ratio(about, figures[i], limits[i]));
    put({about, median(figures), median(limits), lower_end(ratios)});
  }

  /// A row for a figure without noise, such as a count.
  void add(const subject& about, double figure, double limit) {
    if (!wanted(about.name)) return;
    put({about, figure, limit, ratio(about, figure, limit)});
  }

  /// A line of text between the rows.
  void note(const std::string& line) const { std::fprintf(table_, "  %s\n", line.c_str()); }

  /// Writes the JSON if it was asked for. Returns the exit status of the program.
  int finish() const {
    if (json_.empty()) return 0;
    std::FILE* const file = json_ == "-" ? stdout : std::fopen(json_.c_str(), "w");
    if (file == nullptr) return complain();
    // One row per line: bench/run puts the rows of all benches together.
    std::fputs("[", file);
    for (const row& r : rows_) std::fprintf(file, "%s\n%s", &r == &rows_.front() ? "" : ",", json(r).c_str());
    std::fputs("\n]\n", file);
    const bool written = std::fflush(file) == 0 && std::ferror(file) == 0;
    if (file != stdout && (std::fclose(file) != 0 || !written)) return complain();
    return written ? 0 : complain();
  }

 private:
  struct row {
    subject about;
    double figure, limit, ratio;
  };

  [[noreturn]] void refuse(const std::string& why) const {
    std::fprintf(stderr, "%s: %s\n", bench_.c_str(), why.c_str());
    std::exit(2);
  }
  int complain() const {
    std::fprintf(stderr, "%s: %s cannot be written\n", bench_.c_str(), json_.c_str());
    return 1;
  }

  static double ratio(const subject& about, double figure, double limit) {
    return about.direction == better::larger ? figure / limit : limit / figure;
  }
  void put(row r) {
    const subject& s = r.about;
    std::fprintf(table_, "  %-38s %12.4g %12.4g  %-22s %6.3f%s\n", s.name.c_str(), r.figure, r.limit,
                 (s.unit + ", " + s.limit_name).c_str(), r.ratio, verdict(r));
    std::fflush(table_);
    rows_.push_back(std::move(r));
  }
  static const char* verdict(const row& r) {
    if (!r.about.goal) return "";
    return r.ratio >= *r.about.goal ? "  (goal reached)" : "  (goal not reached)";
  }

  std::string json(const row& r) const {
    const subject& s = r.about;
    return "{\"bench\": " + quoted(bench_) + ", \"case\": " + quoted(s.name) +
           ", \"value\": " + number(r.figure) + ", \"unit\": " + quoted(s.unit) +
           ", \"limit\": " + number(r.limit) + ", \"limit_name\": " + quoted(s.limit_name) +
           ", \"ratio\": " + number(r.ratio) + ", \"goal\": " + (s.goal ? number(*s.goal) : "null") + "}";
  }
  // The shortest text that reads back as the same number.
  static std::string number(double x) {
    if (!std::isfinite(x)) return "null";
    char text[32];
    return {text, std::to_chars(text, text + sizeof text, x).ptr};
  }
  static std::string quoted(std::string_view text) {
    std::string out = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') out += '\\';
      out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return out + "\"";
  }

  std::string bench_, json_, only_;
  int rounds_ = 9;
  std::FILE* table_ = stdout;
  std::vector<row> rows_;
};

}  // namespace bench
