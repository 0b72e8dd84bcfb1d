#include "examples/workplace.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>

#include "catch.hpp"
#include "terrace/core/bytes.hpp"

using nlohmann::json;
using namespace std::chrono_literals;
using terrace::operator""_MiB;

namespace {

// What is wrong with the input: exit 2.
void check_refused(const workplace::outcome& o, const std::string& says) {
  check_refused(o, "attention_runner", 2, says);
}

const std::string small_shape = "--shape 4,8,2,64 --context 8192 --decode 3 --hot 2MiB --warm 4MiB --json - ";

}  // namespace

TEST_CASE("a shape on each ladder: within its budget, and as right as its codecs are") {
  const workplace here;
  const auto [codec, bound] =
      GENERATE(table<std::string, double>({{"lossless", 1e-5}, {"q8", 2e-2}, {"q4", 0.2}}));
  CAPTURE(codec);
  const auto ran = here.run(small_shape + "--cool 6MiB --cold 20MiB --cold-path cold --codec " + codec);
  CAPTURE(ran.err);
  REQUIRE(ran.status == 0);
  const json j = ran.value();
  CHECK(j.at("codec") == codec);
  CHECK(j.at("context_tokens") == 8192);
  CHECK(j.at("decode_tokens") == 3);
  CHECK(j.at("kv_bytes_total") == 8195 * 512 * 4);
  CHECK(j.at("hot_bytes_budget") == 2_MiB);
  CHECK(j.at("hot_bytes_peak").get<std::size_t>() <= 2_MiB);
  CHECK(j.at("hot_bytes_peak").get<std::size_t>() > 1_MiB);
  CHECK(j.at("error").at("rel_l2").get<double>() < bound);
  CHECK(j.at("error").at("rel_l2").get<double>() > 0);
  CHECK(j.at("error").at("max_abs").get<double>() > 0);
  for (const char* positive : {"tokens_per_s", "wall_s", "compute_s", "copy_s", "compute_bytes_per_s"})
    CHECK(j.at(positive).get<double>() > 0);
  CHECK(j.at("stall_s").get<double>() >= 0);
  CHECK(j.at("copy_hidden").get<double>() <= 1);
  CHECK(j.at("overlap_ratio").is_number());
  CHECK(j.at("latency_ms").at("p50").get<double>() <= j.at("latency_ms").at("p99").get<double>());
  CHECK(j.at("latency_ms").at("p95").get<double>() > 0);
  CHECK(j.at("misses").get<int>() > 0);
  CHECK(j.at("dropped") == 0);
  CHECK(j.at("recomputed_blocks") == 0);
  for (const char* count : {"issued", "used", "wasted", "late"})
    CHECK(j.at("prefetch").at(count).is_number());

  REQUIRE(j.at("tiers").size() == 4);
  const char* const names[]{"hot", "warm", "cool", "cold"};
  const char* const media[]{"ram", "ram", "nvme", "directory"};
  std::size_t resident = 0;
  for (std::size_t t = 0; t < 4; ++t) {
    const json& tier = j.at("tiers")[t];
    CHECK(tier.at("name") == names[t]);
    CHECK(tier.at("medium") == media[t]);
    CHECK(tier.at("lost") == 0);
    CHECK(tier.at("resident_bytes").get<std::size_t>() <= tier.at("capacity_bytes").get<std::size_t>());
    if (t != 0) resident += tier.at("resident_bytes").get<std::size_t>();
    for (const char* count : {"hits", "loads", "stores", "bytes_read", "bytes_written"})
      CHECK(tier.at(count).is_number_unsigned());
  }
  CHECK(resident > 3_MiB);
  if (codec != "q4")
    CHECK(j.at("tiers")[3].at("loads").get<int>() > 0);  // q4 needs no more than the cool one
  CHECK_FALSE(std::filesystem::exists(here.folder / "cold"));
}

