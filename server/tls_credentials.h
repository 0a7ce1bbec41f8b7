// TLS and mutual TLS of a listener, from PEM files that are read again when they change, so that
// cert-manager and the like can rotate them while calls run. Free functions.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace moed::server {

struct TlsFiles {
  std::string certificate;  // chain, PEM; empty: no TLS
  std::string private_key;  // PEM
  std::string client_ca;    // PEM; set: clients must present a certificate of it

  bool enabled() const { return !certificate.empty(); }
};

// FAILED_PRECONDITION, naming the file and what to do: not readable, not PEM, a key of another
// certificate, a certificate that has expired or is not yet valid.
absl::Status CheckTlsFiles(const TlsFiles& files, absl::Time now);

// Plain text without files. With them, handshakes from `reload_interval` after a change on use the
// new ones; connections that are there stay. REQUIRES: CheckTlsFiles is OK.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const TlsFiles& files,
                                                               absl::Duration reload_interval);

}  // namespace moed::server
