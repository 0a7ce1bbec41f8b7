#include "runtime/model/file_checkpoint.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/backend/host_memory.h"
#include "runtime/model/dense_shape.h"
#include "runtime/model/encoded_expert_source.h"
#include "runtime/model/encoded_layout.h"
#include "runtime/model/file_expert_source.h"
#include "runtime/model/tensor_checksums.h"
#include "runtime/model/tensor_files.h"

namespace moed::model {
namespace {

class FileCheckpoint : public Checkpoint {
 public:
  FileCheckpoint(std::string directory, ModelConfig config, GenerationDefaults generation,
                 TensorFiles files)
      : directory_(std::move(directory)),
        config_(std::move(config)),
        generation_(std::move(generation)),
        files_(std::move(files)) {}

  // Finds all tensors. To be called once, before anything else.
  absl::Status Resolve(const Family& family) {
    dense_.resize(config_.layers.size() * kNumDenseRoles);
    for (int layer = 0; layer < config_.num_layers(); ++layer) {
      for (int role = 0; role < kNumDenseRoles; ++role) {
        absl::Status status = ResolveDense(family, static_cast<DenseRole>(role), layer);
        if (!status.ok()) return status;
      }
    }
    return ResolveExperts(family);
  }

  const ModelConfig& config() const override { return config_; }
  const GenerationDefaults& generation() const override { return generation_; }
  const std::string& directory() const override { return directory_; }
  const ExpertSource& experts() const override { return *experts_; }

  bool Has(DenseRole role, int layer) const override { return Find(role, layer) != nullptr; }

  backend::DType DenseType(DenseRole role, int layer) const override {
    return *Find(role, layer)->entry.dtype;
  }

  absl::StatusOr<HostTensor> ReadDense(DenseRole role, int layer) const override {
    const StoredTensor* stored = Find(role, layer);
    if (stored == nullptr) {
      return absl::NotFoundError(absl::StrCat(directory_, ": no tensor of role ",
                                              static_cast<int>(role), " in layer ", layer));
    }
    const TensorEntry& entry = stored->entry;
    absl::StatusOr<backend::Buffer> buffer = backend::AllocateHostMemory(entry.bytes, entry.name);
    if (!buffer.ok()) return buffer.status();
    const std::span<std::byte> bytes(buffer->data(), entry.bytes);
    absl::Status status = stored->Read(0, bytes);
    if (status.ok()) status = CheckDense(*stored, bytes);
    if (!status.ok()) return status;
    const backend::Tensor view = DenseView(buffer->data(), *entry.dtype, entry.shape);
    return HostTensor{*std::move(buffer), view};
  }

 private:
  size_t IndexOf(DenseRole role, int layer) const {
    return static_cast<size_t>(IsPerLayer(role) ? layer : 0) * kNumDenseRoles +
           static_cast<size_t>(role);
  }
  const StoredTensor* Find(DenseRole role, int layer) const { return dense_[IndexOf(role, layer)]; }

  absl::Status ResolveDense(const Family& family, DenseRole role, int layer) {
    const auto shape = DenseShape(config_, role, layer);
    if (!shape.has_value()) return absl::OkStatus();
    const absl::StatusOr<const StoredTensor*> tensor =
        files_.Require(DenseTensorNames(family, role, layer), *shape);
    if (!tensor.ok()) return tensor.status();
    dense_[IndexOf(role, layer)] = *tensor;
    return absl::OkStatus();
  }

  absl::Status ResolveExperts(const Family& family) {
    if (EncodedExpertSource::IsIn(config_, files_)) {
      auto experts = EncodedExpertSource::Create(config_, files_);
      if (!experts.ok()) return experts.status();
      experts_ = *std::move(experts);
      return absl::OkStatus();
    }
    auto experts = FileExpertSource::Create(config_, family, files_);
    if (!experts.ok()) return experts.status();
    experts_ = *std::move(experts);
    return absl::OkStatus();
  }

  // Against the checksum, which every tensor of a converted checkpoint has.
  static absl::Status CheckDense(const StoredTensor& stored, std::span<const std::byte> bytes) {
    if (!stored.metadata->contains(kEncodedVersionKey)) return absl::OkStatus();
    const absl::StatusOr<std::vector<uint32_t>> checksums = ReadChecksums(stored, /*parts=*/1);
    if (!checksums.ok()) return checksums.status();
    if (Checksum(bytes) == checksums->front()) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(stored.file->name(), ": the bytes of tensor \"",
                                            stored.entry.name,
                                            "\" are not those of its checksum; copy the file "
                                            "again or convert anew"));
  }

  std::string directory_;
  ModelConfig config_;
  GenerationDefaults generation_;
  TensorFiles files_;
  std::vector<const StoredTensor*> dense_;  // by layer and role; null: the model has none
  std::unique_ptr<ExpertSource> experts_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenFileCheckpoint(const CheckpointDirectory& directory,
                                                               const Family& family,
                                                               ModelConfig config,
                                                               GenerationDefaults generation) {
  absl::StatusOr<TensorFiles> files = TensorFiles::Open(directory);
  if (!files.ok()) return files.status();
  auto checkpoint = std::make_unique<FileCheckpoint>(directory.path(), std::move(config),
                                                     std::move(generation), *std::move(files));
  absl::Status status = checkpoint->Resolve(family);
  if (!status.ok()) return status;
  return checkpoint;
}

}  // namespace moed::model
