// Experts of a converted checkpoint (encoded_layout.h): blobs as they lie in slots, so that reading
// one is a single read of the file. Reading is thread-safe.
//
// Nothing in the file is trusted. The structure of a blob, on which the kernels' memory accesses
// depend, is checked at every read; checksums at the first read of each tile, since a CRC of every
// page-in would cost more than the read itself.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/expert_format.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/model_config.h"
#include "runtime/model/tensor_files.h"

namespace moed::model {

class EncodedExpertSource : public ExpertSource {
 public:
  // Whether `files` are of a converted checkpoint.
  static bool IsIn(const ModelConfig& config, const TensorFiles& files);

  // `files` must outlive the source. INVALID_ARGUMENT, naming the file: another version or format,
  // or shapes that are not what config.json says; DATA_LOSS: no number where one must be.
  static absl::StatusOr<std::unique_ptr<EncodedExpertSource>> Create(const ModelConfig& config,
                                                                     const TensorFiles& files);

  const backend::ExpertFormat& format() const override { return format_; }
  // DATA_LOSS, naming file, layer and expert, also if the blob is damaged.
  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override;

 private:
  struct Layer {
    const StoredTensor* tensor = nullptr;           // null: a layer without experts
    std::vector<uint32_t> checksums;                // [experts, tiles]
    std::unique_ptr<std::atomic<bool>[]> verified;  // [experts, tiles]
  };

  EncodedExpertSource(const backend::ExpertFormat& format, int num_experts)
      : format_(format), num_experts_(num_experts), tiles_(backend::Bf12Tiles(format)) {}
  absl::Status AddLayer(int layer, const TensorFiles& files);
  absl::Status ReadTiles(const Layer& layer, int expert, int64_t first, int64_t end, Reread reread,
                         std::span<std::byte> blob) const;
  absl::Status CheckTile(const Layer& layer, int expert, int64_t tile,
                         std::span<const std::byte> blob) const;

  backend::ExpertFormat format_;
  int num_experts_;
  int64_t tiles_;  // of a blob
  std::vector<Layer> layers_;
};

}  // namespace moed::model
