// For tests of who gets in: a server with a certificate of its own, and clients that trust it or
// not, with keys or without.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/integration/certificates.h"
#include "tests/integration/scripted_runner.h"
#include "tests/integration/test_server.h"

namespace moed::server {

// Of the API, with all rights and to look only; of the admin port.
inline constexpr char kKey[] = "a-key-of-some-length";
inline constexpr char kObserverKey[] = "a-key-that-may-look";
inline constexpr char kAdminKey[] = "a-key-that-may-change";

void WriteFile(const std::string& path, const std::string& text);

// To a port of this machine, in plain text unless there are credentials.
std::shared_ptr<grpc::Channel> ChannelTo(int port,
                                         const std::shared_ptr<grpc::ChannelCredentials>&
                                             credentials = grpc::InsecureChannelCredentials());

// What a method answers to an empty message, and to a key if one is given.
grpc::StatusCode CallOf(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
                        const std::string& key = "");

class SecurityTest : public testing::Test {
 protected:
  SecurityTest();

  void UseKeys();
  void UseAdminKeys();
  // With what `options_` then says, until it has loaded.
  void Start();

  // As a client that trusts `authority`, with a certificate of its own if `pair` is given.
  static std::shared_ptr<grpc::ChannelCredentials> Credentials(
      const CertificateAuthority& authority, const CertificatePair* pair = nullptr);
  // As one that trusts the server's.
  std::shared_ptr<grpc::ChannelCredentials> Channel() const { return Credentials(authority_); }

  grpc::Status Ask(std::shared_ptr<grpc::ChannelCredentials> credentials,
                   const std::string& key = "");

  Options options_;
  CertificateAuthority authority_;
  CertificatePair pair_;
  ScriptedRunner* runner_ = nullptr;
  std::unique_ptr<TestServer> server_;
};

}  // namespace moed::server
