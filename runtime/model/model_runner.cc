#include "runtime/model/model_runner.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/model/for_each_expert.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/read_next_routers.h"
#include "runtime/model/runner_memory.h"
#include "runtime/model/weights.h"

namespace moed::model {
namespace {

// How often the published balance is worked out anew.
constexpr int64_t kBalanceSteps = 16;

// Of what loading takes beyond the experts themselves: room for one in bf16 a thread that encodes.
constexpr size_t kMostEncodingBytes = size_t{7} << 28;

// Enough for storage that is read directly to have always some of their reads before it.
constexpr int kStorageReads = 8;

// Encoding is work for every core, and for another thread on it while one waits for storage;
// reading is for a few, but for storage not too few when nothing else is done meanwhile.
int IoThreads(const ModelRunnerOptions& options, const ServedExperts& served, bool fills_store) {
  if (options.io_threads > 0) return options.io_threads;
  if (served.encoding != nullptr) {
    return ExpertThreads(std::max(2 * backend::AvailableCpus(), kStorageReads),
                         served.encoding->stored_bytes(), kMostEncodingBytes);
  }
  const auto cpus = static_cast<int>(std::thread::hardware_concurrency());
  return fills_store ? std::clamp(cpus, kStorageReads, 2 * kStorageReads) : std::clamp(cpus, 2, 8);
}

// With a path, a GPU finds its experts itself; without, slots are filled from files before use.
absl::StatusOr<std::optional<backend::ColdPath>> ColdPathFor(const ModelRunnerOptions& options,
                                                             const ModelSize& size,
                                                             int64_t expert_bytes,
                                                             backend::Backend& backend) {
  return ChooseColdPath(options.cold_path, {.has_device = backend.Memory().has_value(),
                                            .expert_bytes = size.num_experts * expert_bytes,
                                            .host_memory_bytes = options.memory_limit_bytes,
                                            .cpus = backend::AvailableCpus()});
}

absl::Status CheckOptions(const ModelRunnerOptions& options) {
  if (options.max_num_seqs < 1 || options.max_num_batched_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_num_seqs is ", options.max_num_seqs, " and max_num_batched_tokens is ",
                     options.max_num_batched_tokens, "; both must be at least 1"));
  }
  if (options.max_model_len < 0 || options.kv_cache_bytes < 0) {
    return absl::InvalidArgumentError("max_model_len and kv_cache_bytes must not be negative");
  }
  return absl::OkStatus();
}

}  // namespace

int ModelRunner::max_tokens_beside_pass() const {
  return static_cast<int>(TokensBesidePass(options_, experts_->device() != nullptr));
}

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(
    ModelRunnerOptions options, std::unique_ptr<Checkpoint> checkpoint,
    std::unique_ptr<backend::Backend> backend) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  const bool automatic = options.cold_path == ColdPathPreference::kAuto;
  std::unique_ptr<ModelRunner> runner(
      new ModelRunner(std::move(options), std::move(checkpoint), std::move(backend)));
  absl::Status status = runner->ChooseAndStart();
  // Every expert is in host memory, which may not be pinned: then a part, which needs no pinning.
  if (absl::IsFailedPrecondition(status) && automatic && runner->device_driven()) {
    runner->cold_path_note_ =
        absl::StrCat("experts are paged in from files (cold path page): ", status.message());
    runner->options_.cold_path = ColdPathPreference::kPage;
    status = runner->ChooseAndStart();
  }
  if (!status.ok()) return status;
  return runner;
}

absl::Status ModelRunner::ChooseAndStart() {
  const bool pages =
      !backend_->Memory().has_value() || options_.cold_path == ColdPathPreference::kPage;
  ExpertFormatRequest request = {
      .preference = options_.expert_format,
      .kernels_take_bf12 = backend_->SupportsExpertFormat(backend::ExpertFormatKind::kBF12),
      .host_store_bytes = pages ? 0 : options_.memory_limit_bytes};
  absl::StatusOr<ServedExperts> served = ChooseExperts(*checkpoint_, request);
  if (!served.ok()) return served.status();
  absl::Status status = Start(*std::move(served));
  if (!absl::IsOutOfRange(status)) return status;
  // An expert unlike the sample.
  request.measure_every_expert = true;
  served = ChooseExperts(*checkpoint_, request);
  if (!served.ok()) return served.status();
  served->note = absl::StrCat(status.message(), "; every expert was measured",
                              served->note.empty() ? "" : ": ", served->note);
  return Start(*std::move(served));
}

std::optional<int64_t> ModelRunner::listed_escapes() const {
  if (served_.encoding == nullptr) return std::nullopt;
  return served_.encoding->listed_escapes();
}

ModelRunner::ModelRunner(ModelRunnerOptions options, std::unique_ptr<Checkpoint> checkpoint,
                         std::unique_ptr<backend::Backend> backend)
    : options_(std::move(options)),
      checkpoint_(std::move(checkpoint)),
      backend_(std::move(backend)),
      size_(ComputeModelSize(checkpoint_->config())) {}

