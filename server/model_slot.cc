#include "server/model_slot.h"

#include <utility>

#include "server/grpc_status.h"

namespace moed::server {

void ModelSlot::Publish(std::unique_ptr<ServedModel> model) {
  serving_ = std::make_unique<const Serving>(std::move(model));
  published_.store(serving_.get(), std::memory_order_release);
}

absl::StatusOr<const Serving*> ModelSlot::Require() const {
  if (const Serving* serving = get()) return serving;
  return WithRetryDelay(absl::UnavailableError("loading: the checkpoint is still being read"),
                        absl::Seconds(5));
}

}  // namespace moed::server
