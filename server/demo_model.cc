#include "server/demo_model.h"

#include <filesystem>
#include <system_error>
#include <vector>

namespace moed::server {

namespace fs = std::filesystem;

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
    if (fs::is_regular_file(candidate / "config.json", error)) return candidate.string();
  }
  return absl::NotFoundError(
      "no demo model beside this program; name a checkpoint directory with --model");
}

}  // namespace moed::server
