#include "runtime/model/cold_path_choice.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace moed::model {

using backend::ColdPath;

absl::StatusOr<std::optional<ColdPath>> ChooseColdPath(ColdPathPreference preference,
                                                       const ColdPathCircumstances& circumstances) {
  const bool fits = circumstances.expert_bytes <= circumstances.host_memory_bytes;
  std::optional<ColdPath> path;
  switch (preference) {
    case ColdPathPreference::kPage:
      return std::nullopt;
    case ColdPathPreference::kAuto:
      if (circumstances.has_device && fits) {
        path = circumstances.cpus < kLeastHybridCpus ? ColdPath::kLink : ColdPath::kHybrid;
      }
      return path;
    case ColdPathPreference::kLink:
      path = ColdPath::kLink;
      break;
    case ColdPathPreference::kCpu:
      path = ColdPath::kCpu;
      break;
    case ColdPathPreference::kHybrid:
      path = ColdPath::kHybrid;
      break;
  }
  const std::string name(ColdPathName(path));
  if (!circumstances.has_device) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--cold-path ", name,
        " is for a GPU; the CPU backend pages experts in: ", "leave it at auto or page"));
  }
  if (!fits) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "--cold-path ", name, " needs every expert in host memory: ", circumstances.expert_bytes,
        " bytes, of which it may take ", circumstances.host_memory_bytes,
        "; give it more, or use --cold-path page"));
  }
  return path;
}

std::string_view ColdPathName(std::optional<ColdPath> path) {
  if (!path.has_value()) return "page";
  switch (*path) {
    case ColdPath::kLink:
      return "link";
    case ColdPath::kCpu:
      return "cpu";
    case ColdPath::kHybrid:
      return "hybrid";
  }
  return "?";
}

}  // namespace moed::model
