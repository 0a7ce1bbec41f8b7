// Experts read from files straight into a device's memory, by way of a buffer of the reading
// thread: what a GPU pages from where host memory cannot hold every expert, or may not be pinned.
// Thread-safe; owned by the expert store.
#pragma once

#include "runtime/backend/backend.h"
#include "runtime/model/expert_source.h"

namespace moed::model {

class UploadedExperts : public ExpertSource {
 public:
  // Both must outlive this.
  UploadedExperts(const ExpertSource& source, backend::Backend& backend)
      : source_(source), backend_(backend) {}

  const backend::ExpertFormat& format() const override { return source_.format(); }
  // `blob` is device memory. In one piece: the first share is all of it. The errors of the source's
  // Read and of the copy.
  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override;

 private:
  const ExpertSource& source_;
  backend::Backend& backend_;
};

}  // namespace moed::model
