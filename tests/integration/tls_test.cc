// TLS and mutual TLS of the API, and certificates that are replaced while it serves.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "tests/integration/security_fixture.h"

namespace moed::server {
namespace {

using grpc::StatusCode;

class TlsTest : public SecurityTest {};

TEST_F(TlsTest, TlsServesThoseWhoTrustItAndNobodyInPlainText) {
  Start();
  EXPECT_TRUE(Ask(Credentials(authority_)).ok());
  EXPECT_EQ(Ask(grpc::InsecureChannelCredentials()).error_code(), StatusCode::UNAVAILABLE);
  const CertificateAuthority stranger(testing::TempDir(), "stranger");
  EXPECT_EQ(Ask(Credentials(stranger)).error_code(), StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, MutualTlsNeedsACertificateOfTheClientsAuthority) {
  CertificateAuthority clients(testing::TempDir(), "clients");
  CertificateAuthority strangers(testing::TempDir(), "strangers");
  const CertificatePair client = clients.Issue("client");
  const CertificatePair stranger = strangers.Issue("client");
  options_.tls.client_ca = clients.certificate();
  server_ = std::make_unique<TestServer>(options_, ScriptedLoader(&runner_),
                                         Credentials(authority_, &client));
  EXPECT_TRUE(Eventually([&] { return Ask(Credentials(authority_, &client)).ok(); }));
  EXPECT_EQ(Ask(Credentials(authority_)).error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(Ask(Credentials(authority_, &stranger)).error_code(), StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, RotatedCertificatesAreUsedWithoutLosingARequest) {
  Start();
  CertificateAuthority second(testing::TempDir(), "second");
  grpc::SslCredentialsOptions trust;
  trust.pem_root_certs =
      ReadWholeFile(authority_.certificate()) + ReadWholeFile(second.certificate());
  std::atomic<bool> stop = false;
  std::atomic<int> served = 0, lost = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&, keep = i % 2 == 0] {
      auto stub = v1::Inference::NewStub(server_->NewChannel(grpc::SslCredentials(trust)));
      while (!stop) {
        Generate(*stub, TokensRequest(5, 20)).status.ok() ? ++served : ++lost;
        // Some connections stay, others are made anew all the time.
        if (!keep) stub = v1::Inference::NewStub(server_->NewChannel(grpc::SslCredentials(trust)));
      }
    });
  }
  // Back and forth, while requests come: each time until new connections see the other.
  for (CertificateAuthority* next : {&second, &authority_, &second}) {
    const CertificatePair pair = next->Issue("next");
    EXPECT_EQ(std::rename(pair.private_key.c_str(), pair_.private_key.c_str()), 0);
    EXPECT_EQ(std::rename(pair.certificate.c_str(), pair_.certificate.c_str()), 0);
    const int before = served;
    EXPECT_TRUE(Eventually([&] { return Ask(Credentials(*next)).ok(); }));
    EXPECT_TRUE(Eventually([&] { return served > before; }));
  }
  stop = true;
  for (std::thread& client : clients) client.join();
  EXPECT_GT(served, 0);
  EXPECT_EQ(lost, 0);
}

TEST_F(TlsTest, AnotherAuthorityTakesOverAfterRotation) {
  Start();
  CertificateAuthority second(testing::TempDir(), "second");
  const CertificatePair next = second.Issue("moed");
  ASSERT_EQ(std::rename(next.private_key.c_str(), pair_.private_key.c_str()), 0);
  ASSERT_EQ(std::rename(next.certificate.c_str(), pair_.certificate.c_str()), 0);
  EXPECT_TRUE(Eventually([&] { return Ask(Credentials(second)).ok(); }));
  EXPECT_FALSE(Ask(Credentials(authority_)).ok());
}

}  // namespace
}  // namespace moed::server