TEST_CASE("capacity 0 leaves a tier out, and a given file is made and removed") {
  const workplace here;
  const auto ran =
      here.run("--shape 4,8,2,64 --context 8192 --decode 3 --hot 2MiB --warm 0 --cool-path kv.bin --json -");
  REQUIRE(ran.status == 0);
  const json j = ran.value();
  REQUIRE(j.at("tiers").size() == 2);
  CHECK(j.at("tiers")[0].at("name") == "hot");
  CHECK(j.at("tiers")[1].at("name") == "cool");
  CHECK(j.at("error").at("rel_l2").get<double>() < 1e-5);
  CHECK_FALSE(std::filesystem::exists(here.folder / "kv.bin"));
}

TEST_CASE("a signal ends a run between two steps, and its files go with it") {
  const workplace here;
  std::filesystem::create_directory(here.folder / "temporary");
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::filesystem::current_path(here.folder);
    ::setenv("TMPDIR", (here.folder / "temporary").c_str(), 1);
    for (const auto& [path, descriptor] : {std::pair{"out", 1}, {"err", 2}})
      ::dup2(::open(path, O_WRONLY | O_CREAT, 0600), descriptor);
    ::execl(TERRACE_RUNNER, TERRACE_RUNNER, "--shape", "4,8,2,64", "--context", "65536", "--decode", "100000",
            "--hot", "4MiB", "--warm", "0", "--cool-path", "kv.bin", "--cold", "60MiB", nullptr);
    ::_exit(127);
  }
  while (!std::filesystem::exists(here.folder / "kv.bin")) std::this_thread::sleep_for(5ms);
  std::this_thread::sleep_for(50ms);  // somewhere in the prefill, or after it
  REQUIRE(::kill(child, SIGINT) == 0);
  int ended = 0;
  REQUIRE(::waitpid(child, &ended, 0) == child);
  CHECK(WIFEXITED(ended));
  CHECK(WEXITSTATUS(ended) == 1);
  CHECK(contents(here.folder / "err").find("a signal has ended the run") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(here.folder / "kv.bin"));
  CHECK(std::filesystem::is_empty(here.folder / "temporary"));
}

TEST_CASE("several sequences share their context, and each is right") {
  const workplace here;
  const auto ran = here.run(small_shape + "--batch 3");
  REQUIRE(ran.status == 0);
  const json j = ran.value();
  CHECK(j.at("batch") == 3);
  CHECK(j.at("kv_bytes_total") == (8192 + 3 * 3) * 512 * 4);
  CHECK(j.at("error").at("rel_l2").get<double>() < 1e-5);

  // Their context is brought once for all of them.
  const auto loads = [](const json& of) {
    std::uint64_t sum = 0;
    for (const json& tier : of.at("tiers")) sum += tier.at("loads").get<std::uint64_t>();
    return sum;
  };
  const auto alone = here.run(small_shape);
  REQUIRE(alone.status == 0);
  CHECK(loads(alone.value()) > 0);
  CHECK(2 * loads(j) < 3 * loads(alone.value()));
}

TEST_CASE("the least hot tier that is named in the refusal suffices") {
  const workplace here;
  const std::string codec = GENERATE("lossless", "q8", "q4");
  const std::string job = "--shape 4,8,2,64 --context 2048 --decode 2 --json - --codec " + codec + " --hot ";
  const auto refused = here.run(job + "4KiB");
  check_refused(refused, "suffice");
  const std::size_t at = refused.err.find(": ", refused.err.find("--hot")) + 2;
  const std::string least = refused.err.substr(at, refused.err.find(" suffice") - at);
  CAPTURE(least);
  const auto ran = here.run(job + least);
  CAPTURE(ran.err);
  REQUIRE(ran.status == 0);
  CHECK(ran.value().at("hot_bytes_peak") <= ran.value().at("hot_bytes_budget"));
}

