#include "runtime/engine/step_loop.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"

namespace moed::engine {
namespace {

// How often an idle engine shows that it lives.
constexpr std::chrono::milliseconds kIdleWait{250};

scheduler::SchedulerOptions ToSchedulerOptions(const EngineOptions& options) {
  return {.max_num_seqs = options.max_num_seqs,
          .max_num_batched_tokens = options.max_num_batched_tokens,
          .max_model_len = options.max_model_len,
          .num_kv_blocks = options.num_kv_blocks,
          .kv_block_tokens = options.kv_block_tokens};
}

void Add(const model::ExpertShare& share, model::ExpertShare* total) {
  total->hits += share.hits;
  total->misses += share.misses;
  total->bytes_paged += share.bytes_paged;
  total->stall_seconds += share.stall_seconds;
}

}  // namespace

StepLoop::StepLoop(const EngineOptions& options, model::StepRunner* runner, SubmissionQueue* queue,
                   OutputThread* output, SnapshotBoard* board)
    : runner_(runner),
      queue_(queue),
      output_(output),
      board_(board),
      scheduler_(ToSchedulerOptions(options)),
      has_passes_(runner->pass_layers() > 1 &&
                  runner->max_tokens_beside_pass() >=
                      std::min(options.max_num_seqs, options.max_num_batched_tokens)) {
  snapshot_.kv_blocks_total = options.num_kv_blocks;
  snapshot_.last_progress = absl::Now();
  Publish();
}

void StepLoop::Run() {
  while (!messages_.shutdown) {
    const bool idle = scheduler_.empty();
    queue_->Take(idle ? kIdleWait : std::chrono::milliseconds(0), &messages_);
    if (idle) stopwatch_.Lap();  // the wait was nobody's work
    HandleMessages();
    EndExpired();
    if (!scheduler_.empty()) Step();
    if (scheduler_.empty()) Settle();
    snapshot_.last_progress = absl::Now();
    heartbeat_.Beat();
    // Else beside the next step, so that a device need not wait for it.
    if (scheduler_.empty()) Deliver();
    snapshot_.engine_busy_seconds_total += stopwatch_.Lap();
  }
  FollowPass();
}

void StepLoop::HandleMessages() {
  for (auto& request : messages_.requests) Open(std::move(request));
  for (const std::string& id : messages_.cancelled) {
    const auto found = requests_.find(id);
    if (found == requests_.end()) continue;
    EndRequest(*found->second, absl::CancelledError("the request was cancelled"));
  }
  for (scheduler::SequenceId id : messages_.stopped) {
    const auto found = sequences_.find(id);
    if (found != sequences_.end()) EndSequence(RunningSequence(found->second));
  }
  if (!messages_.tasks.empty()) {
    Deliver();
    Settle();
  }
  for (const std::function<void()>& task : messages_.tasks) task();
  if (!failure_.ok()) EndAll(failure_);
  if (messages_.shutdown) EndAll(absl::UnavailableError("the server is shutting down"));
}

void StepLoop::Open(std::unique_ptr<RequestState> request) {
  output_->Open(request->stream.get());
  const scheduler::GroupId group = next_group_id_++;
  for (SequenceState& sequence : request->sequences) {
    sequence.id = next_sequence_id_++;
    sequences_.emplace(sequence.id, RunningSequence{request.get(), &sequence});
    scheduler_.Add(sequence.id, group, static_cast<int64_t>(request->prompt().size()));
  }
  num_unstarted_sequences_ += static_cast<int64_t>(request->sequences.size());
  if (request->deadline != absl::InfiniteFuture()) {
    deadlines_.emplace(request->deadline, request.get());
  }
  requests_.emplace(request->id, std::move(request));
}

void StepLoop::EndExpired() {
  if (deadlines_.empty()) return;
  const absl::Time now = absl::Now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    EndRequest(*deadlines_.begin()->second,
               absl::DeadlineExceededError("the request's deadline passed"));
  }
}

