// A model that is served: a checkpoint on a backend, with memory planned and taken, ready to run
// steps. Created once by the server and used by the engine's thread; what is said to be safe from
// any thread is for metrics and GetModel.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cache/cache_stats.h"
#include "cache/hot_set_snapshot.h"
#include "cache/load_balance.h"
#include "cache/miss_ratio_curve.h"
#include "runtime/backend/backend.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/cold_path_choice.h"
#include "runtime/model/expert_budget.h"
#include "runtime/model/expert_format_choice.h"
#include "runtime/model/expert_store.h"
#include "runtime/model/load_progress.h"
#include "runtime/model/memory_plan.h"
#include "runtime/model/model_size.h"
#include "runtime/model/step.h"
#include "runtime/model/step_sampler.h"
#include "runtime/model/transformer.h"

namespace moed::model {

struct ModelRunnerOptions {
  // Host memory that the model may take: on the CPU weights, KV cache, slots and activations; with
  // a GPU every expert.
  int64_t memory_limit_bytes = 0;
  // Share of the GPU's memory that may be in use, what others took included.
  double gpu_memory_utilization = 0.9;
  ExpertFormatPreference expert_format = ExpertFormatPreference::kAuto;  // see ChooseExperts
  std::string expert_budget = "auto";                                    // see ParseExpertBudget
  // Taken at start, for SetExpertBudget to grow into; empty: the budget itself.
  std::string max_expert_budget = {};
  std::string expert_policy = "recency-frequency";
  ColdPathPreference cold_path = ColdPathPreference::kAuto;
  int cold_threads = 0;  // of the CPU's part in it; 0: as many as fit
  int max_num_seqs = 0;
  int64_t max_num_batched_tokens = 0;
  int64_t max_model_len = 0;     // 0: the config's; cut to what the KV cache holds
  int64_t kv_cache_bytes = 0;    // 0: auto, see PlanMemory
  bool sample_on_device = true;  // where it can; else, and to compare, on the host
  int io_threads = 0;            // that read experts; 0: as many as CPUs, from 2 to 8
  bool warm_experts = true;      // fill the slots before the first request
  // What an earlier run learned: its residents are loaded first, none after the deadline.
  std::optional<cache::HotSet> hot_set = {};
  absl::Time warm_deadline = absl::InfiniteFuture();
  LoadProgress progress = {};
  // If set: gets the routing of every step that ended, as cache/routing_log.h encodes it, on the
  // engine thread; must not wait. The model's name goes into the log's header.
  std::function<void(std::string bytes)> record_routing = {};
  std::string model_name = {};
};

// The expert cache after a step. Immutable.
struct ExpertSnapshot {
  cache::CacheStats cache;
  cache::ExpertStats experts;
  // Both change every few steps; never null.
  std::shared_ptr<const cache::BudgetEstimate> budgets =
      std::make_shared<const cache::BudgetEstimate>();
  std::shared_ptr<const std::vector<cache::LayerBalance>> balance =
      std::make_shared<const std::vector<cache::LayerBalance>>();  // [layers], or none
  int max_slots = 0;                                               // what the budget may grow to
  backend::ColdNeurons cold_neurons;
  backend::ColdRates cold_rates;
};

class ModelRunner : public StepRunner {
 public:
  // Chooses the experts' format, plans memory, loads the dense weights and fills the expert slots.
  // INVALID_ARGUMENT: an option; RESOURCE_EXHAUSTED: memory, with the numbers; DATA_LOSS: the
  // checkpoint; UNIMPLEMENTED or FAILED_PRECONDITION: a format that cannot be had, with the remedy.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(
      ModelRunnerOptions options, std::unique_ptr<Checkpoint> checkpoint,
      std::unique_ptr<backend::Backend> backend);

  // Accepts the sampled tokens into their samplers. INVALID_ARGUMENT: a step that breaks its own
  // contract or these limits; the errors of Transformer::Forward.
  absl::Status Run(const StepInput& input, StepResult* result) override;
  absl::Status Begin(const StepInput& input) override;
  absl::Status Finish(const StepInput& input, StepResult* result) override;

