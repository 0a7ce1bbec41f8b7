#include "tests/integration/security_fixture.h"

#include <grpcpp/generic/generic_stub.h>

#include <chrono>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::server {

void WriteFile(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

std::shared_ptr<grpc::Channel> ChannelTo(
    int port, const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  return grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), credentials);
}

grpc::StatusCode CallOf(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
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

SecurityTest::SecurityTest()
    : authority_(testing::TempDir(), "first"), pair_(authority_.Issue("moed")) {
  options_.tls.certificate = pair_.certificate;
  options_.tls.private_key = pair_.private_key;
  options_.tls_reload_seconds = 1;
}

void SecurityTest::UseKeys() {
  options_.api_key_file = testing::TempDir() + "/keys";
  WriteFile(options_.api_key_file,
            absl::StrCat("# two clients\n", kKey, "\n\n", kObserverKey, " observe\n"));
}

void SecurityTest::UseAdminKeys() {
  options_.admin_key_file = testing::TempDir() + "/admin-keys";
  WriteFile(options_.admin_key_file, absl::StrCat(kAdminKey, " admin\n", kKey, "\n"));
}

void SecurityTest::Start() {
  server_ = std::make_unique<TestServer>(options_, ScriptedLoader(&runner_), Channel());
  server_->WaitUntilLoaded();
}

std::shared_ptr<grpc::ChannelCredentials> SecurityTest::Credentials(
    const CertificateAuthority& authority, const CertificatePair* pair) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = ReadWholeFile(authority.certificate());
  if (pair != nullptr) {
    options.pem_cert_chain = ReadWholeFile(pair->certificate);
    options.pem_private_key = ReadWholeFile(pair->private_key);
  }
  return grpc::SslCredentials(options);
}

grpc::Status SecurityTest::Ask(std::shared_ptr<grpc::ChannelCredentials> credentials,
                               const std::string& key) {
  const auto stub = v1::Inference::NewStub(server_->NewChannel(std::move(credentials)));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
  v1::GetModelResponse response;
  return stub->GetModel(&context, {}, &response);
}

}  // namespace moed::server