void StepLoop::Step() {
  FollowPass();
  const std::vector<scheduler::ScheduledChunk>& chunks = scheduler_.Schedule(MaxJoinedTokens());
  FollowPass();
  if (!pass_running_ && !scheduler_.pass().empty()) BeginPass();
  const bool has_step = !chunks.empty() && failure_.ok();
  if (has_step && RunBatch(chunks)) FollowPass();
  if (pass_running_) AdvancePass(/*beside_decodes=*/has_step);
}

void StepLoop::Settle() {
  if (!failure_.ok()) return;
  const absl::Status status = runner_->Settle();
  if (!status.ok()) Fail(status);
}

bool StepLoop::RunBatch(const std::vector<scheduler::ScheduledChunk>& chunks) {
  BuildBatch(chunks, &batch_);
  snapshot_.engine_busy_seconds_total += stopwatch_.Lap();
  absl::Status status = runner_->Begin(batch_.input);
  double seconds = stopwatch_.Lap();
  // Gauges show the step while it runs.
  Deliver();
  snapshot_.engine_busy_seconds_total += stopwatch_.Lap();
  if (status.ok()) status = runner_->Finish(batch_.input, &result_);
  seconds += stopwatch_.Lap();
  snapshot_.run_seconds_total += seconds;
  if (!status.ok()) {
    Fail(status);
    return false;
  }
  ++snapshot_.steps_total;
  const auto decodes = static_cast<int>(
      std::count_if(chunks.begin(), chunks.end(),
                    [](const scheduler::ScheduledChunk& chunk) { return chunk.num_tokens == 1; }));
  pacer_.ObserveStep(decodes, static_cast<int64_t>(batch_.input.token_ids.size()) - decodes,
                     seconds);
  HandleResult(batch_);
  return true;
}

void StepLoop::Fail(const absl::Status& status) {
  failure_ = absl::UnavailableError(absl::StrCat("the model failed: ", status.message()));
  snapshot_.failed = true;
  queue_->Refuse(failure_);
  pass_running_ = false;  // nothing is asked of the runner any more
  EndAll(failure_);
}

void StepLoop::BuildBatch(const std::vector<scheduler::ScheduledChunk>& chunks, Batch* batch) {
  batch->input.token_ids.clear();
  batch->input.chunks.clear();
  batch->sequences.clear();
  for (const scheduler::ScheduledChunk& chunk : chunks) {
    AddChunk(chunk, sequences_.at(chunk.sequence), batch);
  }
}

void StepLoop::AddChunk(const scheduler::ScheduledChunk& chunk, const RunningSequence& sequence,
                        Batch* batch) {
  RequestState& request = *sequence.request;
  if (!request.started) Start(request);
  model::SequenceChunk part{.num_tokens = chunk.num_tokens,
                            .context_start = static_cast<int>(chunk.context_start),
                            .kv_blocks = chunk.kv_blocks,
                            .sampler = chunk.reaches_end ? &sequence.state->sampler : nullptr};
  // The first of the n sequences computes the whole prompt.
  if (request.collected_prompt_logprobs && sequence.state->index == 0) {
    const size_t end = static_cast<size_t>(chunk.context_start) + chunk.num_tokens;
    part.prompt_logprobs = request.prompt_logprobs;
    part.next_token = end < request.prompt().size() ? request.prompt()[end] : -1;
  }
  request.CopyTokens(*sequence.state, chunk.context_start, chunk.num_tokens,
                     &batch->input.token_ids);
  batch->input.chunks.push_back(part);
  batch->sequences.push_back(chunk.sequence);
}

void StepLoop::Start(RequestState& request) {
  request.started = true;
  request.usage.queue_seconds = absl::ToDoubleSeconds(absl::Now() - request.submitted);
  num_unstarted_sequences_ -= request.num_unfinished;
  snapshot_.prompt_tokens_total += request.usage.prompt_tokens;
  queue_->Leave(request);
}

void StepLoop::AddShares(const Batch& batch) {
  ABSL_RAW_CHECK(result_.chunks.size() == batch.input.chunks.size(),
                 "the runner returned another number of chunks than it was given");
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    // A request that ended during its pass has had its bill.
    const auto found = sequences_.find(batch.sequences[i]);
    if (found == sequences_.end()) continue;
    Add(result_.chunks[i].experts, &found->second.request->usage.experts);
  }
}