absl::Status ModelRunner::Start(ServedExperts served) {
  // Of an attempt that failed: two of them may not fit into memory.
  sampler_.reset();
  transformer_.reset();
  experts_.reset();
  served_ = std::move(served);
  const auto expert_bytes = static_cast<int64_t>(expert_format().blob_bytes());
  const auto cold_path = ColdPathFor(options_, size_, expert_bytes, *backend_);
  if (!cold_path.ok()) return cold_path.status();
  cold_path_ = *cold_path;
  const absl::StatusOr<MemoryPlan> plan =
      PlanRunnerMemory(options_, config(), expert_bytes, *backend_, device_driven());
  if (!plan.ok()) return plan.status();
  plan_ = *plan;
  return Load();
}

absl::Status ModelRunner::Load() {
  const auto expert_bytes = static_cast<int64_t>(expert_format().blob_bytes());
  const int64_t total = plan_.dense_bytes + plan_.expert_slot_bytes +
                        (device_driven() ? size_.num_experts * expert_bytes : 0);
  const auto report = [&](int64_t before, int64_t bytes_done) {
    if (options_.progress) options_.progress(std::min(before + bytes_done, total), total);
  };
  auto weights =
      LoadWeights(*checkpoint_, *backend_, [&](int64_t done, int64_t) { report(0, done); });
  if (!weights.ok()) return weights.status();
  absl::Status status =
      LoadExperts([&](int64_t done, int64_t) { report(plan_.dense_bytes, done); });
  if (!status.ok()) return status;

  auto transformer =
      Transformer::Create(config(),
                          {.max_num_batched_tokens = options_.max_num_batched_tokens,
                           .num_kv_blocks = plan_.num_kv_blocks,
                           .logit_rows = LogitsTileRows(config(), options_.max_num_seqs),
                           .max_tokens_beside_pass = TokensBesidePass(options_, device_driven())},
                          *std::move(weights), *experts_, *backend_);
  if (!transformer.ok()) return transformer.status();
  transformer_ = *std::move(transformer);
  status = CreateSampler();
  if (!status.ok()) return status;
  report(total, 0);
  if (options_.record_routing) {
    experts_->cache().StartRecording(options_.model_name,
                                     static_cast<int64_t>(expert_format().blob_bytes()));
  }
  PublishSnapshot();
  options_.hot_set.reset();
  return absl::OkStatus();
}

absl::Status ModelRunner::CreateSampler() {
  const auto vocab_size = static_cast<int>(config().vocab_size);
  std::unique_ptr<backend::RowSampler> on_device;
  if (device_driven() && options_.sample_on_device) {
    auto sampler =
        backend_->CreateRowSampler({.vocab_size = vocab_size, .max_rows = DeviceTokens(options_)});
    if (sampler.ok()) {
      on_device = *std::move(sampler);
    } else if (!absl::IsUnimplemented(sampler.status())) {
      return sampler.status();
    }
  }
  sampler_ = std::make_unique<StepSampler>(vocab_size, std::move(on_device), *backend_);
  return absl::OkStatus();
}

absl::Status ModelRunner::LoadExperts(const LoadProgress& progress) {
  const absl::StatusOr<ExpertBudget> budget = ParseExpertBudget(options_.expert_budget);
  if (!budget.ok()) return budget.status();
  const absl::StatusOr<int> slots = ResolveSlotsTaken(*budget);
  if (!slots.ok()) return slots.status();
  if (absl::Status status = CheckSlots(*slots); !status.ok()) return status;
  const backend::ColdPath cold_path = cold_path_.value_or(backend::ColdPath::kLink);
  std::shared_ptr<const backend::NextRouters> next_routers;
  if (device_driven() && cold_path != backend::ColdPath::kLink) {
    auto read = ReadNextRouters(*checkpoint_);
    if (!read.ok()) return read.status();
    next_routers = *std::move(read);
  }
  auto experts = ExpertStore::Create(config(),
                                     {.num_slots = *slots,
                                      .max_slots = plan_.num_expert_slots,
                                      .policy = options_.expert_policy,
                                      .io_threads = IoThreads(options_, served_, device_driven()),
                                      .device_tokens = device_driven() ? DeviceTokens(options_) : 0,
                                      .slots_on_device = backend_->Memory().has_value(),
                                      .cold_path = cold_path,
                                      .cold_threads = options_.cold_threads,
                                      .next_routers = std::move(next_routers),
                                      .progress = progress},
                                     *served_.source, *backend_);
  if (!experts.ok()) return experts.status();
  experts_ = *std::move(experts);
  std::span<const cache::ExpertKey> hot;
  if (options_.hot_set.has_value()) {
    experts_->cache().RestoreHeat(*options_.hot_set);
    hot = options_.hot_set->residents;
  }
  if (!options_.warm_experts) return absl::OkStatus();
  const auto expert_bytes = static_cast<int64_t>(expert_format().blob_bytes());
  const int64_t before = device_driven() ? size_.num_experts * expert_bytes : 0;
  const auto report = [&](int64_t done, int64_t total) {
    if (progress) progress(before + done, before + total);
  };
  // What is not encoded now would be on a request.
  const bool must_end = served_.encoding != nullptr && !device_driven();
  return experts_->Warm(report, hot, must_end ? absl::InfiniteFuture() : options_.warm_deadline);
}

