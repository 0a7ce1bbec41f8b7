#include "client/bench_run.h"

#include <chrono>
#include <memory>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace moed::client {
namespace {

class Run {
 public:
  Run(const BenchPlan& plan, absl::Duration timeout, Client& client, std::atomic<int64_t>& finished)
      : plan_(plan), timeout_(timeout), client_(client), finished_(finished) {
    records_.resize(plan.requests.size());
  }

  std::vector<BenchRecord> Execute() {
    for (size_t i = 0; i < plan_.requests.size(); ++i) {
      AwaitTurn(plan_.requests[i]);
      Start(i);
    }
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* running) { return *running == 0; }, &running_));
    return std::move(records_);
  }

 private:
  // By a clock that is never set back.
  double Elapsed() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  void AwaitTurn(const BenchPlan::Request& request) {
    if (plan_.concurrency == 0) {
      absl::SleepFor(absl::Seconds(request.arrival_seconds - Elapsed()));
      return;
    }
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &Run::HasRoom));
  }

  bool HasRoom() const { return running_ < plan_.concurrency; }

  void Start(size_t i) {
    // Only this request's callbacks touch its record until it is done.
    BenchRecord& record = records_[i];
    const bool open_loop = plan_.concurrency == 0;
    record.arrival_seconds = open_loop ? plan_.requests[i].arrival_seconds : Elapsed();
    {
      absl::MutexLock lock(&mutex_);
      ++running_;
    }
    client_.StartGenerate(
        plan_.requests[i].request, std::make_shared<Call>(timeout_),
        [this, &record](const v1::GenerateResponse& response) { Note(response, record); },
        [this, &record](const absl::Status& status) { End(status, record); });
  }

  void Note(const v1::GenerateResponse& response, BenchRecord& record) const {
    if (response.has_delta()) {
      record.token_seconds.insert(record.token_seconds.end(), response.delta().tokens_size(),
                                  Elapsed());
    } else if (response.has_finished()) {
      record.usage = response.finished().usage();
    }
  }

  void End(const absl::Status& status, BenchRecord& record) {
    record.status = status;
    record.end_seconds = Elapsed();
    ++finished_;
    absl::MutexLock lock(&mutex_);
    --running_;
  }

  const BenchPlan& plan_;
  const absl::Duration timeout_;
  Client& client_;
  std::atomic<int64_t>& finished_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  absl::Mutex mutex_;
  int running_ = 0;
  std::vector<BenchRecord> records_;
};

}  // namespace

std::vector<BenchRecord> RunBench(const BenchPlan& plan, absl::Duration timeout, Client& client,
                                  std::atomic<int64_t>& finished) {
  return Run(plan, timeout, client, finished).Execute();
}

}  // namespace moed::client
