// The certificate of a server that runs on OpenSSL: handshakes use the files as they are now, so
// that cert-manager and the like can rotate them. gRPC's listeners have their own
// (MakeServerCredentials). Used from the threads that shake hands.
#pragma once

#include <openssl/ssl.h>
#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/tls_credentials.h"

namespace moed::server {

class RotatingCertificate {
 public:
  // Looks at the files every `interval` at most, when a client comes. Errors of CheckTlsFiles; a
  // change that is wrong later goes to the log, and the old pair stays.
  static absl::StatusOr<std::unique_ptr<RotatingCertificate>> Load(TlsFiles files,
                                                                   absl::Duration interval);

  // Handshakes of `context`, which this outlives, present it, and none is older than TLS 1.2.
  void Install(SSL_CTX* context);

 private:
  // What tells one version of a file from the next.
  struct Version {
    ino_t inode = 0;
    time_t seconds = 0;
    int64_t nanoseconds = 0;
    friend bool operator==(const Version&, const Version&) = default;
  };
  using Pair = std::shared_ptr<SSL_CTX>;  // holds chain and key, shakes no hands

  RotatingCertificate(TlsFiles files, absl::Duration interval)
      : files_(std::move(files)), interval_(interval) {}
  static Version VersionOf(const std::string& file);
  static absl::StatusOr<Pair> Read(const TlsFiles& files);
  // OpenSSL's callback; `self` is the RotatingCertificate.
  static int Present(SSL* handshake, void* self);
  Pair Current();

  const TlsFiles files_;
  const absl::Duration interval_;
  absl::Mutex mutex_;
  Pair pair_ ABSL_GUARDED_BY(mutex_);
  Version certificate_version_ ABSL_GUARDED_BY(mutex_);
  Version key_version_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_look_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace moed::server
