// Writes what each fuzz target begins with, made by the encoders themselves: make_seeds FOLDER. FOLDER/corpus-TARGET
// gets one file for each seed.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "codec_list.hpp"
#include "terrace/medium/disk_format.hpp"

namespace {

using namespace terrace;

std::string out_folder;

void write(const std::string& target, const std::string& name, std::string_view bytes) {
  const std::string folder = out_folder + "/corpus-" + target;
  std::filesystem::create_directories(folder);
  std::FILE* const file = std::fopen((folder + "/seed-" + name).c_str(), "wb");
  if (file == nullptr || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) std::exit(1);
  std::fclose(file);
}
std::string text_of(const_bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

void codecs() {
  const layer_group& group = fuzz::group();
  std::vector<std::byte> raw(group.block_bytes());
  for (int kind = 0; kind < 3; ++kind) {
    for (std::size_t i = 0; i < raw.size(); ++i)
      raw[i] = std::byte(kind == 0 ? 0 : kind == 1 ? (i * 37) & 0x3b : (i / 7) & 0x3f);
    fuzz::for_each_codec([&](auto codec, std::size_t number) {
      using C = typename decltype(codec)::type;
      std::vector<std::byte> out(C::max_encoded_size(group));
      const auto length = C::encode(group, raw, out);
      if (!length) std::exit(1);
      write("codec_decode", std::to_string(number) + "-" + std::to_string(kind),
            std::string(1, static_cast<char>(number)) + text_of(const_bytes(out).first(*length)));
    });
  }
}

void disk() {
  for (const bool one_file : {true, false}) {
    const superblock s{
        .how = one_file ? superblock::arrangement::one_file : superblock::arrangement::file_each,
        .contents = {1, {2, 0, 1}, 3},
        .store = 5,
        .capacity = 1 << 20,
        .alignment = one_file ? 4096u : 1u,
        .headers = 64,
        .data_offset = one_file ? 16384u : 0u};
    const extent_header h{.store = 5,
                          .key = {6, 7},
                          .sequence = 8,
                          .place = one_file ? 8192u : 3u,
                          .encoded = 4000,
                          .format_id = 3,
                          .raw = 8000};
    write("disk_format", one_file ? "one-file" : "file-each",
          text_of(const_bytes(encode(s)).first(80)) + text_of(const_bytes(encode(h)).first(80)));
  }
}

void models() {
  write(
      "model_files", "config",
      R"(c{"model_type": "llama", "hidden_act": "silu", "vocab_size": 256, "hidden_size": 64, )"
      R"("intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, )"
      R"("head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true})");
  const std::string header =
      R"({"__metadata__": {"format": "pt"}, "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, )"
      R"("b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]}})";
  std::string file = "s";
  for (unsigned i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i));
  write("model_files", "tensors", file + header + std::string(16, '\0'));
}

void lines() {
  write("trace_lines", "two",
        "{\"timestamp\": 0, \"input_length\": 1024, \"output_length\": 7, \"hash_ids\": [0, 1]}\n"
        "{\"timestamp\": 1.5, \"input_length\": 1536, \"output_length\": 7, \"hash_ids\": [0, 1, 46]}\n");
  write("trace_lines", "edges", "\n{\"hash_ids\": [18446744073709551615, -1]}\r\n{\"hash_ids\": []}");
  int n = 0;
  for (const char* size : {"4096", "64KiB", "1.5GiB", "2TB", "0.0000001k", "8388607T", "7B"})
    write("sizes", std::to_string(n++), size);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  out_folder = argv[1];
  codecs();
  disk();
  models();
  lines();
}
