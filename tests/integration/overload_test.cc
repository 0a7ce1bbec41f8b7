// More than the server can take: full queues, clients that do not read, ten thousand at once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>

#include "proto/google/rpc/error_details.pb.h"
#include "proto/google/rpc/status.pb.h"
#include "tests/integration/scripted_runner.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using grpc::StatusCode;

Options SmallQueue() {
  Options options;
  options.max_num_seqs = 1;
  options.max_queued_requests = 4;
  options.max_queued_tokens = 100;
  return options;
}

int64_t InEngine(TestServer& server) {
  const v1::ServingStats stats = server.Stats();
  return stats.running() + stats.waiting();
}

void ExpectRetryInfo(const grpc::ClientContext& context, const grpc::Status& status) {
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  google::rpc::RetryInfo retry;
  ASSERT_EQ(details.details_size(), 1);
  ASSERT_TRUE(details.details(0).UnpackTo(&retry));
  EXPECT_GT(retry.retry_delay().seconds(), 0);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
}

// Calls that a test starts together and counts by how they ended.
struct Calls {
  explicit Calls(int count) : calls(count) {}

  void StartAll(TestServer& server, const v1::GenerateRequest& request) {
    for (Call& call : calls) {
      server.inference().async()->GenerateOnce(&call.context, &request, &call.response,
                                               [this, &call](const grpc::Status& status) {
                                                 call.status = status;
                                                 if (status.ok()) ++served;
                                                 ++ended;
                                               });
    }
  }

  struct Call {
    grpc::ClientContext context;
    v1::GenerateOnceResponse response;
    grpc::Status status;
  };
  std::vector<Call> calls;
  std::atomic<int> served = 0;
  std::atomic<int> ended = 0;
};

TEST(OverloadTest, FullQueueRefusesWithRetryInfoAndHarmsNobody) {
  ScriptedRunner* runner = nullptr;
  TestServer server(SmallQueue(), ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  runner->SetGate(false);
  constexpr int kCalls = 20;
  Calls calls(kCalls);
  const v1::GenerateRequest request = TokensRequest(5, 3);
  calls.StartAll(server, request);
  EXPECT_TRUE(Eventually([&] { return InEngine(server) + calls.ended == kCalls; }));
  EXPECT_GE(calls.ended, kCalls - 10);
  EXPECT_EQ(calls.served, 0);
  runner->SetGate(true);
  EXPECT_TRUE(Eventually([&] { return calls.ended == kCalls; }));
  EXPECT_GE(calls.served, 4);
  for (const Calls::Call& call : calls.calls) {
    if (call.status.ok()) continue;
    EXPECT_EQ(call.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
    ExpectRetryInfo(call.context, call.status);
  }
}

TEST(OverloadTest, QueuedTokensAreBoundedToo) {
  ScriptedRunner* runner = nullptr;
  Options options = SmallQueue();
  options.max_queued_requests = 1000;
  TestServer server(options, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  runner->SetGate(false);
  constexpr int kCalls = 10;
  Calls calls(kCalls);
  const v1::GenerateRequest request = TokensRequest(60, 3);
  calls.StartAll(server, request);
  EXPECT_TRUE(Eventually([&] { return InEngine(server) + calls.ended == kCalls; }));
  EXPECT_GE(calls.ended, kCalls / 2);
  EXPECT_EQ(calls.served, 0);
  runner->SetGate(true);
  EXPECT_TRUE(Eventually([&] { return calls.ended == kCalls; }));
  EXPECT_GE(calls.served, 1);
  for (const Calls::Call& call : calls.calls) {
    if (call.status.ok()) continue;
    EXPECT_EQ(call.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  }
}

TEST(OverloadTest, ClientsThatStopReadingAreCutOffAndOthersServed) {
  ScriptedRunner* runner = nullptr;
  TestServer server({}, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  constexpr int kStalled = 20;
  std::deque<grpc::ClientContext> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> stalled;
  for (int i = 0; i < kStalled; ++i) {
    stalled.push_back(
        server.inference().Generate(&contexts.emplace_back(), TokensRequest(5, 1'000'000)));
  }
  const auto other = v1::Inference::NewStub(server.NewChannel());
  EXPECT_EQ(Generate(*other, TokensRequest(5, 2000)).tokens.size(), 2000u);
  EXPECT_TRUE(Eventually([&] { return InEngine(server) == 0; }));
  for (auto& reader : stalled) {
    EXPECT_EQ(ReadStream(*reader).status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  }
}

TEST(OverloadTest, TenThousandRequestsAtOnceAreServedOrRefused) {
  ScriptedRunner* runner = nullptr;
  TestServer server({}, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  constexpr int kRequests = 10'000;
  Calls calls(kRequests);
  const v1::GenerateRequest request = TokensRequest(5, 4);
  calls.StartAll(server, request);
  ASSERT_TRUE(Eventually([&] { return calls.ended == kRequests; }));
  for (const Calls::Call& call : calls.calls) {
    EXPECT_TRUE(call.status.ok() || call.status.error_code() == StatusCode::RESOURCE_EXHAUSTED)
        << call.status.error_message();
  }
  EXPECT_GT(calls.served, 0);
  EXPECT_EQ(InEngine(server), 0);
  EXPECT_TRUE(Generate(server.inference(), TokensRequest(2, 2)).status.ok());
}

TEST(OverloadTest, OversizedMessagesAreRefused) {
  ScriptedRunner* runner = nullptr;
  Options options;
  options.max_message_bytes = 1 << 16;
  TestServer server(options, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  EXPECT_EQ(Generate(server.inference(), TokensRequest(1 << 17, 1)).status.error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Generate(server.inference(), TokensRequest(2, 2)).status.ok());
}

TEST(OverloadTest, ClientsThatVanishFreeTheirRequests) {
  ScriptedRunner* runner = nullptr;
  TestServer server({}, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  for (int i = 0; i < 10; ++i) {
    const auto stub = v1::Inference::NewStub(server.NewChannel());
    grpc::ClientContext context;
    auto reader = stub->Generate(&context, TokensRequest(5, 1'000'000));
    v1::GenerateResponse response;
    ASSERT_TRUE(reader->Read(&response));
  }  // stream, call and connection go without a goodbye
  EXPECT_TRUE(Eventually([&] { return InEngine(server) == 0; }));
}

}  // namespace
}  // namespace moed::server
