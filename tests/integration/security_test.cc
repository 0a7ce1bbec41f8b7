// Who gets in: TLS and mutual TLS with rotation, keys, rights of methods, what other ports show.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/vllm/engine.grpc.pb.h"
#include "server/method_access.h"
#include "tests/integration/certificates.h"
#include "tests/integration/scripted_runner.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using grpc::StatusCode;
using grpc::health::v1::HealthCheckResponse;

constexpr char kKey[] = "a-key-of-some-length";
constexpr char kObserverKey[] = "a-key-that-may-look";
constexpr char kAdminKey[] = "a-key-that-may-change";

void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

class SecurityTest : public testing::Test {
 protected:
  SecurityTest() : authority_(testing::TempDir(), "first"), pair_(authority_.Issue("moed")) {
    options_.tls.certificate = pair_.certificate;
    options_.tls.private_key = pair_.private_key;
    options_.tls_reload_seconds = 1;
  }

  void UseKeys() {
    options_.api_key_file = testing::TempDir() + "/keys";
    Write(options_.api_key_file,
          absl::StrCat("# two clients\n", kKey, "\n\n", kObserverKey, " observe\n"));
  }

  void UseAdminKeys() {
    options_.admin_key_file = testing::TempDir() + "/admin-keys";
    Write(options_.admin_key_file, absl::StrCat(kAdminKey, " admin\n", kKey, "\n"));
  }

  void Start() {
    server_ = std::make_unique<TestServer>(options_, ScriptedLoader(&runner_), Channel());
    server_->WaitUntilLoaded();
  }

  // As a client that trusts `authority`, with a certificate of its own if `pair` is given.
  static std::shared_ptr<grpc::ChannelCredentials> Credentials(
      const CertificateAuthority& authority, const CertificatePair* pair = nullptr) {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = ReadWholeFile(authority.certificate());
    if (pair != nullptr) {
      options.pem_cert_chain = ReadWholeFile(pair->certificate);
      options.pem_private_key = ReadWholeFile(pair->private_key);
    }
    return grpc::SslCredentials(options);
  }

  std::shared_ptr<grpc::ChannelCredentials> Channel() const { return Credentials(authority_); }

  grpc::Status Ask(std::shared_ptr<grpc::ChannelCredentials> credentials,
                   const std::string& key = "") {
    const auto stub = v1::Inference::NewStub(server_->NewChannel(std::move(credentials)));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
    v1::GetModelResponse response;
    return stub->GetModel(&context, {}, &response);
  }

  Options options_;
  CertificateAuthority authority_;
  CertificatePair pair_;
  ScriptedRunner* runner_ = nullptr;
  std::unique_ptr<TestServer> server_;
};

TEST_F(SecurityTest, TlsServesThoseWhoTrustItAndNobodyInPlainText) {
  Start();
  EXPECT_TRUE(Ask(Credentials(authority_)).ok());
  EXPECT_EQ(Ask(grpc::InsecureChannelCredentials()).error_code(), StatusCode::UNAVAILABLE);
  const CertificateAuthority stranger(testing::TempDir(), "stranger");
  EXPECT_EQ(Ask(Credentials(stranger)).error_code(), StatusCode::UNAVAILABLE);
}

