#include "attention_runner/safetensors.hpp"

#include <sys/stat.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "catch.hpp"
#include "checkpoint_files.hpp"

using runner::parse_safetensors_header;
using runner::safetensors;

namespace {

/// The sentence that says why the directory cannot be opened; empty where it can.
std::string refusal(const temporary_directory& directory) {
  auto opened = safetensors::open(directory.path());
  return opened ? std::string() : opened.error().sentence;
}
std::string refusal_of(const std::string& file) {
  temporary_directory directory;
  directory.write("a.safetensors", file);
  return refusal(directory);
}
std::string header_refusal(const std::string& header, std::uint64_t data_bytes) {
  auto parsed = parse_safetensors_header(header, data_bytes, "FILE");
  return parsed ? std::string() : parsed.error().sentence;
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const std::string two_tensors =
    R"({"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}})";

}  // namespace

TEST_CASE("tensors of all shards are found, and read exactly") {
  temporary_directory directory;
  const std::vector<float> singles{1.5f, -2.25f, 1e-30f};
  const std::vector<std::uint16_t> halves{0x3c00, 0xc200, 0x0001};  // 1, -3, the least subnormal
  const std::vector<std::uint16_t> brains{0x3f80, 0xc040};          // 1, -3
  directory.write("model-1.safetensors",
                  safetensors_bytes(R"({"__metadata__":{"format":"pt"},)"
                                    R"("f32":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},)"
                                    R"("f16":{"dtype":"F16","shape":[3,1],"data_offsets":[12,18]}}   )",
                                    bytes_of(singles) + bytes_of(halves)));
  directory.write("model-2.safetensors",
                  safetensors_bytes(R"({"bf16":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
                                    R"("i64":{"dtype":"I64","shape":[],"data_offsets":[4,12]}})",
                                    bytes_of(brains) + std::string(8, '\0')));
  directory.write("model.safetensors.index.json", "not looked at");
  auto checkpoint = safetensors::open(directory.path());
  REQUIRE(checkpoint);
  CHECK(checkpoint->tensors().size() == 4);
  CHECK(checkpoint->find("f64") == nullptr);
  CHECK(checkpoint->find("f16")->shape == std::vector<std::uint64_t>{3, 1});

  std::vector<float> out(3);
  REQUIRE(checkpoint->read(*checkpoint->find("f32"), 0, out));
  CHECK(out == singles);
  REQUIRE(checkpoint->read(*checkpoint->find("f16"), 0, out));
  CHECK(out == std::vector<float>{1, -3, std::ldexp(1.0f, -24)});
  out.resize(1);
  REQUIRE(checkpoint->read(*checkpoint->find("bf16"), 1, out));
  CHECK(out[0] == -3);

  auto integer = checkpoint->read(*checkpoint->find("i64"), 0, out);
  REQUIRE_FALSE(integer);
  CHECK(contains(integer.error().sentence, "I64"));
  CHECK(integer.error().exit_code == 2);
}

