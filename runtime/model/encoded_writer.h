// Writes the files of a converted checkpoint (encoded_layout.h) into a folder: dense tensors as
// they are, encoded experts, the index, and copies of whatever else lies beside the weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache/expert_key.h"
#include "runtime/backend/expert_format.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/checksummed_file.h"
#include "runtime/model/staging_directory.h"

namespace moed::model {

class EncodedWriter {
 public:
  // Makes the files; `source` and `directory` must outlive the writer. The errors of OutputFile.
  static absl::StatusOr<EncodedWriter> Create(const Checkpoint& source,
                                              const backend::ExpertFormat& format,
                                              const StagingDirectory& directory);

  int64_t dense_bytes() const { return dense_bytes_; }

  absl::Status WriteDense();
  // Each expert once, from any thread; `blob` is of the writer's format.
  absl::Status WriteExpert(cache::ExpertKey key, std::span<const std::byte> blob);
  // After all of them: completes the files, writes the index and copies the rest.
  absl::Status Finish();

 private:
  struct DenseTensor {
    DenseRole role;
    int layer = 0;
    ChecksummedTensor stored;
  };

  EncodedWriter(const Checkpoint& source, const backend::ExpertFormat& format,
                const StagingDirectory& directory);
  void ListDense();
  absl::Status CreateFiles();
  absl::Status WriteIndex() const;
  absl::Status CopyOtherFiles() const;
  absl::Status WriteFile(const std::string& name, const std::string& text) const;

  const Checkpoint& source_;
  const backend::ExpertFormat format_;
  const StagingDirectory& directory_;
  std::vector<DenseTensor> dense_;
  int64_t dense_bytes_ = 0;
  std::vector<ChecksummedFile> dense_file_;      // one
  std::map<int, ChecksummedFile> expert_files_;  // by layer
};

}  // namespace moed::model
