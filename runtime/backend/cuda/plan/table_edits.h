// The host's edits of the table of experts on their way to the device: sorted by layer, so that
// each layer's thread finds its own, uploaded and applied in the stream's order. Owned by the
// device-driven experts; engine thread.
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "absl/status/status.h"
#include "runtime/backend/cuda/device/list_upload.h"
#include "runtime/backend/cuda/plan/expert_table.h"
#include "runtime/backend/device_experts.h"

namespace moed::backend {

class TableEdits {
 public:
  // Issues the edits of `layers` [num_layers], in device memory; those of a layer are made in their
  // order. RESOURCE_EXHAUSTED: memory for the list.
  absl::Status Apply(std::span<const ExpertEdit> edits, const ExpertTableLayer* layers,
                     size_t num_layers, cudaStream_t stream);

 private:
  ListUpload upload_;
};

}  // namespace moed::backend