TEST_CASE("a model's answers do not depend on where its KV was") {
  const workplace here;
  const auto ran = here.run(
      "--codec lossless --baseline --control --context 1024 --decode 8 --hot 1MiB --json - --trace t.json");
  CAPTURE(ran.err);
  REQUIRE(ran.status == 0);
  const json j = ran.value();
  CHECK(j.at("error").at("max_abs") == 0);
  CHECK(j.at("baseline").at("identical_tokens") == true);
  CHECK(j.at("baseline").at("bits_per_byte") == j.at("bits_per_byte"));
  CHECK(j.at("baseline").at("generated") == j.at("generated"));
  CHECK(j.at("bits_per_byte").get<double>() > 1);
  CHECK(j.at("bits_per_byte").get<double>() < 4);
  CHECK(j.at("generated").get<std::string>().size() == 8);
  CHECK(j.at("control").at("window_tokens").get<int>() > 0);
  CHECK(j.at("control").at("bits_per_byte") != j.at("bits_per_byte"));

  const json trace = json::parse(contents(here.folder / "t.json"));
  std::map<std::string, int> spans;
  for (const json& event : trace.at("traceEvents"))
    if (event.at("ph") == "X") ++spans[event.at("cat").get<std::string>()];
  CHECK(spans["compute"] >= 8 * 4);
  CHECK(spans["io"] > 0);
}

TEST_CASE("a selection of everything gives the bits of dense attention; a small one says what it costs") {
  const workplace here;
  const auto run = [&](const std::string& attend) {
    const auto ran = here.run(
        "--codec lossless --baseline --context 1024 --decode 8 --hot 7MiB --json - "
        "--attend " +
        attend);
    CAPTURE(attend, ran.err);
    REQUIRE(ran.status == 0);
    const json j = ran.value();
    CHECK(j.at("attend").at("mode") == attend);
    // A box of 64 channels, a radius and a count for each of 2 heads and 20 blocks of 4 layers.
    CHECK(j.at("attend").at("summary_bytes") == 20 * 4 * 2 * (64 * 8 + 8));
    CHECK(j.at("attend").at("error_against_dense").at("attentions_compared") == 4096 / 64 * 4);
    CHECK(ran.err.find("blocks read") != std::string::npos);
    return j;
  };
  const json all = run("top-k=1000");
  CHECK(all.at("attend").at("share_read") == 1);
  CHECK(all.at("attend").at("error_against_dense").at("max_abs") == 0);
  CHECK(all.at("error").at("max_abs") == 0);
  CHECK(all.at("bits_per_byte") == all.at("baseline").at("bits_per_byte"));
  CHECK(all.at("generated") == all.at("baseline").at("generated"));

  const json some = run("top-k=4");
  const auto read = some.at("attend").at("blocks_read").get<double>();
  // Each step of each layer reads between one head's choice and four heads', while there are so many.
  CHECK(read >= 4 * 4 * 4096);
  CHECK(read <= 4 * (1 + 4 * 3) * 4104);
  CHECK(some.at("attend").at("blocks_there") == all.at("attend").at("blocks_there"));
  CHECK(some.at("attend").at("error_against_dense").at("rel_l2").get<double>() > 0);
  CHECK(some.at("attend").at("error_against_dense").at("rel_l2").get<double>() < 0.5);
  CHECK(some.at("bits_per_byte") != some.at("baseline").at("bits_per_byte"));
  CHECK(some.at("misses").get<int>() < all.at("misses").get<int>());
}

TEST_CASE("synthetic KV may be selected too, and each sequence selects for itself") {
  const workplace here;
  const auto run = [&](const std::string& attend) {
    const auto ran = here.run(small_shape + "--batch 3 --block-tokens 64 --attend " + attend);
    CAPTURE(attend, ran.err);
    REQUIRE(ran.status == 0);
    return ran.value();
  };
  const json all = run("top-k=1000");
  CHECK(all.at("attend").at("share_read") == 1);
  CHECK(all.at("attend").at("blocks_there") == 3 * 3 * 4 * 128);
  CHECK(all.at("error").at("rel_l2").get<double>() < 1e-5);
  const json sure = run("certified=0.001");
  CHECK(sure.at("attend").at("mode") == "certified=0.001");
  CHECK(sure.at("error").at("rel_l2").get<double>() < 2e-3);
  const json one = run("top-k=1");  // the newest block, which holds nothing of what is looked for
  CHECK(one.at("attend").at("blocks_read") == 3 * 3 * 4);
  CHECK(one.at("error").at("rel_l2").get<double>() > 0.5);
}

