// Assembles what serves a model from the runtime's parts: checkpoint, backend, runner, tokenizer,
// template, engine. The only place that knows how they fit together.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "server/options.h"
#include "server/served_model.h"

namespace moed::server {

// Reads the checkpoint, showing how far it is, and starts the engine. Takes as long as the disk
// does. Errors of OpenCheckpoint, ModelRunner::Create and LoadTokenizer, with their remedies;
// UNIMPLEMENTED or UNAVAILABLE for a device that cannot be had.
absl::StatusOr<std::unique_ptr<ServedModel>> LoadModel(const Options& options);

}  // namespace moed::server