TEST_F(SecurityTest, MutualTlsNeedsACertificateOfTheClientsAuthority) {
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

TEST_F(SecurityTest, RotatedCertificatesAreUsedWithoutLosingARequest) {
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

TEST_F(SecurityTest, AnotherAuthorityTakesOverAfterRotation) {
  Start();
  CertificateAuthority second(testing::TempDir(), "second");
  const CertificatePair next = second.Issue("moed");
  ASSERT_EQ(std::rename(next.private_key.c_str(), pair_.private_key.c_str()), 0);
  ASSERT_EQ(std::rename(next.certificate.c_str(), pair_.certificate.c_str()), 0);
  EXPECT_TRUE(Eventually([&] { return Ask(Credentials(second)).ok(); }));
  EXPECT_FALSE(Ask(Credentials(authority_)).ok());
}

TEST_F(SecurityTest, KeysOpenWhatTheirRightsSay) {
  UseKeys();
  Start();
  EXPECT_EQ(Ask(Channel()).error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Ask(Channel(), "a-key-of-some-lengtH").error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Ask(Channel(), kObserverKey).error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(Ask(Channel(), kKey).ok());
}

TEST_F(SecurityTest, KeysAreReadAnewAndADamagedFileChangesNothing) {
  UseKeys();
  Start();
  Write(options_.api_key_file, "another-key-of-length\n");
  server_->Reload();
  EXPECT_EQ(Ask(Channel(), kKey).error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(Ask(Channel(), "another-key-of-length").ok());
  Write(options_.api_key_file, "short\n");
  server_->Reload();
  EXPECT_TRUE(Ask(Channel(), "another-key-of-length").ok());
}

using google::protobuf::UnknownFieldSet;

// The messages in field `number` of an encoded message.
std::vector<std::string> FieldValues(const std::string& encoded, int number) {
  UnknownFieldSet fields;
  EXPECT_TRUE(fields.ParseFromString(encoded));
  std::vector<std::string> values;
  for (int i = 0; i < fields.field_count(); ++i) {
    if (fields.field(i).number() == number) values.push_back(fields.field(i).length_delimited());
  }
  return values;
}

// The services that the server's own reflection lists. gRPC's library keeps the messages of
// reflection for itself, so they are written and read field by field.
std::vector<std::string> RegisteredServices(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", kKey));
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  const auto wait = [&] { EXPECT_TRUE(queue.Next(&tag, &ok) && ok); };
  const auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(nullptr);
  wait();
  const grpc::Slice list_services("\x3a\x00", 2);  // field 7, an empty string
  call->Write(grpc::ByteBuffer(&list_services, 1), nullptr);
  wait();
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  wait();
  grpc::Slice bytes;
  EXPECT_TRUE(response.DumpToSingleSlice(&bytes).ok());
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  const std::string encoded(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  std::vector<std::string> names;
  for (const std::string& list : FieldValues(encoded, 6)) {
    for (const std::string& service : FieldValues(list, 1)) {
      for (const std::string& name : FieldValues(service, 1)) names.push_back(name);
    }
  }
  return names;
}

std::vector<std::string> RegisteredMethods(const std::shared_ptr<grpc::Channel>& channel) {
  std::vector<std::string> methods;
  for (const std::string& name : RegisteredServices(channel)) {
    const auto* service =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(name);
    if (service == nullptr) {
      ADD_FAILURE() << name << " is served and not linked";
      continue;
    }
    for (int i = 0; i < service->method_count(); ++i) {
      methods.push_back(absl::StrCat("/", name, "/", service->method(i)->name()));
    }
  }
  return methods;
}

// What a method answers to an empty message, and to a key if one is given.
StatusCode CallOf(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
                  const std::string& key) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, path, grpc::ByteBuffer(), &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  return status.error_code();
}

StatusCode CallWithoutKey(const std::shared_ptr<grpc::Channel>& channel, const std::string& path) {
  return CallOf(channel, path, "");
}

TEST_F(SecurityTest, EveryRegisteredMethodIsListedAndNeedsAKeyUnlessOpen) {
  UseKeys();
  Start();
  const auto channel = server_->NewChannel(Channel());
  const std::vector<std::string> methods = RegisteredMethods(channel);
  EXPECT_GE(methods.size(), 15u);
  for (const std::string& method : methods) {
    const Access access = AccessOf(method);
    EXPECT_NE(access, Access::kNobody) << method << " is missing in server/method_access.cc";
    if (access == Access::kOpen) continue;
    EXPECT_EQ(CallWithoutKey(channel, method), StatusCode::UNAUTHENTICATED) << method;
  }
  EXPECT_EQ(CallWithoutKey(channel, "/moed.v1.Inference/NoSuchMethod"),
            StatusCode::UNAUTHENTICATED);
  EXPECT_NE(CallWithoutKey(channel, "/grpc.health.v1.Health/Check"), StatusCode::UNAUTHENTICATED);
}

std::vector<std::string> AdminMethods() {
  std::vector<std::string> methods;
  const auto* service = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(
      v1::Admin::service_full_name());
  for (int i = 0; service != nullptr && i < service->method_count(); ++i) {
    methods.push_back(absl::StrCat("/", service->full_name(), "/", service->method(i)->name()));
  }
  return methods;
}

// Whoever may not, must not learn whether a method exists, either.
void ExpectOnlyTheAdminKeyOpens(const std::shared_ptr<grpc::Channel>& channel) {
  const std::vector<std::string> methods = AdminMethods();
  EXPECT_GE(methods.size(), 5u);
  for (const std::string& method : methods) {
    EXPECT_EQ(AccessOf(method), Access::kAdmin) << method;
    EXPECT_EQ(CallWithoutKey(channel, method), StatusCode::UNAUTHENTICATED) << method;
    EXPECT_EQ(CallOf(channel, method, kObserverKey), StatusCode::UNAUTHENTICATED) << method;
    EXPECT_EQ(CallOf(channel, method, kKey), StatusCode::PERMISSION_DENIED) << method;
    // The scripted model has no experts to change: the call has come in.
    EXPECT_THAT(CallOf(channel, method, kAdminKey),
                testing::AnyOf(StatusCode::UNIMPLEMENTED, StatusCode::FAILED_PRECONDITION))
        << method;
  }
  EXPECT_EQ(CallWithoutKey(channel, "/moed.v1.Admin/NoSuchMethod"), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(CallOf(channel, "/moed.v1.Inference/GetModel", kAdminKey),
            StatusCode::PERMISSION_DENIED);
}

TEST_F(SecurityTest, TheAdminPortTakesItsOwnKeysOnLoopback) {
  UseAdminKeys();
  UseKeys();
  Start();
  ExpectOnlyTheAdminKeyOpens(grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->admin_port()),
                                                 grpc::InsecureChannelCredentials()));
  EXPECT_EQ(CallOf(server_->NewChannel(Channel()), AdminMethods().front(), kAdminKey),
            StatusCode::UNAUTHENTICATED);  // it is none of the API's
}

TEST_F(SecurityTest, BeyondLoopbackTheAdminPortSpeaksTls) {
  UseAdminKeys();
  options_.admin_host = "0.0.0.0";
  Start();
  const std::string address = absl::StrCat("127.0.0.1:", server_->admin_port());
  ExpectOnlyTheAdminKeyOpens(grpc::CreateChannel(address, Channel()));
  EXPECT_EQ(CallOf(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()),
                   AdminMethods().front(), kAdminKey),
            StatusCode::UNAVAILABLE);
}

TEST_F(SecurityTest, AnAdminPortInTheOpenIsRefused) {
  options_.port = 0;
  options_.metrics_port = 0;
  options_.admin_port = 0;
  options_.admin_host = "0.0.0.0";
  const auto refusal = [this] {
    return std::string(Server::Create(options_, ScriptedLoader(&runner_)).status().message());
  };
  EXPECT_THAT(refusal(), testing::HasSubstr("--admin-key-file"));
  UseAdminKeys();
  options_.tls = {};
  EXPECT_THAT(refusal(), testing::HasSubstr("--tls-cert"));
  Write(options_.admin_key_file, absl::StrCat(kKey, "\n"));
  EXPECT_THAT(refusal(), testing::HasSubstr("KEY admin"));
}

TEST_F(SecurityTest, AdminKeysAreReadAnew) {
  UseAdminKeys();
  Start();
  const auto channel = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->admin_port()),
                                           grpc::InsecureChannelCredentials());
  Write(options_.admin_key_file, "another-key-of-length admin\n");
  server_->Reload();
  EXPECT_EQ(CallOf(channel, AdminMethods().front(), kAdminKey), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(CallOf(channel, AdminMethods().front(), "another-key-of-length"),
            StatusCode::UNIMPLEMENTED);
}

TEST_F(SecurityTest, TheHealthPortShowsHealthAndNothingElse) {
  options_.health_port = 0;
  Start();
  const auto channel = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->health_port()),
                                           grpc::InsecureChannelCredentials());
  const auto health = grpc::health::v1::Health::NewStub(channel);
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service("moed.v1.Inference");
    HealthCheckResponse response;
    return health->Check(&context, request, &response).ok() &&
           response.status() == HealthCheckResponse::SERVING;
  }));
  for (const MethodAccess& method : AllMethods()) {
    if (method.path.find("/grpc.health.") == 0) continue;
    EXPECT_EQ(CallWithoutKey(channel, std::string(method.path)), StatusCode::UNIMPLEMENTED)
        << method.path;
  }
}