TEST_CASE("blocks that are lost are computed anew, bit for bit, while prefilling, scoring and decoding") {
  const workplace here;
  const std::string rate = GENERATE("0.01", "1");
  CAPTURE(rate);
  const auto ran =
      here.run("--codec lossless --baseline --context 1024 --decode 8 --hot 1MiB --json - --inject " + rate);
  CAPTURE(ran.err);
  REQUIRE(ran.status == 0);
  const json j = ran.value();
  CHECK(j.at("recomputed_blocks").get<int>() > (rate == "0.01" ? 0 : 100));
  CHECK(j.at("baseline").at("identical_tokens") == true);
  CHECK(j.at("error").at("max_abs") == 0);
  CHECK(j.at("bits_per_byte") == j.at("baseline").at("bits_per_byte"));
  std::uint64_t lost = 0;
  for (const json& tier : j.at("tiers")) lost += tier.at("lost").get<std::uint64_t>();
  CHECK(lost >= j.at("recomputed_blocks").get<std::uint64_t>());
}

TEST_CASE("what a lossy ladder computes anew is as good as what it had") {
  const workplace here;
  const std::string codec = GENERATE("q8", "q4");
  const auto ran =
      here.run("--baseline --context 1024 --decode 4 --hot 1MiB --json - --inject 0.2 --codec " + codec);
  REQUIRE(ran.status == 0);
  const json j = ran.value();
  CHECK(j.at("recomputed_blocks").get<int>() > 50);
  CHECK(j.at("error").at("rel_l2").get<double>() < (codec == "q8" ? 1e-3 : 1e-2));
}

TEST_CASE("lost blocks of synthetic KV are made again, those that sequences decoded for themselves too") {
  const workplace here;
  const auto ran = here.run(small_shape + "--batch 3 --inject 0.3");
  REQUIRE(ran.status == 0);
  const json j = ran.value();
  CHECK(j.at("recomputed_blocks").get<int>() > 10);
  CHECK(j.at("error").at("rel_l2").get<double>() < 1e-5);
}

TEST_CASE("the least hot tier that is named suffices for computing blocks anew too") {
  const workplace here;
  const std::string job = "--codec lossless --context 512 --decode 2 --json - --inject 0.5 --hot ";
  const auto refused = here.run(job + "4KiB");
  check_refused(refused, "suffice");
  const std::size_t at = refused.err.find(": ", refused.err.find("--hot")) + 2;
  const auto ran = here.run(job + refused.err.substr(at, refused.err.find(" suffice") - at));
  CAPTURE(ran.err);
  REQUIRE(ran.status == 0);
  CHECK(ran.value().at("recomputed_blocks").get<int>() > 0);
}

TEST_CASE("the JSON goes to a file, and the table to standard output") {
  const workplace here;
  const auto ran = here.run("--shape 2,4,2,32 --context 1024 --decode 1 --json r.json --trace t.json");
  REQUIRE(ran.status == 0);
  CHECK(ran.out.find("overlap ratio") != std::string::npos);
  CHECK(json::parse(contents(here.folder / "r.json")).at("decode_tokens") == 1);
  CHECK(json::parse(contents(here.folder / "t.json")).at("traceEvents").size() > 1);
}

