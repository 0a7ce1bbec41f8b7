// A folder that comes into being whole or not at all: it is filled under another name beside its
// destination, and takes its name only when everything in it is on the disk. Dropped before that,
// it is removed with all it holds.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moed::model {

class StagingDirectory {
 public:
  // ALREADY_EXISTS if anything is at `destination`; NOT_FOUND or PERMISSION_DENIED, naming the
  // folder above it, if nothing can be made there.
  static absl::StatusOr<StagingDirectory> Create(std::string destination);

  StagingDirectory(StagingDirectory&& other) noexcept;
  StagingDirectory& operator=(StagingDirectory&& other) = delete;
  ~StagingDirectory();

  // Where to write the file `name`.
  std::string PathOf(std::string_view name) const;

  // Gives the folder its name. Its files must be synced. ALREADY_EXISTS if somebody was faster.
  absl::Status Commit();

 private:
  StagingDirectory(std::string destination, std::string path);

  std::string destination_;
  std::string path_;  // empty once committed or moved from
};

}  // namespace moed::model
