#include "runtime/model/encoded_writer.h"

#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/backend/bf12.h"
#include "runtime/model/checkpoint_directory.h"
#include "runtime/model/dense_shape.h"
#include "runtime/model/encoded_layout.h"
#include "runtime/model/families/family.h"
#include "runtime/model/output_file.h"
#include "runtime/model/tensor_checksums.h"

namespace moed::model {
namespace {

namespace fs = std::filesystem;

constexpr char kIndexFile[] = "model.safetensors.index.json";
// Tokenizers and templates; nothing that serving reads is larger.
constexpr size_t kMostCopiedBytes = size_t{256} << 20;

// Weights in any container, and hidden files.
bool IsLeftOut(const std::string& name) {
  if (name.front() == '.') return true;
  for (const char* suffix : {".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".h5",
                             ".msgpack", ".onnx", ".npz"}) {
    if (absl::EndsWithIgnoreCase(name, suffix)) return true;
  }
  return false;
}

TensorLayout Layout(std::string name, backend::DType dtype, const std::vector<int64_t>& shape) {
  TensorLayout layout = {
      .name = std::move(name),
      .dtype_name = absl::AsciiStrToUpper(std::string(backend::DTypeName(dtype))),
      .shape = shape,
      .bytes = backend::SizeOf(dtype)};
  for (int64_t extent : shape) layout.bytes *= static_cast<uint64_t>(extent);
  return layout;
}

}  // namespace

EncodedWriter::EncodedWriter(const Checkpoint& source, const backend::ExpertFormat& format,
                             const StagingDirectory& directory)
    : source_(source), format_(format), directory_(directory) {}

absl::StatusOr<EncodedWriter> EncodedWriter::Create(const Checkpoint& source,
                                                    const backend::ExpertFormat& format,
                                                    const StagingDirectory& directory) {
  EncodedWriter writer(source, format, directory);
  writer.ListDense();
  if (absl::Status status = writer.CreateFiles(); !status.ok()) return status;
  return writer;
}

void EncodedWriter::ListDense() {
  const ModelConfig& config = source_.config();
  const Family& family = *FindFamily("", config.family);
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    for (int i = 0; i < kNumDenseRoles; ++i) {
      const auto role = static_cast<DenseRole>(i);
      if ((layer > 0 && !IsPerLayer(role)) || !source_.Has(role, layer)) continue;
      TensorLayout layout =
          Layout(DenseTensorNames(family, role, layer).front(), source_.DenseType(role, layer),
                 *DenseShape(config, role, layer));
      dense_bytes_ += static_cast<int64_t>(layout.bytes);
      dense_.push_back({role, layer, {std::move(layout), /*pieces=*/1}});
    }
  }
}

absl::Status EncodedWriter::CreateFiles() {
  const SafetensorsMetadata metadata = {
      {kEncodedVersionKey, kEncodedVersion},
      {kEncodedFormatKey, std::string(backend::ExpertFormatName(format_.kind()))},
      {kEncodedEscapesKey, absl::StrCat(format_.tile_escapes())}};
  std::vector<ChecksummedTensor> tensors;
  for (const DenseTensor& dense : dense_) tensors.push_back(dense.stored);
  absl::StatusOr<ChecksummedFile> file =
      ChecksummedFile::Create(directory_.PathOf(kEncodedDenseFile), std::move(tensors),
                              {{kEncodedVersionKey, kEncodedVersion}});
  if (!file.ok()) return file.status();
  dense_file_.push_back(*std::move(file));

  const ModelConfig& config = source_.config();
  const int64_t num_experts = config.router.num_experts;
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    if (!config.layers[layer].is_moe) continue;
    ChecksummedTensor experts = {
        .layout = Layout(EncodedExpertsName(layer), backend::DType::kU8,
                         {num_experts, static_cast<int64_t>(format_.blob_bytes())}),
        .pieces = num_experts,
        .parts = backend::Bf12Tiles(format_)};
    file = ChecksummedFile::Create(directory_.PathOf(EncodedExpertsFile(layer)),
                                   {std::move(experts)}, metadata);
    if (!file.ok()) return file.status();
    expert_files_.emplace(layer, *std::move(file));
  }
  return absl::OkStatus();
}

absl::Status EncodedWriter::WriteDense() {
  for (size_t i = 0; i < dense_.size(); ++i) {
    const absl::StatusOr<HostTensor> tensor = source_.ReadDense(dense_[i].role, dense_[i].layer);
    if (!tensor.ok()) return tensor.status();
    const std::span<const std::byte> bytes(tensor->view.As<std::byte>(),
                                           static_cast<size_t>(tensor->view.num_bytes()));
    const uint32_t checksum = Checksum(bytes);
    absl::Status status = dense_file_.front().Write(i, 0, bytes, std::span(&checksum, 1));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status EncodedWriter::WriteExpert(cache::ExpertKey key, std::span<const std::byte> blob) {
  std::vector<uint32_t> checksums;
  for (int64_t tile = 0; tile < backend::Bf12Tiles(format_); ++tile) {
    const size_t begin = backend::Bf12TileOffset(format_, tile);
    checksums.push_back(
        Checksum(blob.subspan(begin, backend::Bf12TileOffset(format_, tile + 1) - begin)));
  }
  return expert_files_.at(key.layer).Write(0, key.expert, blob, checksums);
}

absl::Status EncodedWriter::Finish() {
  absl::Status status = dense_file_.front().Finish();
  for (auto& [layer, file] : expert_files_) {
    if (status.ok()) status = file.Finish();
  }
  if (status.ok()) status = WriteIndex();
  if (status.ok()) status = CopyOtherFiles();
  return status;
}

absl::Status EncodedWriter::WriteIndex() const {
  nlohmann::json weight_map = nlohmann::json::object();
  for (const DenseTensor& dense : dense_) weight_map[dense.stored.layout.name] = kEncodedDenseFile;
  uint64_t total = dense_file_.front().bytes();
  for (const auto& [layer, file] : expert_files_) {
    weight_map[EncodedExpertsName(layer)] = EncodedExpertsFile(layer);
    total += file.bytes();
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  return WriteFile(kIndexFile, index.dump(2) + "\n");
}

absl::Status EncodedWriter::CopyOtherFiles() const {
  const absl::StatusOr<CheckpointDirectory> source = CheckpointDirectory::Open(source_.directory());
  if (!source.ok()) return source.status();
  std::error_code error;
  fs::directory_iterator entry(source->path(), error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename();
    std::error_code unreadable;
    if (IsLeftOut(name) || !entry->is_regular_file(unreadable)) continue;
    const absl::StatusOr<std::string> text = source->ReadFile(name, kMostCopiedBytes);
    if (!text.ok()) return text.status();
    if (absl::Status status = WriteFile(name, *text); !status.ok()) return status;
  }
  if (error) return absl::DataLossError(absl::StrCat(source->path(), ": ", error.message()));
  return absl::OkStatus();
}

absl::Status EncodedWriter::WriteFile(const std::string& name, const std::string& text) const {
  const absl::StatusOr<OutputFile> file = OutputFile::Create(directory_.PathOf(name));
  if (!file.ok()) return file.status();
  absl::Status status = file->WriteAt(0, std::as_bytes(std::span(text)));
  return status.ok() ? file->Sync() : status;
}

}  // namespace moed::model
