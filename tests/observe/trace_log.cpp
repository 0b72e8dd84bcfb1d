#include "terrace/observe/chrome_trace.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"

using namespace terrace;

namespace {

std::string text_of(const trace_log& log) {
  std::FILE* const file = std::tmpfile();
  REQUIRE(file != nullptr);
  REQUIRE(write_chrome_trace(log, file));
  std::string text(static_cast<std::size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  REQUIRE(std::fread(text.data(), 1, text.size(), file) == text.size());
  std::fclose(file);
  return text;
}

trace_span span_at(std::int64_t begin, std::int64_t end, trace_track track = trace_track::io,
                   std::uint32_t block = 0) {
  return {.name = "read", .begin = begin, .end = end, .bytes = 4096, .block = block, .track = track};
}

std::vector<nlohmann::json> complete_events(const trace_log& log) {
  const auto trace = nlohmann::json::parse(text_of(log));
  std::vector<nlohmann::json> found;
  for (const auto& event : trace.at("traceEvents"))
    if (event.at("ph") == "X") found.push_back(event);
  return found;
}

}  // namespace

TEST_CASE("an empty log is a valid trace") {
  const trace_log log(4);
  CHECK(complete_events(log).empty());
}

TEST_CASE("spans become complete events in microseconds from the first one on") {
  trace_log log(4);
  log.add(span_at(5'000'001'000, 5'000'003'500, trace_track::copy, 7));
  log.add(span_at(5'000'000'000, 5'000'000'001, trace_track::compute, 8));
  const auto events = complete_events(log);
  REQUIRE(events.size() == 2);
  CHECK(events[0].at("cat") == "compute");
  CHECK(events[0].at("ts") == 0.0);
  CHECK(events[0].at("dur") == 0.001);
  CHECK(events[1].at("cat") == "copy");
  CHECK(events[1].at("name") == "read");
  CHECK(events[1].at("ts") == 1.0);
  CHECK(events[1].at("dur") == 2.5);
  CHECK(events[1].at("args").at("block") == 7);
  CHECK(events[1].at("args").at("bytes") == 4096);
}

TEST_CASE("a lane never holds two spans at a time, and each lane has a name") {
  trace_log log(1000);
  std::uint64_t state = 1;
  for (int i = 0; i < 1000; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const auto begin = static_cast<std::int64_t>(state >> 50);
    log.add(span_at(begin, begin + static_cast<std::int64_t>((state >> 40) % 700),
                    static_cast<trace_track>((state >> 30) % 4)));
  }
  std::map<int, double> lane_end;
  std::set<int> lanes, named;
  double last = 0;
  for (const auto& event : complete_events(log)) {
    const int lane = event.at("tid");
    const double begin = event.at("ts"), end = begin + event.at("dur").get<double>();
    CHECK(begin >= last);
    last = begin;
    CHECK(begin >= lane_end[lane] - 1e-9);
    lane_end[lane] = end;
    lanes.insert(lane);
  }
  const auto trace = nlohmann::json::parse(text_of(log));
  for (const auto& event : trace.at("traceEvents"))
    if (event.at("name") == "thread_name") named.insert(event.at("tid").get<int>());
  CHECK(lanes.size() > 4);  // some did overlap
  CHECK(named == lanes);
}

TEST_CASE("a full log counts what it cannot keep") {
  trace_log log(3);
  for (int i = 0; i < 10; ++i) log.add(span_at(i, i + 1, trace_track::stall, static_cast<std::uint32_t>(i)));
  REQUIRE(log.spans().size() == 3);
  CHECK(log.spans().back().block == 2);
  CHECK(log.dropped() == 7);
  CHECK(nlohmann::json::parse(text_of(log)).at("otherData").at("dropped_spans") == "7");
}

TEST_CASE("threads write to one log, and nothing is lost or torn") {
  constexpr std::uint32_t each = 20'000, threads = 4;
  trace_log log(each * threads);
  std::vector<std::thread> writers;
  for (std::uint32_t t = 0; t < threads; ++t)
    writers.emplace_back([&log, t] {
      for (std::uint32_t i = 0; i < each; ++i) {
        const std::uint32_t n = t * each + i;
        log.add(span_at(n, n + 1, trace_track::copy, n));
      }
    });
  for (auto& writer : writers) writer.join();
  REQUIRE(log.spans().size() == each * threads);
  CHECK(log.dropped() == 0);
  std::vector<bool> seen(each * threads);
  bool whole = true;
  for (const trace_span& s : log.spans()) {
    whole = whole && s.begin == s.block && s.end == s.block + 1 && !seen[s.block];
    seen[s.block] = true;
  }
  CHECK(whole);
}

TEST_CASE("a file that cannot be written is said") {
  trace_log log(1000);
  for (int i = 0; i < 1000; ++i) log.add(span_at(i, i + 1));
  std::FILE* const full = std::fopen("/dev/full", "w");
  if (full == nullptr) return;
  const auto written = write_chrome_trace(log, full);
  std::fclose(full);
  REQUIRE_FALSE(written);
  CHECK(written.error().code == errc::io_error);
}

TEST_CASE("a cache records its reads, its codecs, its compute and its waiting, and stops when told to") {
  using ladder = tiered_cache<tier<ram>, tier<nvme, q8_0>, lru>;
  constexpr std::size_t block = pattern::block_bytes;
  context ctx;
  auto cache = ladder::open(ctx, pattern::layout(), {.capacity = 24 * block}, {.capacity = 256 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  trace_log log(10'000);

  const auto decode = [&] {
    auto token = s.reserve(1);
    REQUIRE(token);
    const auto heads = pattern::layout().groups[0].k.heads, dim = pattern::layout().groups[0].k.dim;
    const std::vector<float> query(heads * dim, 0.1f);
    std::vector<float> out(heads * dim);
    for (std::uint32_t layer = 0; layer < pattern::layout().layers(); ++layer) {
      for (std::uint32_t h = 0; h < heads; ++h) {
        std::ranges::fill(token->k(layer).row<fp16>(0, h), fp16{});
        std::ranges::fill(token->v(layer).row<fp16>(0, h), fp16{});
      }
      REQUIRE(ctx.sync_wait(stream(*cache, s, *token, layer, query, out)));
    }
    s.commit(std::move(*token), 1);
  };

  for (int i = 0; i < 40; ++i) REQUIRE(pattern::append(s, 16, 2, 1));
  CHECK(log.spans().empty());
  ctx.trace(&log);
  REQUIRE(pattern::append(s, 16, 2, 1));
  decode();
  REQUIRE(ctx.sync_wait(cache->flush()));
  ctx.trace(nullptr);
  decode();  // what was on its way may still be recorded
  const std::size_t recorded = log.spans().size();
  decode();
  CHECK(log.spans().size() == recorded);

  std::set<std::string> names;
  for (const trace_span& span : log.spans()) {
    names.insert(std::string(trace_track_names[static_cast<std::size_t>(span.track)]) + " " + span.name);
    CHECK(span.begin <= span.end);
    CHECK(span.bytes != 0);
    CHECK(span.block < cache->stats().blocks + 64);
  }
  CHECK(names == std::set<std::string>{"compute attend", "copy decode", "copy encode", "io read", "io write",
                                       "stall wait"});
}
