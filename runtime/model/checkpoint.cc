#include "runtime/model/checkpoint.h"

#include <utility>

#include "runtime/model/checkpoint_directory.h"
#include "runtime/model/dummy_checkpoint.h"
#include "runtime/model/file_checkpoint.h"

namespace moed::model {
namespace {

constexpr char kConfigFile[] = "config.json";
constexpr char kGenerationFile[] = "generation_config.json";
constexpr size_t kMaxConfigBytes = 16 << 20;

absl::StatusOr<GenerationDefaults> ReadGeneration(const CheckpointDirectory& directory,
                                                  std::string_view config_text) {
  GenerationDefaults generation;
  if (directory.Has(kGenerationFile)) {
    const absl::StatusOr<std::string> text = directory.ReadFile(kGenerationFile, kMaxConfigBytes);
    if (!text.ok()) return text.status();
    absl::StatusOr<GenerationDefaults> parsed =
        ParseGenerationConfig(*text, directory.PathOf(kGenerationFile));
    if (!parsed.ok()) return parsed.status();
    generation = *std::move(parsed);
  }
  if (!generation.eos_token_ids.empty()) return generation;
  absl::StatusOr<std::vector<int32_t>> eos =
      ParseEosTokens(config_text, directory.PathOf(kConfigFile));
  if (!eos.ok()) return eos.status();
  generation.eos_token_ids = *std::move(eos);
  return generation;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const CheckpointOptions& options) {
  const absl::StatusOr<CheckpointDirectory> directory =
      CheckpointDirectory::Open(options.directory);
  if (!directory.ok()) return directory.status();
  const absl::StatusOr<std::string> text = directory->ReadFile(kConfigFile, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  absl::StatusOr<ModelConfig> config = ParseModelConfig(*text, directory->PathOf(kConfigFile));
  if (!config.ok()) return config.status();
  absl::StatusOr<GenerationDefaults> generation = ReadGeneration(*directory, *text);
  if (!generation.ok()) return generation.status();
  if (options.load_format == LoadFormat::kDummy) {
    return MakeDummyCheckpoint(options.directory, *std::move(config), *std::move(generation),
                               options.seed);
  }
  const Family& family = *FindFamily("", config->family);
  return OpenFileCheckpoint(*directory, family, *std::move(config), *std::move(generation));
}

}  // namespace moed::model
