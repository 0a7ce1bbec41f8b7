#include "runtime/engine/engine.h"

#include <pthread.h>

#include <atomic>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/engine/output_stream.h"
#include "runtime/engine/output_thread.h"
#include "runtime/engine/request_state.h"
#include "runtime/engine/snapshot_board.h"
#include "runtime/engine/step_loop.h"
#include "runtime/engine/submission_queue.h"
#include "runtime/engine/validate_request.h"

namespace moed::engine {
namespace {

// Some checkpoints name an end token that their embedding does not have; it can never be sampled.
EngineOptions WithoutUnknownTokens(EngineOptions options) {
  std::erase_if(options.eos_token_ids,
                [&](int32_t id) { return id < 0 || id >= options.vocab_size; });
  return options;
}

class ThreadedEngine final : public Engine {
 public:
  ThreadedEngine(const EngineOptions& options, model::StepRunner* runner,
                 const text::Tokenizer* tokenizer)
      : options_(WithoutUnknownTokens(options)),
        runner_(runner),
        tokenizer_(tokenizer),
        queue_(options.max_queued_requests, options.max_queued_tokens),
        output_(&queue_, &board_),
        loop_(options, runner, &queue_, &output_, &board_),
        thread_([this] {
          pthread_setname_np(pthread_self(), "moed-engine");
          loop_.Run();
        }) {}

  ~ThreadedEngine() override {
    queue_.Refuse(absl::UnavailableError("the server is shutting down"));
    queue_.Shutdown();
    thread_.join();
  }

  absl::Status Submit(Request request) override {
    const int64_t max_tokens = loop_.max_sequence_tokens();
    absl::Status status = ValidateRequest(request, options_, max_tokens, tokenizer_ != nullptr);
    if (!status.ok()) return status;
    auto stream = std::make_unique<OutputStream>(request, tokenizer_);
    return queue_.Push(std::make_unique<RequestState>(std::move(request), options_.eos_token_ids,
                                                      max_tokens, std::move(stream)));
  }

  void Cancel(const std::string& request_id) override { queue_.Cancel(request_id); }

  bool Drain(absl::Time deadline) override {
    queue_.Refuse(absl::UnavailableError("the server is draining; try another"));
    return queue_.WaitUntilAllClosed(deadline);
  }

  void Post(std::function<void()> task) override { queue_.Post(std::move(task)); }

  void Abandon(const absl::Status& why) override {
    abandoned_ = true;
    queue_.Refuse(why);
    std::vector<DoneEvent> unstarted;
    for (auto& request : queue_.TakeRequests()) {
      unstarted.push_back({std::move(request->stream), request->id, why, Usage()});
    }
    output_.Abandon(why, std::move(unstarted));
  }

  int64_t progress() const override { return loop_.iterations() + runner_->progress(); }

  EngineSnapshot Snapshot() const override {
    EngineSnapshot snapshot = board_.Read();
    snapshot.failed |= abandoned_;
    const SubmissionQueue::Waiting waiting = queue_.waiting();
    snapshot.waiting += waiting.requests;
    snapshot.waiting_tokens = waiting.tokens;
    return snapshot;
  }

 private:
  const EngineOptions options_;
  const model::StepRunner* const runner_;
  const text::Tokenizer* const tokenizer_;
  std::atomic<bool> abandoned_ = false;
  // In order of dependence: the threads end before what they use.
  SnapshotBoard board_;
  SubmissionQueue queue_;
  OutputThread output_;
  StepLoop loop_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Engine> Engine::Create(const EngineOptions& options, model::StepRunner* runner,
                                       const text::Tokenizer* tokenizer) {
  return std::make_unique<ThreadedEngine>(options, runner, tokenizer);
}

}  // namespace moed::engine
