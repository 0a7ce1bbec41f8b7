// The users that may read the metrics listener, from a file that can be read anew while serving.
// Thread-safe.
//
// The file: `USER:DIGEST` a line, the digest being the password's SHA-256 in 64 hexadecimal digits.
// Empty lines and lines that begin with # do not count.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/secret_digest.h"

namespace moed::server {

class BasicAuth {
 public:
  // INVALID_ARGUMENT naming file and line: no user, no digest, nobody at all; errors of reading it.
  static absl::StatusOr<std::unique_ptr<BasicAuth>> Load(const std::string& path);

  // Reads the file again; after an error the old users stay.
  absl::Status Reload();

  // Whether an HTTP header `authorization` ("Basic " and base64 of USER:PASSWORD) names one of the
  // users with their password.
  bool Allows(absl::string_view authorization) const;
  size_t size() const;

 private:
  struct User {
    SecretDigest name;
    SecretDigest password;
  };

  explicit BasicAuth(std::string path) : path_(std::move(path)) {}
  static absl::StatusOr<User> ParseLine(absl::string_view line);
  static absl::StatusOr<std::vector<User>> Read(const std::string& path);

  const std::string path_;
  mutable absl::Mutex mutex_;
  std::vector<User> users_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moed::server