TEST_F(SecurityTest, TheGatewayPortServesTheEngineProtocolAlone) {
  UseKeys();
  options_.gateway_port = 0;
  Start();
  const auto channel = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->gateway_port()),
                                           grpc::InsecureChannelCredentials());
  const auto stub = vllm::grpc::engine::VllmEngine::NewStub(channel);
  grpc::ClientContext context;
  vllm::grpc::engine::GetModelInfoResponse response;
  EXPECT_TRUE(stub->GetModelInfo(&context, {}, &response).ok());
  for (const MethodAccess& method : AllMethods()) {
    if (method.path.find("/moed.") != 0 && method.path.find("/grpc.reflection.") != 0) continue;
    EXPECT_EQ(CallWithoutKey(channel, std::string(method.path)), StatusCode::UNIMPLEMENTED)
        << method.path;
  }
}

// "GET PATH" with further header lines, each with its end.
std::string GetWith(const std::string& path, const std::string& headers) {
  return absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\n", headers,
                      "Connection: close\r\n\r\n");
}

TEST_F(SecurityTest, MetricsAskForAUserOnEveryPath) {
  options_.metrics_auth_file = testing::TempDir() + "/users";
  // By `printf %s a-password-of-length | sha256sum`.
  Write(options_.metrics_auth_file,
        "prometheus:d849daf8b0aa9f10be3818bc2faecbf90a82eb8221d4c8adac7d5e963db0d5e8\n");
  Start();
  const auto answer = [this](const std::string& path, const std::string& headers) {
    return HttpAnswer(server_->metrics_port(), GetWith(path, headers));
  };
  // prometheus:a-password-of-length, and with another password.
  const std::string good = "Authorization: Basic cHJvbWV0aGV1czphLXBhc3N3b3JkLW9mLWxlbmd0aA==\r\n";
  const std::string bad = "Authorization: Basic cHJvbWV0aGV1czphLXBhc3N3b3JkLW9mLWxlbmd0SA==\r\n";
  for (const char* path : {"/", "/metrics", "/metrics/experts", "/status.json", "/no/such/path"}) {
    EXPECT_THAT(answer(path, ""), testing::StartsWith("HTTP/1.1 401 ")) << path;
    EXPECT_THAT(answer(path, ""), testing::HasSubstr("WWW-Authenticate: Basic")) << path;
    EXPECT_THAT(answer(path, bad), testing::StartsWith("HTTP/1.1 401 ")) << path;
    EXPECT_THAT(answer(path, good), testing::Not(testing::StartsWith("HTTP/1.1 401 "))) << path;
  }
  EXPECT_THAT(answer("/metrics", good), testing::StartsWith("HTTP/1.1 200 "));
}

