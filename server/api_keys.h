// The bearer keys that clients may use, from a file that can be read anew while serving. Keys are
// kept as digests and compared in constant time, so that neither memory nor the time of an answer
// tells them. Thread-safe.
//
// The file: one key a line, perhaps followed by what it may do (inference, observe, admin); without
// that, inference and observe. Empty lines and lines that begin with # do not count.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/method_access.h"
#include "server/secret_digest.h"

namespace moed::server {

class ApiKeys {
 public:
  // INVALID_ARGUMENT naming file and line: too short a key, an unknown right, no key at all; errors
  // of reading it.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& path);

  // Reads the file again; after an error the old keys stay.
  absl::Status Reload();

  // Whether a client that presents `key` may use methods of `access`. UNAUTHENTICATED: no or an
  // unknown key; PERMISSION_DENIED: not this one.
  absl::Status Check(absl::string_view key, Access access) const;
  // Whether any key may do what `access` asks.
  bool AnyMay(Access access) const;
  size_t size() const;

 private:
  struct Entry {
    SecretDigest digest;
    std::vector<Access> rights;
  };

  explicit ApiKeys(std::string path) : path_(std::move(path)) {}
  static absl::StatusOr<Entry> ParseLine(absl::string_view line);
  static absl::StatusOr<std::vector<Entry>> Read(const std::string& path);

  const std::string path_;
  mutable absl::Mutex mutex_;
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moed::server
