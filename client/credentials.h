// How moedctl and the client library prove who they are and whom they talk to: TLS, a certificate
// of their own, a bearer key. Free functions.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace moed::client {

struct SecurityOptions {
  bool tls = false;         // by the machine's authorities
  std::string ca_file;      // PEM: these instead; implies tls
  std::string cert_file;    // PEM, of the client, for mutual TLS; implies tls
  std::string key_file;     // its key
  std::string server_name;  // in the server's certificate, if it is not the address
  std::string api_key;
  std::string api_key_file;  // its first key; wins over api_key

  bool uses_tls() const { return tls || !ca_file.empty() || !cert_file.empty(); }
};

// A channel to `address`. INVALID_ARGUMENT: a file cannot be read or holds no key, or a key would
// go over the network in plain text.
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const std::string& address,
                                                           const SecurityOptions& security,
                                                           grpc::ChannelArguments arguments);

}  // namespace moed::client
