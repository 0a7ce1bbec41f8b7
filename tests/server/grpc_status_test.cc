#include "server/grpc_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/google/rpc/error_details.pb.h"
#include "proto/google/rpc/status.pb.h"

namespace moed::server {
namespace {

google::rpc::Status Details(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  return details;
}

TEST(GrpcStatusTest, KeepsCodeAndMessage) {
  const grpc::Status status = ToGrpcStatus(absl::NotFoundError("no such model"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "no such model");
  EXPECT_TRUE(status.error_details().empty());
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
}

TEST(GrpcStatusTest, NamesTheWrongFieldInBadRequest) {
  const grpc::Status status = ToGrpcStatus(InvalidField("sampling.top_p", "is 2"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "sampling.top_p: is 2");
  const google::rpc::Status details = Details(status);
  EXPECT_EQ(details.code(), 3);
  ASSERT_EQ(details.details_size(), 1);
  google::rpc::BadRequest bad_request;
  ASSERT_TRUE(details.details(0).UnpackTo(&bad_request));
  ASSERT_EQ(bad_request.field_violations_size(), 1);
  EXPECT_EQ(bad_request.field_violations(0).field(), "sampling.top_p");
}

TEST(GrpcStatusTest, TellsWhenToRetry) {
  const grpc::Status status = ToGrpcStatus(
      WithRetryDelay(absl::ResourceExhaustedError("queue full"), absl::Milliseconds(1500)));
  const google::rpc::Status details = Details(status);
  google::rpc::RetryInfo retry;
  ASSERT_EQ(details.details_size(), 1);
  ASSERT_TRUE(details.details(0).UnpackTo(&retry));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 500'000'000);
}

TEST(GrpcStatusTest, HidesCausesInsideTheServer) {
  for (const absl::Status& status :
       {absl::InternalError("/models/a.safetensors"), absl::DataLossError("/models/b"),
        absl::UnknownError("0x7ffe"), absl::UnavailableError("/dev/nvidia0")}) {
    EXPECT_THAT(std::string(HideInternals(status).message()),
                testing::Not(testing::ContainsRegex("/|0x")));
  }
  EXPECT_EQ(HideInternals(absl::DataLossError("x")).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(HideInternals(absl::InvalidArgumentError("n is 0")).message(), "n is 0");
}

}  // namespace
}  // namespace moed::server
