#include "runtime/engine/submission_queue.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::engine {

SubmissionQueue::SubmissionQueue(int64_t max_requests, int64_t max_tokens)
    : max_requests_(max_requests), max_tokens_(max_tokens) {}

absl::Status SubmissionQueue::CheckRoom(int64_t prompt_tokens) const {
  if (waiting_.requests >= max_requests_) {
    return absl::ResourceExhaustedError(
        absl::StrCat(waiting_.requests, " requests wait already (--max-queued-requests); retry"));
  }
  if (waiting_.requests > 0 && waiting_.tokens + prompt_tokens > max_tokens_) {
    return absl::ResourceExhaustedError(
        absl::StrCat(waiting_.tokens, " prompt tokens wait already (--max-queued-tokens); retry"));
  }
  return absl::OkStatus();
}

std::string SubmissionQueue::MakeUpId() {
  std::string id;
  do {
    id = absl::StrCat("request-", ++num_made_up_ids_);
  } while (ids_.contains(id));
  return id;
}

absl::Status SubmissionQueue::Push(std::unique_ptr<RequestState> request) {
  const int64_t prompt_tokens = static_cast<int64_t>(request->prompt().size());
  std::lock_guard lock(mutex_);
  if (!refusal_.ok()) return refusal_;
  if (absl::Status status = CheckRoom(prompt_tokens); !status.ok()) return status;
  if (request->id.empty()) request->id = MakeUpId();
  if (!ids_.insert(request->id).second) {
    return absl::AlreadyExistsError(absl::StrCat("request id '", request->id, "' is in use"));
  }
  ++num_open_;
  ++waiting_.requests;
  waiting_.tokens += prompt_tokens;
  messages_.requests.push_back(std::move(request));
  has_messages_.notify_one();
  return absl::OkStatus();
}

void SubmissionQueue::Cancel(const std::string& request_id) {
  std::lock_guard lock(mutex_);
  if (!ids_.contains(request_id)) return;
  messages_.cancelled.insert(request_id);
  has_messages_.notify_one();
}

void SubmissionQueue::StopMatched(scheduler::SequenceId sequence) {
  std::lock_guard lock(mutex_);
  messages_.stopped.push_back(sequence);
  has_messages_.notify_one();
}

void SubmissionQueue::Post(std::function<void()> task) {
  std::lock_guard lock(mutex_);
  messages_.tasks.push_back(std::move(task));
  has_messages_.notify_one();
}

void SubmissionQueue::Refuse(absl::Status why) {
  std::lock_guard lock(mutex_);
  refusal_ = std::move(why);
}

void SubmissionQueue::Shutdown() {
  std::lock_guard lock(mutex_);
  messages_.shutdown = true;
  has_messages_.notify_one();
}

bool SubmissionQueue::HasMessages() const {
  return !messages_.requests.empty() || !messages_.cancelled.empty() ||
         !messages_.stopped.empty() || !messages_.tasks.empty() || messages_.shutdown;
}

void SubmissionQueue::Take(std::chrono::milliseconds patience, EngineMessages* messages) {
  messages->requests.clear();
  messages->cancelled.clear();
  messages->stopped.clear();
  messages->tasks.clear();
  std::unique_lock lock(mutex_);
  if (patience.count() > 0) has_messages_.wait_for(lock, patience, [&] { return HasMessages(); });
  std::swap(*messages, messages_);
  messages_.shutdown = messages->shutdown;
}

std::vector<std::unique_ptr<RequestState>> SubmissionQueue::TakeRequests() {
  std::lock_guard lock(mutex_);
  for (const auto& request : messages_.requests) {
    --waiting_.requests;
    waiting_.tokens -= static_cast<int64_t>(request->prompt().size());
  }
  return std::exchange(messages_.requests, {});
}

void SubmissionQueue::Leave(const RequestState& request) {
  std::lock_guard lock(mutex_);
  --waiting_.requests;
  waiting_.tokens -= static_cast<int64_t>(request.prompt().size());
}

void SubmissionQueue::ReleaseId(const std::string& request_id) {
  std::lock_guard lock(mutex_);
  ids_.erase(request_id);
  messages_.cancelled.erase(request_id);
}

void SubmissionQueue::Close() {
  std::lock_guard lock(mutex_);
  if (--num_open_ == 0) all_closed_.notify_all();
}

bool SubmissionQueue::WaitUntilAllClosed(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  const auto none_open = [&] { return num_open_ == 0; };
  if (deadline == absl::InfiniteFuture()) {
    all_closed_.wait(lock, none_open);
    return true;
  }
  return all_closed_.wait_until(lock, absl::ToChronoTime(deadline), none_open);
}

SubmissionQueue::Waiting SubmissionQueue::waiting() const {
  std::lock_guard lock(mutex_);
  return waiting_;
}

}  // namespace moed::engine