absl::Status ModelRunner::CheckSlots(int slots) const {
  if (served_.encoding == nullptr || device_driven() || slots == size_.num_experts) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "experts in bf16 are encoded to bf12 while loading, never on a request, and the budget "
      "holds ",
      slots, " of ", size_.num_experts, "; write the checkpoint anew with `moed convert ",
      checkpoint_->directory(), " DESTINATION` and serve that, or let the budget hold them all"));
}

absl::Status ModelRunner::Run(const StepInput& input, StepResult* result) {
  if (absl::Status status = Begin(input); !status.ok()) return status;
  return Finish(input, result);
}

absl::Status ModelRunner::Begin(const StepInput& input) {
  if (absl::Status status = CheckStep(input); !status.ok()) return status;
  const auto tokens = static_cast<int64_t>(input.token_ids.size());
  if (pass_ != nullptr && tokens > max_tokens_beside_pass()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the step has ", tokens, " tokens, and beside a ", "prefill the limit is ",
                     max_tokens_beside_pass()));
  }
  begun_ = transformer_->OnDevice(tokens);
  return begun_ ? transformer_->Forward(input) : absl::OkStatus();
}

absl::Status ModelRunner::Finish(const StepInput& input, StepResult* result) {
  absl::Status status;
  if (!std::exchange(begun_, false)) status = transformer_->Forward(input);
  if (status.ok()) sampler_->Issue(input, LogitsOf::kStep, *transformer_);
  // A device computes meanwhile. What is sent to it here comes behind the sampling.
  if (status.ok()) status = Settle();
  // It still computes logits, and samples.
  if (status.ok()) status = transformer_->EndStep(&shares_);
  if (status.ok()) status = sampler_->Finish(input, LogitsOf::kStep, *transformer_, result);
  if (!status.ok()) return status;
  EndStep(result);
  return absl::OkStatus();
}

void ModelRunner::EndStep(StepResult* result) {
  for (size_t i = 0; i < shares_.size(); ++i) result->chunks[i].experts = shares_[i];
  settled_ = false;
  if (!device_driven()) Settle().IgnoreError();  // there is no protocol to break
}

absl::Status ModelRunner::Settle() {
  if (std::exchange(settled_, true)) return absl::OkStatus();
  absl::Status status = transformer_->FollowLastStep();
  if (options_.record_routing) options_.record_routing(experts_->cache().TakeRecording());
  PublishSnapshot();
  return status;
}

std::shared_ptr<const ExpertSnapshot> ModelRunner::Snapshot() const {
  const std::lock_guard lock(snapshot_mutex_);
  return snapshot_;
}

absl::Status ModelRunner::CheckStep(const StepInput& input) const {
  int64_t tokens = 0;
  for (const SequenceChunk& chunk : input.chunks) {
    tokens += chunk.num_tokens;
    const auto capacity = static_cast<int64_t>(chunk.kv_blocks.size()) * kKvBlockTokens;
    if (chunk.num_tokens < 1 || chunk.context_start < 0 ||
        chunk.context_start + chunk.num_tokens > capacity) {
      return absl::InvalidArgumentError("a chunk of the step has no tokens or too few KV blocks");
    }
    for (int32_t block : chunk.kv_blocks) {
      if (block < 0 || block >= plan_.num_kv_blocks) {
        return absl::InvalidArgumentError(absl::StrCat("there is no KV block ", block));
      }
    }
  }
  if (tokens != static_cast<int64_t>(input.token_ids.size()) ||
      tokens > options_.max_num_batched_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the step has ", input.token_ids.size(), " tokens, its chunks ", tokens,
                     ", and the limit is ", options_.max_num_batched_tokens));
  }
  for (int32_t token : input.token_ids) {
    if (token < 0 || token >= config().vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " is not in 0 to ", config().vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

void ModelRunner::PublishSnapshot() {
  cache::ExpertCache& cache = experts_->cache();
  auto snapshot = std::make_shared<ExpertSnapshot>();
  snapshot->cache = cache.Stats();
  snapshot->experts = cache.PerExpertStats();
  snapshot->budgets = cache.EstimateBudgets();
  if (balance_ == nullptr || snapshot->cache.steps_total % kBalanceSteps == 0) {
    balance_ = std::make_shared<const std::vector<cache::LayerBalance>>(cache.Balance());
  }
  snapshot->balance = balance_;
  snapshot->max_slots = cache.max_slots();
  if (experts_->device() != nullptr) {
    snapshot->cold_neurons = experts_->device()->cold_neurons();
    snapshot->cold_rates = experts_->device()->cold_rates();
  }
  const std::lock_guard lock(snapshot_mutex_);
  snapshot_ = std::move(snapshot);
}

}  // namespace moed::model