TEST_F(SecurityTest, TheMetricsPortLimitsWhatItReads) {
  Start();
  const int port = server_->metrics_port();
  const std::string large = absl::StrCat("X-Large: ", std::string(20'000, 'a'), "\r\n");
  EXPECT_THAT(HttpAnswer(port, GetWith("/metrics", large)),
              testing::Not(testing::HasSubstr(" 200 ")));
  EXPECT_THAT(HttpAnswer(port, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
              testing::StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(HttpAnswer(port, GetWith("/../../etc/passwd", "")),
              testing::Not(testing::HasSubstr("root:")));
  EXPECT_THAT(HttpAnswer(port, GetWith("/metrics", "")), testing::StartsWith("HTTP/1.1 200 "));
}

TEST_F(SecurityTest, OversizedMessagesAreRefused) {
  options_.max_message_bytes = 64 << 10;
  Start();
  const auto stub = v1::Inference::NewStub(server_->NewChannel(Channel()));
  EXPECT_EQ(Generate(*stub, TokensRequest(100'000, 1)).status.error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Generate(*stub, TokensRequest(100, 1)).status.ok());
}

TEST_F(SecurityTest, OversizedMetadataIsRefused) {
  Start();
  const auto stub = v1::Inference::NewStub(server_->NewChannel(Channel()));
  grpc::ClientContext context;
  context.AddMetadata("x-large", std::string(40 << 10, 'a'));
  v1::GetModelResponse response;
  EXPECT_EQ(stub->GetModel(&context, {}, &response).error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Ask(Channel()).ok());
}

}  // namespace
}  // namespace moed::server
