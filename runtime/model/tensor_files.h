// All tensors of a checkpoint by name, whichever of its safetensors files they lie in. Nothing of
// their values is held in memory. Immutable after Open; reading is thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/model/checkpoint_directory.h"
#include "runtime/model/input_file.h"
#include "runtime/model/reread.h"
#include "runtime/model/safetensors_header.h"

namespace moed::model {

// A tensor and the file it lies in.
struct StoredTensor {
  TensorEntry entry;
  const InputFile* file = nullptr;
  const SafetensorsMetadata* metadata = nullptr;  // of that file

  // Fills `destination` with bytes [offset, offset + size) of the tensor. DATA_LOSS, naming file
  // and tensor, if the file ends before.
  absl::Status Read(uint64_t offset, std::span<std::byte> destination,
                    Reread reread = Reread::kLikely) const;
};

class TensorFiles {
 public:
  // Opens model.safetensors, or else the files that model.safetensors.index.json names. NOT_FOUND
  // without either; DATA_LOSS if one is damaged or lacks a tensor of the index.
  static absl::StatusOr<TensorFiles> Open(const CheckpointDirectory& directory);
  // One file alone.
  static absl::StatusOr<TensorFiles> OpenFile(const CheckpointDirectory& directory,
                                              std::string_view name);

  // Null if there is none of that name.
  const StoredTensor* Find(std::string_view name) const;
  // The first of `names` that is there. INVALID_ARGUMENT, naming it, if none is, or if its shape or
  // dtype (bf16, f16 and f32 are good) is another.
  absl::StatusOr<const StoredTensor*> Require(const std::vector<std::string>& names,
                                              const std::vector<int64_t>& shape) const;

 private:
  absl::Status OpenIndexed(const CheckpointDirectory& directory);
  struct OpenedFile {
    InputFile file;
    SafetensorsMetadata metadata;
  };

  // Opens one file and returns its tensors.
  absl::StatusOr<std::vector<StoredTensor>> AddFile(const CheckpointDirectory& directory,
                                                    std::string_view name);

  std::vector<std::unique_ptr<OpenedFile>> files_;
  absl::flat_hash_map<std::string, StoredTensor> tensors_;
};

}  // namespace moed::model
