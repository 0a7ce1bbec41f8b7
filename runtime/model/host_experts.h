// Every expert of a model in host memory that the device can read: where cold experts are computed
// from, and where slots in device memory are filled from. Filled once at start, immutable after;
// owned by the expert store.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/load_progress.h"

namespace moed::model {

class HostExperts : public ExpertSource {
 public:
  // Reads all experts of `source` by `io_threads` threads. `backend` must outlive this.
  // RESOURCE_EXHAUSTED: no memory; FAILED_PRECONDITION: none that the device can read; the errors
  // of source.Read.
  static absl::StatusOr<std::unique_ptr<HostExperts>> Load(const ExpertSource& source,
                                                           std::span<const int> experts_per_layer,
                                                           int io_threads,
                                                           const LoadProgress& progress,
                                                           backend::Backend& backend);

  const backend::ExpertFormat& format() const override { return format_; }
  // Copies into device memory, in one piece: the first share is all of it. Any thread.
  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override;

  // Layer by layer, format().blob_bytes() each.
  const std::byte* data() const { return buffer_.data(); }

 private:
  HostExperts(const backend::ExpertFormat& format, std::span<const int> experts_per_layer,
              backend::Buffer buffer, backend::Backend& backend);
  std::span<std::byte> Blob(cache::ExpertKey key) const;

  backend::ExpertFormat format_;
  std::vector<size_t> first_expert_;  // [layers]
  backend::Buffer buffer_;
  backend::Backend& backend_;
};

}  // namespace moed::model
