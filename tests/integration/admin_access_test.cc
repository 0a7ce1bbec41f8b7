// Who may change a running server: the keys of the admin port, and where it may listen.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/method_access.h"
#include "tests/integration/security_fixture.h"

namespace moed::server {
namespace {

using grpc::StatusCode;

class AdminAccessTest : public SecurityTest {};

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
    EXPECT_EQ(CallOf(channel, method), StatusCode::UNAUTHENTICATED) << method;
    EXPECT_EQ(CallOf(channel, method, kObserverKey), StatusCode::UNAUTHENTICATED) << method;
    EXPECT_EQ(CallOf(channel, method, kKey), StatusCode::PERMISSION_DENIED) << method;
    // The scripted model has no experts to change: the call has come in.
    EXPECT_THAT(CallOf(channel, method, kAdminKey),
                testing::AnyOf(StatusCode::UNIMPLEMENTED, StatusCode::FAILED_PRECONDITION))
        << method;
  }
  EXPECT_EQ(CallOf(channel, "/moed.v1.Admin/NoSuchMethod"), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(CallOf(channel, "/moed.v1.Inference/GetModel", kAdminKey),
            StatusCode::PERMISSION_DENIED);
}

TEST_F(AdminAccessTest, TheAdminPortTakesItsOwnKeysOnLoopback) {
  UseAdminKeys();
  UseKeys();
  Start();
  ExpectOnlyTheAdminKeyOpens(ChannelTo(server_->admin_port()));
  EXPECT_EQ(CallOf(server_->NewChannel(Channel()), AdminMethods().front(), kAdminKey),
            StatusCode::UNAUTHENTICATED);  // it is none of the API's
}

TEST_F(AdminAccessTest, BeyondLoopbackTheAdminPortSpeaksTls) {
  UseAdminKeys();
  options_.admin_host = "0.0.0.0";
  Start();
  ExpectOnlyTheAdminKeyOpens(ChannelTo(server_->admin_port(), Channel()));
  EXPECT_EQ(CallOf(ChannelTo(server_->admin_port()), AdminMethods().front(), kAdminKey),
            StatusCode::UNAVAILABLE);
}

TEST_F(AdminAccessTest, AnAdminPortInTheOpenIsRefused) {
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
  WriteFile(options_.admin_key_file, absl::StrCat(kKey, "\n"));
  EXPECT_THAT(refusal(), testing::HasSubstr("KEY admin"));
}

TEST_F(AdminAccessTest, AdminKeysAreReadAnew) {
  UseAdminKeys();
  Start();
  const auto channel = ChannelTo(server_->admin_port());
  WriteFile(options_.admin_key_file, "another-key-of-length admin\n");
  server_->Reload();
  EXPECT_EQ(CallOf(channel, AdminMethods().front(), kAdminKey), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(CallOf(channel, AdminMethods().front(), "another-key-of-length"),
            StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace moed::server
