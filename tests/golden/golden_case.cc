#include "tests/golden/golden_case.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/model/checkpoint_directory.h"
#include "runtime/model/tensor_files.h"

namespace moed::testing {
namespace {

constexpr char kGoldenFile[] = "golden.safetensors";

// A bundle that was carried to another machine names its own folder.
std::string SourceDirectory() {
  const char* root = std::getenv("MOED_TEST_ROOT");
  return root != nullptr ? root : MOED_SOURCE_DIR;
}

// The values of a tensor, whose dtype must have T's size.
template <typename T>
absl::StatusOr<std::vector<T>> ReadValues(const model::TensorFiles& files,
                                          const std::string& name) {
  const model::StoredTensor* tensor = files.Find(name);
  if (tensor == nullptr) return absl::NotFoundError(absl::StrCat("no tensor ", name));
  std::vector<T> values(tensor->entry.bytes / sizeof(T));
  absl::Status status = tensor->Read(0, std::as_writable_bytes(std::span(values)));
  if (!status.ok()) return status;
  return values;
}

absl::StatusOr<GoldenPrompt> ReadPrompt(const model::TensorFiles& files, int index) {
  const auto name = [&](const char* part) { return absl::StrCat(index, ".", part); };
  const auto ids = ReadValues<int32_t>(files, name("token_ids"));
  const auto prompt_tokens = ReadValues<int32_t>(files, name("prompt_tokens"));
  const auto first_logits = ReadValues<int32_t>(files, name("first_logits"));
  const auto logits = ReadValues<float>(files, name("logits"));
  const auto router_gaps = ReadValues<float>(files, name("router_gaps"));
  for (const absl::Status& status : {ids.status(), prompt_tokens.status(), first_logits.status(),
                                     logits.status(), router_gaps.status()}) {
    if (!status.ok()) return status;
  }
  GoldenPrompt prompt;
  prompt.token_ids = *ids;
  prompt.prompt_tokens = prompt_tokens->at(0);
  prompt.first_logits = first_logits->at(0);
  prompt.logits = *logits;
  prompt.vocabulary =
      static_cast<int>(logits->size() / (ids->size() - static_cast<size_t>(prompt.first_logits)));
  prompt.router_gaps = *router_gaps;
  prompt.moe_layers = static_cast<int>(router_gaps->size() / ids->size());
  return prompt;
}

}  // namespace

std::string GoldenPath(const std::string& file) {
  return absl::StrCat(SourceDirectory(), "/tests/golden/", file);
}

std::span<const float> GoldenPrompt::LogitsAt(int position) const {
  return std::span(logits).subspan(static_cast<size_t>(position - first_logits) * vocabulary,
                                   vocabulary);
}

float GoldenPrompt::TopTwoGap(int position) const {
  const std::span<const float> row = LogitsAt(position);
  std::vector<float> sorted(row.begin(), row.end());
  std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<float>());
  return sorted[0] - sorted[1];
}

float GoldenPrompt::RouterGap(int position) const {
  float gap = std::numeric_limits<float>::infinity();
  for (int layer = 0; layer < moe_layers; ++layer) {
    gap = std::min(gap, router_gaps[layer * token_ids.size() + position]);
  }
  return gap;
}

std::vector<std::string> GoldenCaseNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(GoldenPath(""))) {
    if (std::filesystem::exists(entry.path() / kGoldenFile)) {
      names.push_back(entry.path().filename());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<GoldenCase> LoadGoldenCase(const std::string& name) {
  GoldenCase golden;
  golden.name = name;
  const std::string folder = GoldenPath(name);
  golden.checkpoint_directory =
      name == "demo" ? absl::StrCat(SourceDirectory(), "/models/demo") : folder;
  const auto directory = model::CheckpointDirectory::Open(folder);
  if (!directory.ok()) return directory.status();
  const auto files = model::TensorFiles::OpenFile(*directory, kGoldenFile);
  if (!files.ok()) return files.status();
  for (int i = 0; files->Find(absl::StrCat(i, ".token_ids")) != nullptr; ++i) {
    absl::StatusOr<GoldenPrompt> prompt = ReadPrompt(*files, i);
    if (!prompt.ok()) return prompt.status();
    golden.prompts.push_back(*std::move(prompt));
  }
  return golden;
}

}  // namespace moed::testing
