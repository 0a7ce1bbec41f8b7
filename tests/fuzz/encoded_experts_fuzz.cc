// The experts file of a converted checkpoint: any bytes are refused with an error, or read and
// decoded within their bounds.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "runtime/model/checkpoint_directory.h"
#include "runtime/model/encoded_expert_source.h"
#include "runtime/model/recoded_experts.h"
#include "runtime/model/tensor_files.h"

namespace {

constexpr char kFile[] = "experts.safetensors";

const std::string& Folder() {
  static const std::string folder = [] {
    std::string path = std::filesystem::temp_directory_path() /
                       ("moed_encoded_experts_fuzz_" + std::to_string(getpid()));
    std::filesystem::create_directories(path);
    return path;
  }();
  return folder;
}

moed::model::ModelConfig SmallConfig() {
  moed::model::ModelConfig config;
  config.hidden = 128;
  config.expert_intermediate = 32;
  config.router.num_experts = 2;
  config.layers.resize(1);
  return config;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t bytes) {
  std::ofstream(Folder() + "/" + kFile, std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(input), static_cast<std::streamsize>(bytes));
  const moed::model::ModelConfig config = SmallConfig();
  const auto directory = moed::model::CheckpointDirectory::Open(Folder());
  if (!directory.ok()) std::abort();
  const auto files = moed::model::TensorFiles::OpenFile(*directory, kFile);
  if (!files.ok() || !moed::model::EncodedExpertSource::IsIn(config, *files)) return 0;
  const auto source = moed::model::EncodedExpertSource::Create(config, *files);
  if (!source.ok()) return 0;
  const moed::model::DecodedExperts decoded(**source);
  std::vector<std::byte> blob(decoded.format().blob_bytes());
  for (int expert = 0; expert < config.router.num_experts; ++expert) {
    (void)decoded.Read({.layer = 0, .expert = expert}, {}, blob);
  }
  return 0;
}
