// config.json and *.safetensors of hostile bytes, as attention_runner reads them: refused with a sentence, or sizes
// that agree and tensors that lie within their file.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "attention_runner/model_config.hpp"
#include "attention_runner/safetensors.hpp"

namespace {

// A folder in memory that holds one checkpoint at a time.
class checkpoint_folder {
 public:
  checkpoint_folder() {
    path_ = std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : "/tmp";
    path_ += "/terrace-fuzz-XXXXXX";
    if (::mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~checkpoint_folder() { std::filesystem::remove_all(path_); }
  const std::string& with(std::string_view bytes) const {
    std::FILE* const file = std::fopen((path_ + "/model.safetensors").c_str(), "wb");
    if (file == nullptr || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) std::abort();
    std::fclose(file);
    return path_;
  }

 private:
  std::string path_;
};

void read_config(std::string_view text) {
  const auto config = runner::model_config::parse(text, "config.json");
  if (!config) {
    if (config.error().sentence.empty()) std::abort();
    return;
  }
  const bool sound = config->head_dim != 0 && config->head_dim % 2 == 0 && config->num_key_value_heads != 0 &&
                     config->num_attention_heads % config->num_key_value_heads == 0 &&
                     config->rms_norm_eps > 0 && config->rope_theta > 0;
  if (!sound) std::abort();
}

void read_tensors(std::string_view bytes) {
  static const checkpoint_folder folder;
  const auto model = runner::safetensors::open(folder.with(bytes));
  if (!model) {
    if (model.error().sentence.empty()) std::abort();
    return;
  }
  for (const auto& [name, tensor] : model->tensors()) {
    if (tensor.end > bytes.size() || tensor.begin > tensor.end) std::abort();
    std::size_t elements = 1;
    for (const std::uint64_t n : tensor.shape) elements *= static_cast<std::size_t>(n);
    std::vector<float> values(elements);
    static_cast<void>(model->read(tensor, 0, values));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 'c')
    read_config(rest);
  else
    read_tensors(rest);
  return 0;
}
