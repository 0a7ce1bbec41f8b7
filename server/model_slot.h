// Where the loaded model appears: the server listens before the checkpoint is read, and until
// Publish every call that needs the model is told to come back. Any thread.
#pragma once

#include <atomic>
#include <memory>

#include "absl/status/statusor.h"
#include "server/request_metrics.h"
#include "server/served_model.h"

namespace moed::server {

// A published model and what is measured of its requests.
struct Serving {
  explicit Serving(std::unique_ptr<ServedModel> served)
      : model(std::move(served)), metrics(model->description.max_model_len) {}

  const std::unique_ptr<ServedModel> model;
  mutable RequestMetrics metrics;
};

class ModelSlot {
 public:
  // Once.
  void Publish(std::unique_ptr<ServedModel> model);
  // Null while the checkpoint loads.
  const Serving* get() const { return published_.load(std::memory_order_acquire); }
  // UNAVAILABLE, with a retry delay, while the checkpoint loads.
  absl::StatusOr<const Serving*> Require() const;

 private:
  std::unique_ptr<const Serving> serving_;
  std::atomic<const Serving*> published_ = nullptr;
};

}  // namespace moed::server
