#include "client/client.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "client/bench_run.h"
#include "tests/client/fake_server.h"

namespace moed::client {
namespace {

std::unique_ptr<Client> ConnectTo(const FakeServer& server) {
  auto client = Client::Connect({.address = server.address()});
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

TEST(ClientTest, StreamsResponsesInOrder) {
  FakeServer server;
  server.responses = {DeltaOf(0, "a", {1}), DeltaOf(0, "b", {2}),
                      FinishedOf(1, v1::FINISH_REASON_STOP)};
  std::string text;
  Call call;
  const absl::Status status =
      ConnectTo(server)->Generate({}, call, [&](const v1::GenerateResponse& response) {
        text += response.has_finished() ? "." : response.delta().text();
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(text, "ab.");
}

TEST(ClientTest, CarriesTheServersCodeAndMessage) {
  FakeServer server;
  server.end = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue full");
  Call call;
  const absl::Status status = ConnectTo(server)->Chat({}, call, [](const auto&) {});
  EXPECT_EQ(status, absl::ResourceExhaustedError("queue full"));
}

TEST(ClientTest, NobodyListeningIsUnavailable) {
  const auto client =
      Client::Connect({.address = "127.0.0.1:1", .timeout = absl::Milliseconds(100)});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(client.status().message().find("127.0.0.1:1"), std::string::npos);
}

TEST(ClientTest, CallsPassOverReplicasThatAreNotReady) {
  FakeServer ready, draining;
  draining.ready = false;
  const auto client =
      Client::Connect({.address = absl::StrCat("ipv4:", draining.address(), ",", ready.address()),
                       .ready_replicas_only = true});
  ASSERT_TRUE(client.ok()) << client.status();
  for (int i = 0; i < 6; ++i) {
    Call call;
    EXPECT_TRUE((*client)->Generate({}, call, [](const auto&) {}).ok());
  }
  EXPECT_EQ(ready.generate_count, 6);
  EXPECT_EQ(draining.generate_count, 0);
}

TEST(ClientTest, AServerThatIsNotReadyIsUnavailableToWhoNeedsIt) {
  FakeServer loading;
  loading.ready = false;
  const auto client = Client::Connect({.address = loading.address(),
                                       .timeout = absl::Milliseconds(100),
                                       .ready_replicas_only = true});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(client.status().message().find("no ready server"), std::string::npos);
  EXPECT_TRUE(Client::Connect({.address = loading.address()}).ok());
}

TEST(ClientTest, ADeadlineEndsTheCall) {
  FakeServer server;
  server.hang = true;
  Call call(absl::Milliseconds(50));
  const absl::Status status = ConnectTo(server)->Generate({}, call, [](const auto&) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(ClientTest, CancelFromAnotherThreadEndsTheCallAtBothEnds) {
  FakeServer server;
  server.responses = {DeltaOf(0, "a", {1})};
  server.hang = true;
  const std::unique_ptr<Client> client = ConnectTo(server);
  Call call;
  absl::Notification first;
  std::thread canceller([&] {
    first.WaitForNotification();
    call.Cancel();
  });
  const absl::Status status =
      client->Generate({}, call, [&](const v1::GenerateResponse&) { first.Notify(); });
  canceller.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  while (!server.saw_cancel) std::this_thread::yield();
}

TEST(ClientTest, StartGenerateReportsWithoutBlocking) {
  FakeServer server;
  server.responses = {DeltaOf(0, "a", {1}), FinishedOf(1, v1::FINISH_REASON_STOP)};
  const std::unique_ptr<Client> client = ConnectTo(server);
  int responses = 0;
  absl::Status status = absl::UnknownError("not called");
  absl::Notification done;
  client->StartGenerate(
      {}, std::make_shared<Call>(), [&](const v1::GenerateResponse&) { ++responses; },
      [&](const absl::Status& end) {
        status = end;
        done.Notify();
      });
  done.WaitForNotification();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(responses, 2);
}

TEST(ClientTest, WatchesExperts) {
  FakeServer server;
  server.stats.set_slots(7);
  int frames = 0;
  Call call;
  const absl::Status status = ConnectTo(server)->WatchExperts(
      {}, call, [&](const v1::ExpertStats& stats) { frames += stats.slots() == 7; });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(frames, 3);
}

TEST(BenchRunTest, RunsEveryRequestInBothKindsOfLoop) {
  FakeServer server;
  server.responses = {DeltaOf(0, "", {1, 2}), DeltaOf(0, "", {3}),
                      FinishedOf(1, v1::FINISH_REASON_LENGTH)};
  const std::unique_ptr<Client> client = ConnectTo(server);
  for (const int concurrency : {0, 4}) {
    BenchPlan plan;
    plan.concurrency = concurrency;
    plan.requests.resize(40);
    std::atomic<int64_t> finished = 0;
    const auto records = RunBench(plan, absl::InfiniteDuration(), *client, finished);
    EXPECT_EQ(finished, 40);
    ASSERT_EQ(records.size(), 40u);
    for (const BenchRecord& record : records) {
      EXPECT_TRUE(record.status.ok());
      EXPECT_EQ(record.token_seconds.size(), 3u);
      EXPECT_GE(record.end_seconds, record.token_seconds.back());
      EXPECT_EQ(record.usage.completion_tokens(), 2);
    }
  }
  EXPECT_EQ(server.generate_count, 80);
}

}  // namespace
}  // namespace moed::client
