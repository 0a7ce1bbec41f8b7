// Keys and what their rights open: of every method that the server offers.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/method_access.h"
#include "tests/integration/security_fixture.h"

namespace moed::server {
namespace {

using google::protobuf::UnknownFieldSet;
using grpc::StatusCode;

class ApiAccessTest : public SecurityTest {};

TEST_F(ApiAccessTest, KeysOpenWhatTheirRightsSay) {
  UseKeys();
  Start();
  EXPECT_EQ(Ask(Channel()).error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Ask(Channel(), "a-key-of-some-lengtH").error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Ask(Channel(), kObserverKey).error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(Ask(Channel(), kKey).ok());
}

TEST_F(ApiAccessTest, KeysAreReadAnewAndADamagedFileChangesNothing) {
  UseKeys();
  Start();
  WriteFile(options_.api_key_file, "another-key-of-length\n");
  server_->Reload();
  EXPECT_EQ(Ask(Channel(), kKey).error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(Ask(Channel(), "another-key-of-length").ok());
  WriteFile(options_.api_key_file, "short\n");
  server_->Reload();
  EXPECT_TRUE(Ask(Channel(), "another-key-of-length").ok());
}

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

TEST_F(ApiAccessTest, EveryRegisteredMethodIsListedAndNeedsAKeyUnlessOpen) {
  UseKeys();
  Start();
  const auto channel = server_->NewChannel(Channel());
  const std::vector<std::string> methods = RegisteredMethods(channel);
  EXPECT_GE(methods.size(), 15u);
  for (const std::string& method : methods) {
    const Access access = AccessOf(method);
    EXPECT_NE(access, Access::kNobody) << method << " is missing in server/method_access.cc";
    if (access == Access::kOpen) continue;
    EXPECT_EQ(CallOf(channel, method), StatusCode::UNAUTHENTICATED) << method;
  }
  EXPECT_EQ(CallOf(channel, "/moed.v1.Inference/NoSuchMethod"), StatusCode::UNAUTHENTICATED);
  EXPECT_NE(CallOf(channel, "/grpc.health.v1.Health/Check"), StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace moed::server
