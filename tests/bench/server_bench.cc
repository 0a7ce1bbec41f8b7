// The server's own cost: a runner that computes nothing, real engine, gRPC and clients in one
// process, so client and server share the cores. Each token is a message unless a client lags.
#include <benchmark/benchmark.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "proto/moed/v1/inference.grpc.pb.h"
#include "tests/integration/scripted_runner.h"

namespace moed::server {
namespace {

// Reads one stream to its end, counting.
class CountingReader final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  CountingReader(v1::Inference::Stub* stub, const v1::GenerateRequest& request,
                 absl::BlockingCounter* done)
      : done_(done) {
    stub->async()->Generate(&context_, &request, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.has_delta()) {
      ++messages_;
      tokens_ += response_.delta().tokens_size();
    }
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    ok_ = status.ok();
    done_->DecrementCount();
  }

  bool ok() const { return ok_; }
  int64_t messages() const { return messages_; }
  int64_t tokens() const { return tokens_; }

 private:
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
  absl::BlockingCounter* done_;
  int64_t messages_ = 0;
  int64_t tokens_ = 0;
  bool ok_ = false;
};

v1::GenerateRequest Request(int64_t max_tokens) {
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(1);
  request.mutable_stopping()->set_max_tokens(max_tokens);
  return request;
}

// Arguments: streams, and how long the runner takes for a step: 0 is as fast as it is asked, far
// more than can be written one by one.
void BM_TokensEndToEnd(benchmark::State& state) {
  const int streams = static_cast<int>(state.range(0));
  Options options;
  options.port = 0;
  options.metrics_port = 0;
  options.max_num_seqs = streams;
  ScriptedRunner* runner = nullptr;
  auto server = Server::Create(options, ScriptedLoader(&runner));
  if (!server.ok()) return state.SkipWithError(std::string(server.status().message()).c_str());
  absl::Notification stop;
  std::thread run([&] {
    (*server)
        ->Run([&](absl::Duration d) { return stop.WaitForNotificationWithTimeout(d); })
        .IgnoreError();
  });
  while (!(*server)->loaded()) absl::SleepFor(absl::Milliseconds(1));
  runner->SetStepTime(absl::Microseconds(state.range(1)));
  const auto stub = v1::Inference::NewStub(grpc::CreateChannel(
      absl::StrCat("127.0.0.1:", (*server)->port()), grpc::InsecureChannelCredentials()));
  const v1::GenerateRequest request = Request(2000);
  int64_t tokens = 0, messages = 0;
  for (auto _ : state) {
    absl::BlockingCounter done(streams);
    std::deque<CountingReader> readers;
    for (int i = 0; i < streams; ++i) readers.emplace_back(stub.get(), request, &done);
    done.Wait();
    for (const CountingReader& reader : readers) {
      if (!reader.ok()) state.SkipWithError("a stream failed");
      tokens += reader.tokens();
      messages += reader.messages();
    }
  }
  state.SetItemsProcessed(tokens);
  state.counters["messages_per_second"] =
      benchmark::Counter(static_cast<double>(messages), benchmark::Counter::kIsRate);
  state.counters["messages_per_token"] =
      static_cast<double>(messages) / static_cast<double>(tokens);
  stop.Notify();
  run.join();
}
BENCHMARK(BM_TokensEndToEnd)
    ->ArgNames({"streams", "step_us"})
    ->Args({1, 0})
    ->Args({64, 0})
    ->Args({64, 1000})
    ->Args({64, 500})
    ->Args({64, 350})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace moed::server

BENCHMARK_MAIN();