void StepLoop::HandleResult(const Batch& batch) {
  AddShares(batch);
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    // A sibling in this step may have ended the request, or a step beside the pass.
    const auto found = sequences_.find(batch.sequences[i]);
    if (found == sequences_.end()) continue;
    const RunningSequence sequence = found->second;
    model::ChunkResult& result = result_.chunks[i];
    if (result.invalid) {
      EndRequest(*sequence.request,
                 absl::InternalError("the model's logits are not numbers; the request was ended"));
      continue;
    }
    const model::SequenceChunk& chunk = batch.input.chunks[i];
    if (chunk.prompt_logprobs >= 0) CollectPromptLogprobs(*sequence.request, chunk, result);
    if (chunk.sampler != nullptr) HandleToken(sequence, result);
  }
}

void StepLoop::CollectPromptLogprobs(RequestState& request, const model::SequenceChunk& chunk,
                                     model::ChunkResult& result) {
  PromptLogprobs& collected = *request.collected_prompt_logprobs;
  // The first token follows nothing. A preempted prefill starts anew.
  if (chunk.context_start == 0) collected.assign(1, {});
  for (auto& token : result.prompt_logprobs) collected.push_back(std::move(token));
}

void StepLoop::HandleToken(const RunningSequence& sequence, model::ChunkResult& result) {
  RequestState& request = *sequence.request;
  SequenceState& state = *sequence.state;
  if (request.usage.time_to_first_token_seconds == 0) {
    request.usage.time_to_first_token_seconds =
        absl::ToDoubleSeconds(absl::Now() - request.submitted);
  }
  const auto finish = request.Accept(state, result.token);
  TokenEvent event{.stream = request.stream.get(), .sequence = state.id, .index = state.index};
  event.token = {.token = {result.token, result.logprob, std::move(result.top_logprobs)},
                 .finish = finish,
                 .is_end_token = finish == FinishReason::kStop};
  if (state.index == 0) event.token.prompt_logprobs = std::move(request.collected_prompt_logprobs);
  out_.tokens.push_back(std::move(event));
  if (finish) {
    EndSequence(sequence);
  } else {
    scheduler_.Append(state.id);
  }
}

void StepLoop::RemoveSequence(scheduler::SequenceId sequence) {
  LeavePass(sequence);
  scheduler_.Remove(sequence);
  sequences_.erase(sequence);
}

void StepLoop::EndSequence(const RunningSequence& sequence) {
  sequence.state->ended = true;
  RemoveSequence(sequence.state->id);
  if (--sequence.request->num_unfinished == 0) EndRequest(*sequence.request, absl::OkStatus());
}

void StepLoop::EndRequest(RequestState& request, absl::Status status) {
  if (!request.started) {
    num_unstarted_sequences_ -= request.num_unfinished;
    queue_->Leave(request);
  }
  for (const SequenceState& sequence : request.sequences) {
    if (!sequence.ended) RemoveSequence(sequence.id);
  }
  deadlines_.erase({request.deadline, &request});
  out_.done.push_back({std::move(request.stream), request.id, std::move(status), request.usage});
  requests_.erase(requests_.find(out_.done.back().request_id));
}

void StepLoop::EndAll(const absl::Status& status) {
  while (!requests_.empty()) EndRequest(*requests_.begin()->second, status);
}

void StepLoop::Publish() {
  snapshot_.running = scheduler_.num_running();
  // Requests that have not started are counted by the queue; these were preempted or are forks.
  snapshot_.waiting = scheduler_.num_waiting() - num_unstarted_sequences_;
  snapshot_.kv_blocks_used = scheduler_.blocks().num_used();
  snapshot_.preemptions_total = scheduler_.num_preemptions();
  board_->Publish(snapshot_);
}

void StepLoop::Deliver() {
  Publish();
  output_->Push(&out_);
}

}  // namespace moed::engine