TEST_CASE("a long tensor is read through a short buffer") {
  temporary_directory directory;
  std::vector<float> values(50'000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  directory.write("a.safetensors",
                  safetensors_bytes(R"({"x":{"dtype":"F32","shape":[50000],"data_offsets":[0,200000]}})",
                                    bytes_of(values)));
  auto checkpoint = safetensors::open(directory.path());
  REQUIRE(checkpoint);
  std::vector<float> out(40'000);
  REQUIRE(checkpoint->read(*checkpoint->find("x"), 10'000, out));
  CHECK(out == std::vector<float>(values.begin() + 10'000, values.end()));

  SECTION("a file that has shrunk since is an error") {
    std::filesystem::resize_file(directory.path() / "a.safetensors", 100'000);
    auto read = checkpoint->read(*checkpoint->find("x"), 10'000, out);
    REQUIRE_FALSE(read);
    CHECK(contains(read.error().sentence, "ends before"));
  }
}

TEST_CASE("a value that is not finite is refused") {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    temporary_directory directory;
    const std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    directory.write("a.safetensors", safetensors_bytes(header, bytes_of(std::vector<float>{1, bad})));
    auto checkpoint = safetensors::open(directory.path());
    REQUIRE(checkpoint);
    std::vector<float> out(2);
    auto read = checkpoint->read(*checkpoint->find("x"), 0, out);
    REQUIRE_FALSE(read);
    CHECK(contains(read.error().sentence, "not finite"));
  }
}

TEST_CASE("tensors come in the order of their bytes") {
  auto parsed = parse_safetensors_header(two_tensors, 12, "FILE");
  REQUIRE(parsed);
  REQUIRE(parsed->size() == 2);
  CHECK((*parsed)[0].name == "a");
  CHECK((*parsed)[1].name == "b");
  CHECK((*parsed)[1].begin == 8);
  CHECK((*parsed)[1].end == 12);
}

TEST_CASE("a header that lies is refused with a sentence that says how") {
  struct lie {
    std::string header;
    std::uint64_t data_bytes;
    std::string says;
  };
  const auto tensor = [](const std::string& fields) { return "{\"x\":{" + fields + "}}"; };
  const std::string f32 = R"("dtype":"F32",)";
  const lie lies[] = {
      {two_tensors, 11, "outside of the file"},
      {two_tensors, 13, "bytes after its last tensor"},
      {"", 0, "does not begin with {"},
      {" {}", 0, "does not begin with {"},
      {"{", 0, "is not JSON"},
      {"{}}", 0, "is not JSON"},
      {"{\"\xff\":1}", 0, "is not JSON"},
      {R"({"x":3})", 0, "no table of tensors"},
      {R"({"x":[]})", 0, "no table of tensors"},
      {R"({"x":{"dtype":{}}})", 0, "no table of tensors"},
      {R"({"__metadata__":{"a":1}})", 0, "no table of tensors"},
      {"{\"x\":" + std::string(100'000, '['), 0, "no table of tensors"},
      {tensor(f32 + R"("shape":[1])"), 4, "lacks"},
      {tensor(f32 + R"("shape":[1],"shape":[1],"data_offsets":[0,4])"), 4, "a field twice"},
      {tensor(f32 + R"("shape":[1],"stride":[1],"data_offsets":[0,4])"), 4, "unknown field \"stride\""},
      {tensor(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])"), 4, "unknown dtype \"F31\""},
      {tensor(f32 + R"("shape":[-1],"data_offsets":[0,4])"), 4, "not a whole number"},
      {tensor(f32 + R"("shape":[1.5],"data_offsets":[0,4])"), 4, "not a whole number"},
      {tensor(f32 + R"("shape":[1],"data_offsets":[0,18446744073709551616])"), 4, "not a whole number"},
      {tensor(f32 + R"("shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"), 4, "more than 8 dimensions"},
      {tensor(f32 + R"("shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0,
       "more elements than memory"},
      {tensor(f32 + R"("shape":[4611686018427387905],"data_offsets":[0,4])"), 4, "more elements than memory"},
      {tensor(f32 + R"("shape":[2],"data_offsets":[0,4])"), 4, "not that of its shape"},
      {tensor(f32 + R"("shape":[1],"data_offsets":[4,0])"), 4, "outside of the file"},
      {tensor(f32 + R"("shape":[1],"data_offsets":[18446744073709551612,0])"), 4, "outside of the file"},
      {tensor(f32 + R"("shape":[1],"data_offsets":[0])"), 4, "two data_offsets"},
      {tensor(f32 + R"("shape":[1],"data_offsets":[0,4,4])"), 4, "two data_offsets"},
      {tensor(f32 + R"("shape":[1],"data_offsets":[4,8])"), 8, "belong to no tensor"},
      {R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "belong to two tensors"},
      {R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "\"x\" twice"},
  };
  for (const lie& l : lies) {
    CAPTURE(l.header.substr(0, 200), l.data_bytes);
    const std::string sentence = header_refusal(l.header, l.data_bytes);
    CHECK(contains(sentence, l.says));
    CHECK(contains(sentence, "FILE"));
    CHECK(sentence.find('\n') == std::string::npos);
  }
}

TEST_CASE("a file that is no safetensors file is refused") {
  const auto with_length = [](std::uint64_t length) {
    std::string file;
    for (unsigned i = 0; i < 8; ++i) file += static_cast<char>(length >> (8 * i) & 0xff);
    return file + two_tensors;
  };
  CHECK(contains(refusal_of(""), "too short"));
  CHECK(contains(refusal_of("1234567"), "too short"));
  CHECK(contains(refusal_of(with_length(std::uint64_t{1} << 63)), "ends before its header"));
  CHECK(contains(refusal_of(with_length(~std::uint64_t{0})), "ends before its header"));
  CHECK(contains(refusal_of(with_length(two_tensors.size() + 1)), "ends before its header"));
  CHECK(contains(refusal_of(with_length(two_tensors.size() - 1)), "is not JSON"));
  CHECK(contains(refusal_of(with_length(0)), "does not begin with {"));
  CHECK(contains(refusal_of(with_length(two_tensors.size())), "outside of the file"));
  CHECK(refusal_of(safetensors_bytes(two_tensors, std::string(12, '\0'))).empty());
  CHECK(refusal_of(safetensors_bytes("{}", "")).empty());
}

TEST_CASE("a directory is refused where it has no shards, or shards that clash") {
  temporary_directory directory;
  CHECK(contains(refusal(directory), "holds no .safetensors file"));
  auto absent = safetensors::open(directory.path() / "absent");
  REQUIRE_FALSE(absent);
  CHECK(contains(absent.error().sentence, "cannot be read as a directory"));

  SECTION("a pipe is not waited for") {
    REQUIRE(::mkfifo((directory.path() / "a.safetensors").c_str(), 0600) == 0);
    CHECK(contains(refusal(directory), "not a regular file"));
  }
  SECTION("one name in two shards") {
    const std::string shard = safetensors_bytes(two_tensors, std::string(12, '\0'));
    directory.write("a.safetensors", shard);
    directory.write("b.safetensors", shard);
    const std::string sentence = refusal(directory);
    CHECK(contains(sentence, "a.safetensors"));
    CHECK(contains(sentence, "b.safetensors"));
    CHECK(contains(sentence, "both hold \"a\""));
  }
}

TEST_CASE("a name out of a file cannot write to the terminal") {
  const std::string name = R"(\u001b[31m)" + std::string(200, 'x');
  const std::string sentence = header_refusal("{\"" + name + R"(":{"dtype":"?"}})", 0);
  CHECK(contains(sentence, "unknown dtype"));
  CHECK(sentence.find('\x1b') == std::string::npos);
  CHECK(sentence.size() < 200);
}

TEST_CASE("whatever bytes a file has, it opens or is refused with a sentence") {
  std::mt19937 random(3);
  const std::string whole = safetensors_bytes(two_tensors, std::string(12, '\1'));
  temporary_directory directory;
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string file = whole.substr(0, random() % 8 == 0 ? random() % whole.size() : whole.size());
    for (unsigned flips = random() % 4; flips != 0 && !file.empty(); --flips)
      file[random() % file.size()] = static_cast<char>(random());
    directory.write("a.safetensors", file);
    auto checkpoint = safetensors::open(directory.path());
    if (!checkpoint) {
      ++refused;
      REQUIRE_FALSE(checkpoint.error().sentence.empty());
      continue;
    }
    for (const auto& [name, tensor] : checkpoint->tensors()) {
      REQUIRE(tensor.end <= file.size());
      std::vector<float> out((tensor.end - tensor.begin) / *runner::dtype_bytes(tensor.dtype));
      static_cast<void>(checkpoint->read(tensor, 0, out));
    }
  }
  CHECK(refused > 500);
}
