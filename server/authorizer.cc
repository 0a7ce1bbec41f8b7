#include "server/authorizer.h"

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/string_view.h"
#include "server/grpc_status.h"
#include "server/log.h"

namespace moed::server {
namespace {

absl::string_view Find(const grpc::AuthMetadataProcessor::InputMetadata& metadata,
                       const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return {};
  return {found->second.data(), found->second.size()};
}

// The token of "Bearer TOKEN", whose first word has no case (RFC 6750); empty if there is none.
absl::string_view BearerToken(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "bearer ";
  if (authorization.size() < kScheme.size()) return {};
  if (absl::AsciiStrToLower(authorization.substr(0, kScheme.size())) != kScheme) return {};
  return authorization.substr(kScheme.size());
}

}  // namespace

grpc::Status Authorizer::Process(const InputMetadata& metadata, grpc::AuthContext* /*context*/,
                                 OutputMetadata* consumed, OutputMetadata* /*response*/) {
  const absl::string_view path = Find(metadata, ":path");
  const Access access = AccessOf(path);
  if (access == Access::kOpen) return grpc::Status::OK;
  const absl::string_view authorization = Find(metadata, "authorization");
  // Nobody's business behind this point, and not to be found in a core dump's copies.
  if (!authorization.empty()) {
    consumed->insert({"authorization", std::string(authorization)});
  }
  const absl::Status status = keys_.Check(BearerToken(authorization), access);
  if (status.ok()) return grpc::Status::OK;
  LogEvent(LogLevel::kDebug, "call refused",
           {{"method", path}, {"code", CodeName(static_cast<int>(status.code()))}});
  return ToGrpcStatus(status);
}

std::shared_ptr<grpc::ServerCredentials> MakeKeyedCredentials(const TlsFiles& tls,
                                                              absl::Duration reload_interval,
                                                              const ApiKeys* keys) {
  // Local ones are plain text too, but take a processor.
  const std::shared_ptr<grpc::ServerCredentials> credentials =
      tls.enabled() ? MakeServerCredentials(tls, reload_interval)
                    : grpc::experimental::LocalServerCredentials(LOCAL_TCP);
  credentials->SetAuthMetadataProcessor(std::make_shared<Authorizer>(keys));
  return credentials;
}

}  // namespace moed::server