TEST_CASE("what cannot be is refused in one sentence") {
  const workplace here;
  const std::string shape = "--shape 2,4,2,32 --context 1024 --decode 1 ";
  check_refused(here.run(shape + "--codec q5"), "lossless, q8 and q4");
  check_refused(here.run("--shape llama-9"), "llama-3-8b");
  check_refused(here.run(shape + "--hot 12parsecs"), "--hot needs a size");
  check_refused(here.run(shape + "--cold -1"), "--cold needs a size");
  check_refused(here.run(shape + "--warm 0 --cool 4KiB"), "cannot hold the context");
  check_refused(here.run(shape + "--policy best"), "--policy does not know");
  check_refused(here.run(shape + "--prefetch all"), "--prefetch knows");
  check_refused(here.run(shape + "--device tpu"), "--device knows host and cuda");
  check_refused(here.run("--device cuda --control --baseline"), "--control needs --device host");
  check_refused(here.run(shape + "--attend sparse"), "--attend knows dense");
  for (const char* none : {"top-k=0", "top-k=-1", "top-k=", "top-k=3x", "top-k=5000000000"})
    check_refused(here.run(shape + "--attend " + none), "top-k=N needs a number");
  for (const char* none : {"certified=0", "certified=1", "certified=-0.1", "certified=nan", "certified=0.1x"})
    check_refused(here.run(shape + "--attend " + none), "between 0 and 1");
  check_refused(here.run(shape + "--attend top-k=3 --device cuda"), "as dense alone");
  check_refused(here.run(shape + "--attend top-k=3 --inject 0.1"), "--inject goes with --attend dense");
  check_refused(here.run("--codec q8 --attend top-k=3 --control"), "beside --baseline");
  check_refused(here.run(shape + "--block-tokens 48"), "power of two");
  check_refused(here.run(shape + "--inject 1.5"), "--inject");
  check_refused(here.run(shape + "--inject nan"), "--inject");
  check_refused(here.run(shape + "--inject 0.1 --device cuda"), "--inject needs --device host");
  check_refused(here.run(shape + "--prefetch adaptive --device cuda"), "as layer_ahead alone");
  check_refused(here.run("--codec q8 --inject 0.1 --control"), "beside --baseline");
  check_refused(here.run(shape + "--baseline"), "no text");
  check_refused(here.run("--batch 2"), "--batch needs --shape");
  check_refused(here.run("--context 0"), "--context");
  check_refused(here.run("--no-such-option"), "--no-such-option");
  check_refused(here.run("--prompt nothing.txt"), "nothing.txt");
  check_refused(here.run("--context 16000000"), "the prompt has");
  check_refused(here.run("--prompt a --prompt-ids b"), "not both");
}

TEST_CASE("a checkpoint that is not there, or not whole, is refused") {
  const workplace here;
  check_refused(here.run("--model nowhere"), "nowhere");
  const std::filesystem::path model = TERRACE_MODEL_DIR;
  std::filesystem::create_directory(here.folder / "cut");
  std::filesystem::copy_file(model / "config.json", here.folder / "cut" / "config.json");
  check_refused(here.run("--model cut"), "safetensors");
  std::filesystem::copy_file(model / "model.safetensors", here.folder / "cut" / "model.safetensors");
  std::filesystem::resize_file(here.folder / "cut" / "model.safetensors", 3_MiB);
  check_refused(here.run("--model cut"), "model.safetensors");
}

TEST_CASE("tiers that cannot be opened are refused before anything runs") {
  const workplace here;
  const std::string shape = "--shape 2,4,2,32 --context 1024 --decode 1 ";
  check_refused(here.run(shape + "--cool-path nowhere/kv.bin"), "No such file");
  check_refused(here.run(shape + "--cool-path ."), "cannot be opened");
  check_refused(here.run(shape + "--cool-path /dev/full"), "not a plain file");
  check_refused(here.run(shape + "--cold-path nowhere/cold"), "No such file");
  // No disk has that much room; a file system says so when the file's space is claimed.
  check_refused(here.run(shape + "--cool 4000000GiB --cool-path kv.bin"), "tier");
  CHECK_FALSE(std::filesystem::exists(here.folder / "kv.bin"));
}

TEST_CASE("a file that cannot be written is refused before anything runs, a disk that is full at the end") {
  const workplace here;
  const std::string shape = "--shape 2,4,2,32 --context 1024 --decode 1 ";
  auto ran = here.run(shape + "--json /dev/full");
  CHECK(ran.status == 1);
  CHECK(ran.err == "attention_runner: --json cannot be written: \"/dev/full\"\n");
  ran = here.run(shape + "--trace nowhere/t.json");
  CHECK(ran.status == 2);
  CHECK(ran.out.empty());
  CHECK(ran.err == "attention_runner: --trace cannot be written: \"nowhere/t.json\"\n");
  ran = here.run(shape + "--json . --trace t.json");
  CHECK(ran.status == 2);
  CHECK_FALSE(std::filesystem::exists(here.folder / "t.json"));
}