  // Routing log, cache and snapshot follow the last step; INTERNAL: the device broke the protocol.
  absl::Status Settle() override;

  int64_t progress() const override { return transformer_->progress(); }

  // model_runner_pass.cc. The errors are those of Run.
  int pass_layers() const override { return config().num_layers(); }
  int max_tokens_beside_pass() const override;
  absl::Status BeginPass(const StepInput& input) override;
  absl::Status AdvancePass(int layers) override;
  absl::Status FinishPass(StepResult* result) override;
  void AbandonPass(StepResult* result) override;

  // What an operator may change while the model serves; engine thread, between steps, after Settle.
  // Seen in the next Snapshot.
  // `budget` as in the options; auto is all that was taken at start. Returns the slots that it
  // buys. INVALID_ARGUMENT: no budget; RESOURCE_EXHAUSTED: more than was taken at start, or less
  // than a token needs beside the pinned experts; FAILED_PRECONDITION: fewer than all experts,
  // where reading one again would encode it on a request.
  absl::StatusOr<int> SetExpertBudget(std::string_view budget);
  // Either all or none. INVALID_ARGUMENT: no such expert; RESOURCE_EXHAUSTED: no room for as many.
  absl::Status PinExperts(std::span<const cache::ExpertKey> keys);
  absl::Status UnpinExperts(std::span<const cache::ExpertKey> keys);
  void ResetExpertCounters();
  cache::HotSet SaveHotSet() const { return experts_->cache().SaveHotSet(); }

  // Immutable: safe from any thread.
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const ModelConfig& config() const { return checkpoint_->config(); }
  const ModelSize& size() const { return size_; }
  const MemoryPlan& memory() const { return plan_; }
  std::string device() const { return backend_->Description(); }
  int64_t max_num_batched_tokens() const { return options_.max_num_batched_tokens; }
  std::string_view cold_path() const { return ColdPathName(cold_path_); }
  // Why it is not the one that would be best, for the log; mostly empty.
  const std::string& cold_path_note() const { return cold_path_note_; }
  const backend::ExpertFormat& expert_format() const { return served_.source->format(); }
  // Why experts have this format and no smaller one; may be empty.
  const std::string& expert_format_note() const { return served_.note; }
  // Weights that bf12 lists one by one, if experts were encoded while loading.
  std::optional<int64_t> listed_escapes() const;

  // As of the last Settle, and on the CPU of the last step that ended; never null. Safe from any
  // thread.
  std::shared_ptr<const ExpertSnapshot> Snapshot() const;

 private:
  ModelRunner(ModelRunnerOptions options, std::unique_ptr<Checkpoint> checkpoint,
              std::unique_ptr<backend::Backend> backend);
  // Plans and loads with these experts.
  absl::Status ChooseAndStart();
  absl::Status Start(ServedExperts served);
  absl::Status Load();
  absl::Status LoadExperts(const LoadProgress& progress);
  absl::Status CreateSampler();
  absl::Status CheckSlots(int slots) const;
  bool device_driven() const { return cold_path_.has_value(); }
  absl::Status CheckStep(const StepInput& input) const;
  // Of what has just ended.
  void EndStep(StepResult* result);
  // Of the slots that were taken at start.
  absl::StatusOr<int> ResolveSlotsTaken(const ExpertBudget& budget) const;
  void PublishSnapshot();

  ModelRunnerOptions options_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<backend::Backend> backend_;
  ServedExperts served_;
  ModelSize size_;
  MemoryPlan plan_;
  std::optional<backend::ColdPath> cold_path_;  // nullopt: host-driven
  std::string cold_path_note_;
  std::unique_ptr<ExpertStore> experts_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<StepSampler> sampler_;
  std::vector<ExpertShare> shares_;
  bool begun_ = false;                                               // the step in flight
  bool settled_ = true;                                              // the last step
  const StepInput* pass_ = nullptr;                                  // in flight
  std::shared_ptr<const std::vector<cache::LayerBalance>> balance_;  // as last published
  mutable std::mutex snapshot_mutex_;
  std::shared_ptr<const ExpertSnapshot> snapshot_;  // guarded by snapshot_mutex_
};

}  // namespace moed::model
