// Experts read from the files of a checkpoint: each expert's matrices are whole tensors, or slices
// of tensors that hold a layer's. Reading is thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/expert_format.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/families/family.h"
#include "runtime/model/model_config.h"
#include "runtime/model/tensor_files.h"

namespace moed::model {

class FileExpertSource : public ExpertSource {
 public:
  // Finds every expert's matrices in `files`, which must outlive the source. INVALID_ARGUMENT,
  // naming the tensor, if one is missing or its shape or dtype is not what the config says.
  static absl::StatusOr<std::unique_ptr<FileExpertSource>> Create(const ModelConfig& config,
                                                                  const Family& family,
                                                                  const TensorFiles& files);

  const backend::ExpertFormat& format() const override { return format_; }
  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override;

 private:
  // Where one matrix begins within a tensor.
  struct Slice {
    const StoredTensor* tensor = nullptr;
    uint64_t offset = 0;
  };
  using Slices = std::array<Slice, 3>;  // gate, up, down

  FileExpertSource(backend::ExpertFormat format, int num_experts)
      : format_(format), num_experts_(num_experts) {}

  absl::Status AddLayer(int layer, const ExpertNames& names, const TensorFiles& files);
  absl::Status AddFusedLayer(int layer, const ExpertNames& names, const TensorFiles& files);

  backend::ExpertFormat format_;
  int num_experts_;
  std::vector<std::vector<Slices>> layers_;  // empty for a layer without experts
};

}  // namespace moed::model
