// A checkpoint whose weights are safetensors files.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/checkpoint_directory.h"
#include "runtime/model/families/family.h"

namespace moed::model {

// Opens the files and checks that every tensor the config implies is there, in its shape.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenFileCheckpoint(const CheckpointDirectory& directory,
                                                               const Family& family,
                                                               ModelConfig config,
                                                               GenerationDefaults generation);

}  // namespace moed::model
