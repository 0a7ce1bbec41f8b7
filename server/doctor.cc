#include "server/doctor.h"

#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cpu/memory_limit.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/model_size.h"
#include "server/model_directory.h"

namespace moed::server {
namespace {

using Kind = Finding::Kind;

// Less cannot hold even small experts pinned.
constexpr rlim_t kEnoughPinnedBytes = rlim_t{1} << 30;
constexpr rlim_t kEnoughFiles = 4096;

std::string Gib(int64_t bytes) {
  return absl::StrFormat("%.1f GiB", static_cast<double>(bytes) / (1 << 30));
}

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

Finding ExamineDriver(const Options& options, const std::string& root) {
  const std::string version = FirstLine(root + "/proc/driver/nvidia/version");
  if (!version.empty()) return {Kind::kOk, "GPU driver", version, ""};
  if (options.device != Device::kCuda) {
    return {Kind::kOk, "GPU driver", "none; the CPU serves", ""};
  }
  return {Kind::kProblem, "GPU driver", "none is loaded, and --device is cuda",
          "install NVIDIA's driver; in a container, ask for a GPU (nvidia.com/gpu, --gpus all)"};
}

Finding ExaminePinning(const Options& options) {
  rlimit limit = {};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  if (limit.rlim_cur == RLIM_INFINITY) return {Kind::kOk, "locked memory", "without limit", ""};
  const std::string found = absl::StrCat("at most ", limit.rlim_cur >> 10, " KiB may be pinned");
  if (options.device != Device::kCuda || limit.rlim_cur >= kEnoughPinnedBytes) {
    return {Kind::kOk, "locked memory", found, ""};
  }
  return {Kind::kAdvice, "locked memory", found,
          "experts in host memory should be pinned: LimitMEMLOCK=infinity in the systemd unit, of "
          "containerd on Kubernetes, or --ulimit memlock=-1 with docker"};
}

Finding ExamineHugePages(const std::string& root) {
  const std::string modes = FirstLine(root + "/sys/kernel/mm/transparent_hugepage/enabled");
  if (modes.empty() || absl::StrContains(modes, "[never]")) {
    return {Kind::kAdvice, "huge pages", modes.empty() ? "not in this kernel" : modes,
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: reading gigabytes of "
            "experts through 4 KiB pages wastes a part of it on page tables"};
  }
  return {Kind::kOk, "huge pages", modes, ""};
}

Finding ExamineFiles() {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  const std::string found = absl::StrCat(limit.rlim_cur, " open files");
  if (limit.rlim_cur >= kEnoughFiles) return {Kind::kOk, "file descriptors", found, ""};
  return {Kind::kAdvice, "file descriptors", found,
          "each connection takes one: raise LimitNOFILE, or ulimit -n 65536"};
}

Finding ExamineMemory(const std::string& root) {
  const std::string limit = FirstLine(root + "/sys/fs/cgroup/memory.max");
  const std::string cgroup =
      limit.empty() || limit == "max" ? "no limit of the cgroup" : "cgroup limit " + limit;
  return {Kind::kOk, "memory",
          absl::StrCat(Gib(backend::AvailableMemoryBytes(root)), " may be taken, ", cgroup), ""};
}

// The format in which experts would be served on the CPU; of bf12 that is yet to be encoded, with
// the least room for escapes.
backend::ExpertFormat ServedFormat(const Options& options, const model::Checkpoint& checkpoint) {
  const backend::ExpertFormat& stored = checkpoint.experts().format();
  if (options.expert_format == model::ExpertFormatPreference::kBF16) {
    return {backend::ExpertFormatKind::kBF16, stored.hidden(), stored.intermediate()};
  }
  if (options.expert_format == model::ExpertFormatPreference::kBF12 &&
      stored.kind() == backend::ExpertFormatKind::kBF16) {
    return {backend::ExpertFormatKind::kBF12, stored.hidden(), stored.intermediate(),
            backend::Bf12TileEscapeCapacity(0)};
  }
  return stored;
}

Finding ExamineFormat(const Options& options, const model::Checkpoint& checkpoint) {
  const backend::ExpertFormat served = ServedFormat(options, checkpoint);
  return {Kind::kOk, "expert format",
          absl::StrFormat("%s in the files, served as %s, %.1f %% of bf16's bytes",
                          backend::ExpertFormatName(checkpoint.experts().format().kind()),
                          backend::ExpertFormatName(served.kind()), 100 * served.stored_ratio()),
          ""};
}

// Weights against memory.
Finding ExamineFit(const Options& options, const model::Checkpoint& checkpoint) {
  const model::ModelSize size = model::ComputeModelSize(checkpoint.config());
  const backend::ExpertFormat served = ServedFormat(options, checkpoint);
  const int64_t experts = size.num_experts * static_cast<int64_t>(served.blob_bytes());
  const int64_t available = backend::AvailableMemoryBytes();
  const std::string found = absl::StrCat("dense weights ", Gib(size.dense_bytes), ", experts ",
                                         Gib(experts), ", memory ", Gib(available));
  if (size.dense_bytes >= available) {
    return {Kind::kProblem, "fit", found, "the dense weights alone do not fit: raise the limit"};
  }
  if (size.dense_bytes + experts < available) return {Kind::kOk, "fit", found, ""};
  const auto percent = 100 * (available - size.dense_bytes) / experts;
  const bool stored_bf16 = checkpoint.experts().format().kind() == backend::ExpertFormatKind::kBF16;
  if (stored_bf16 && served.kind() == backend::ExpertFormatKind::kBF12) {
    return {Kind::kProblem, "fit", absl::StrCat(found, ", and --expert-format is bf12"),
            "experts are encoded while loading only if all fit; write the checkpoint anew with "
            "moed convert and serve that"};
  }
  return {Kind::kAdvice, "fit",
          absl::StrCat(found, ": less than ", percent, " % of the experts stay resident"),
          absl::StrCat("moed serves it and reads the others as they are needed; more memory makes "
                       "it faster",
                       stored_bf16 ? ", and so does moed convert, which writes the same weights in "
                                     "fewer bytes"
                                   : "")};
}

}  // namespace

std::vector<Finding> ExamineMachine(const Options& options, const std::string& root) {
  const unsigned threads = std::thread::hardware_concurrency();
  return {ExamineDriver(options, root),
          ExaminePinning(options),
          ExamineMemory(root),
          ExamineHugePages(root),
          ExamineFiles(),
          {Kind::kOk, "processors", absl::StrCat(threads), ""}};
}

std::vector<Finding> ExamineModel(const Options& options) {
  const absl::StatusOr<std::string> directory = FindModelDirectory(options.model);
  if (!directory.ok()) {
    return {{Kind::kProblem, "checkpoint", std::string(directory.status().message()),
             "name a directory with --model"}};
  }
  const auto checkpoint = model::OpenCheckpoint(
      {.directory = *directory, .load_format = options.load_format, .seed = options.seed});
  if (!checkpoint.ok()) {
    return {{Kind::kProblem, "checkpoint", std::string(checkpoint.status().message()),
             "fetch the files it names again, or name another directory with --model"}};
  }
  std::vector<Finding> findings = {
      {Kind::kOk, "checkpoint", absl::StrCat(*directory, ", ", (*checkpoint)->config().family), ""},
      ExamineFormat(options, **checkpoint),
      ExamineFit(options, **checkpoint)};
  if (!std::filesystem::exists(*directory + "/tokenizer.json")) {
    findings.push_back({Kind::kAdvice, "tokenizer", "no tokenizer.json",
                        "clients must send token ids; put tokenizer.json beside config.json"});
  }
  return findings;
}

int RunDoctor(const Options& options, std::ostream& out) {
  std::vector<Finding> findings = ExamineMachine(options);
  for (Finding& finding : ExamineModel(options)) findings.push_back(std::move(finding));
  int exit_code = 0;
  for (const Finding& finding : findings) {
    static constexpr const char* kMarks[] = {"ok     ", "advice ", "PROBLEM"};
    out << kMarks[static_cast<int>(finding.kind)] << "  " << finding.what << ": " << finding.found
        << "\n";
    if (!finding.remedy.empty()) out << "         -> " << finding.remedy << "\n";
    if (finding.kind == Kind::kProblem) exit_code = 1;
  }
  return exit_code;
}

}  // namespace moed::server
