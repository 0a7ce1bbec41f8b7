#include "client/credentials.h"

#include <grpcpp/support/client_interceptor.h>

#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace moed::client {
namespace {

using grpc::experimental::InterceptionHookPoints;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  if (path.empty()) return std::string();
  const std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  if (file && !text.str().empty()) return text.str();
  return absl::InvalidArgumentError(absl::StrCat(path, " cannot be read or is empty"));
}

// The first word of the first line that is not a comment.
absl::StatusOr<std::string> ReadKey(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  std::istringstream lines(*text);
  for (std::string line, key; std::getline(lines, line);) {
    std::istringstream words(line);
    if (words >> key && key[0] != '#') return key;
  }
  return absl::InvalidArgumentError(absl::StrCat(path, " holds no key"));
}

// Adds the key to each call.
class KeyInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit KeyInterceptor(std::string authorization) : authorization_(std::move(authorization)) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->insert({"authorization", authorization_});
    }
    methods->Proceed();
  }

 private:
  const std::string authorization_;
};

class KeyInterceptorFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit KeyInterceptorFactory(const std::string& key) : authorization_("Bearer " + key) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo* /*info*/) override {
    return new KeyInterceptor(authorization_);
  }

 private:
  const std::string authorization_;
};

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const SecurityOptions& security) {
  if (!security.uses_tls()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  for (const auto& [file, text] : {std::pair{&security.ca_file, &options.pem_root_certs},
                                   std::pair{&security.cert_file, &options.pem_cert_chain},
                                   std::pair{&security.key_file, &options.pem_private_key}}) {
    absl::StatusOr<std::string> contents = ReadFile(*file);
    if (!contents.ok()) return contents.status();
    *text = *std::move(contents);
  }
  return grpc::SslCredentials(options);
}

bool IsLoopback(const std::string& address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]") || absl::StartsWith(address, "unix:");
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const std::string& address,
                                                           const SecurityOptions& security,
                                                           grpc::ChannelArguments arguments) {
  std::string key = security.api_key;
  if (!security.api_key_file.empty()) {
    absl::StatusOr<std::string> read = ReadKey(security.api_key_file);
    if (!read.ok()) return read.status();
    key = *std::move(read);
  }
  if (!key.empty() && !security.uses_tls() && !IsLoopback(address)) {
    return absl::InvalidArgumentError(absl::StrCat("the key would go to ", address,
                                                   " in plain text; add --tls or --tls-ca FILE"));
  }
  auto credentials = MakeCredentials(security);
  if (!credentials.ok()) return credentials.status();
  if (!security.server_name.empty()) arguments.SetSslTargetNameOverride(security.server_name);
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (!key.empty()) interceptors.push_back(std::make_unique<KeyInterceptorFactory>(key));
  return grpc::experimental::CreateCustomChannelWithInterceptors(address, *credentials, arguments,
                                                                 std::move(interceptors));
}

}  // namespace moed::client
