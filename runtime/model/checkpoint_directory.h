// The folder of a checkpoint, and the rule for which files may be opened on its behalf: the names
// come out of an index that a stranger wrote. Immutable; any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/model/input_file.h"

namespace moed::model {

class CheckpointDirectory {
 public:
  // NOT_FOUND if `path` is no directory. `path` itself may be a symbolic link.
  static absl::StatusOr<CheckpointDirectory> Open(const std::string& path);

  const std::string& path() const { return path_; }
  std::string PathOf(std::string_view name) const;
  bool Has(std::string_view name) const;

  // Opens the regular file `name`, relative to the directory. INVALID_ARGUMENT if the name is
  // absolute or has "..", or if, symbolic links followed, the file lies outside. One outside place
  // is allowed: in Hugging Face's cache, <repository>/snapshots/<revision>/* are links to
  // <repository>/blobs/*.
  absl::StatusOr<InputFile> OpenFile(std::string_view name) const;

  // The whole of a small file. INVALID_ARGUMENT if it is larger than `max_bytes`.
  absl::StatusOr<std::string> ReadFile(std::string_view name, size_t max_bytes) const;

 private:
  CheckpointDirectory(std::string path, std::string real_path);

  std::string path_;        // as the operator gave it, for messages
  std::string real_path_;   // without symbolic links
  std::string blobs_path_;  // of a Hugging Face cache, or empty
};

}  // namespace moed::model
