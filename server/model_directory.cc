#include "server/model_directory.h"

#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace moed::server {
namespace {

namespace fs = std::filesystem;

constexpr char kConfigFile[] = "config.json";

absl::StatusOr<std::string> FindDemoModel() {
  std::error_code error;
  std::vector<fs::path> candidates;
  const fs::path executable = fs::read_symlink("/proc/self/exe", error);
  const fs::path folder = executable.parent_path();
  if (!error) candidates.push_back(folder.parent_path() / "share/moed/models/demo");
  candidates.push_back(fs::current_path(error) / "models/demo");
  for (fs::path above = folder; above.has_relative_path(); above = above.parent_path()) {
    candidates.push_back(above / "models/demo");
  }
  for (const fs::path& candidate : candidates) {
    if (fs::is_regular_file(candidate / kConfigFile, error)) return candidate.string();
  }
  return absl::NotFoundError(
      "no demo model beside this program; name a checkpoint directory with --model");
}

}  // namespace

absl::StatusOr<std::string> FindModelDirectory(const std::string& model) {
  if (model.empty()) return FindDemoModel();
  const fs::path config = fs::path(model) / kConfigFile;
  std::error_code of_config, of_directory;
  if (fs::is_regular_file(config, of_config)) return model;
  const bool is_directory = fs::is_directory(model, of_directory);
  const fs::path wrong = is_directory ? config : fs::path(model);
  const std::error_code error = is_directory ? of_config : of_directory;
  const std::string why = error ? error.message() : is_directory ? "not a file" : "not a directory";
  return absl::NotFoundError(absl::StrCat(
      wrong.string(), ": ", why,
      "; --model wants the directory of a checkpoint, with config.json and *.safetensors, as "
      "`hf download ORGANIZATION/MODEL --local-dir DIR` makes it (without --model: the demo "
      "model)"));
}

}  // namespace moed::server
