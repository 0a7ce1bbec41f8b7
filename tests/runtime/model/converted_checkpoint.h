// A golden checkpoint written anew by ConvertCheckpoint, in a folder that goes away with its owner.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "runtime/model/checkpoint.h"
#include "runtime/model/convert_checkpoint.h"
#include "tests/runtime/model/checkpoint_files.h"

namespace moed::model {

class ConvertedCheckpoint {
 public:
  // Of the checkpoint in `source`, whether it pays or not.
  explicit ConvertedCheckpoint(const std::string& source);

  std::string directory() const { return directory_.path() / "bf12"; }
  std::filesystem::path file(const std::string& name) const {
    return directory_.path() / "bf12" / name;
  }
  const ConvertResult& result() const { return *result_; }

 private:
  TemporaryDirectory directory_;
  absl::StatusOr<ConvertResult> result_;
};

// Opens a checkpoint that must be good.
std::unique_ptr<Checkpoint> OpenGood(const std::string& directory);

}  // namespace moed::model
