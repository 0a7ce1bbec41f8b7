#include "runtime/model/uploaded_experts.h"

#include <vector>

namespace moed::model {

absl::Status UploadedExperts::Read(cache::ExpertKey key, ReadShare share,
                                   std::span<std::byte> blob) const {
  if (share.index != 0) return absl::OkStatus();
  thread_local std::vector<std::byte> buffer;
  if (buffer.size() < blob.size()) buffer.resize(blob.size());
  const std::span<std::byte> staged(buffer.data(), blob.size());
  absl::Status status = source_.Read(key, {.reread = share.reread}, staged);
  if (!status.ok()) return status;
  return backend_.Upload(staged, blob.data(), share.after);
}

}  // namespace moed::model
