#include "tests/bench/decode_model.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/model/dummy_checkpoint.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/model_size.h"
#include "runtime/model/read_next_routers.h"
#include "runtime/model/weights.h"

namespace moed {
namespace {

// What the server's steps on the device take at most by default.
constexpr int kDeviceTokens = 64;

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void Check(const absl::Status& status) { ABSL_RAW_CHECK(status.ok(), status.ToString().c_str()); }

template <typename T>
T ValueOf(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

}  // namespace

DecodeModel::DecodeModel(const DecodeModelOptions& options)
    : options_(options),
      backend_(ValueOf(backend::CreateCudaBackend({}))),
      checkpoint_(model::MakeDummyCheckpoint("the benchmark", options.config, {}, /*seed=*/1)),
      num_experts_(static_cast<int>(model::ComputeModelSize(options.config).num_experts)) {
  const auto start = Clock::now();
  LoadExperts();
  CreateTransformer();
  const double host_bytes = static_cast<double>(num_experts_) * static_cast<double>(expert_bytes());
  std::printf("%d experts of %.1f MB, %.1f GB of host memory, made and loaded in %.1f s\n",
              num_experts_, static_cast<double>(expert_bytes()) / 1e6, host_bytes / 1e9,
              SecondsSince(start));
  std::fflush(stdout);
}

void DecodeModel::LoadExperts() {
  const model::ExpertSource& stored = checkpoint_->experts();
  if (options_.bf12) {
    encoded_ = std::make_unique<model::EncodedExperts>(
        stored, ValueOf(model::SampleBf12Format(config(), stored)));
  }
  const model::ExpertSource& source = options_.bf12 ? *encoded_ : stored;
  const int slots = SlotsOf(options_.largest_residency, source.format());
  std::shared_ptr<const backend::NextRouters> next_routers;
  if (std::getenv("MOED_BENCH_NO_LOOK_AHEAD") == nullptr) {
    next_routers = ValueOf(model::ReadNextRouters(*checkpoint_));
  }
  experts_ = ValueOf(
      model::ExpertStore::Create(config(),
                                 {.num_slots = std::max(slots, 1),
                                  .policy = "recency-frequency",
                                  .io_threads = backend::AvailableCpus(),
                                  .device_tokens = std::max(kDeviceTokens, options_.largest_batch),
                                  .cold_path = options_.cold_path,
                                  .next_routers = std::move(next_routers)},
                                 source, *backend_));
  Check(experts_->Warm(nullptr));
}

void DecodeModel::CreateTransformer() {
  blocks_each_ = options_.context / model::kKvBlockTokens + 1;
  const int for_prefill = (options_.prefill_tokens - 1) / model::kKvBlockTokens + 1;
  blocks_.resize(std::max(blocks_each_ * options_.largest_batch, for_prefill));
  std::iota(blocks_.begin(), blocks_.end(), 0);
  model::Weights weights = ValueOf(model::LoadWeights(*checkpoint_, *backend_, nullptr));
  transformer_ = ValueOf(
      model::Transformer::Create(config(),
                                 {.max_num_batched_tokens = options_.prefill_tokens,
                                  .num_kv_blocks = static_cast<int>(blocks_.size()),
                                  .logit_rows = std::max(kDeviceTokens, options_.largest_batch)},
                                 std::move(weights), *experts_, *backend_));
}

void DecodeModel::SetResidency(double share) {
  Check(experts_->cache().SetBudget(SlotsOf(share, experts_->format())));
}

int DecodeModel::SlotsOf(double share, const backend::ExpertFormat& format) const {
  const auto bf16_bytes = static_cast<double>(checkpoint_->experts().format().blob_bytes());
  const double slots = share * num_experts_ * bf16_bytes / static_cast<double>(format.blob_bytes());
  return std::min(static_cast<int>(slots), num_experts_);
}

double DecodeModel::DecodeStep(int batch) {
  model::StepInput input = {.token_ids = RandomTokens(batch), .chunks = {}};
  for (int i = 0; i < batch; ++i) {
    input.chunks.push_back(
        {.num_tokens = 1,
         .context_start = options_.context,
         .kv_blocks = std::span(blocks_).subspan(i * blocks_each_, blocks_each_)});
  }
  return Forward(input);
}

double DecodeModel::Prefill() {
  model::StepInput input = {.token_ids = RandomTokens(options_.prefill_tokens), .chunks = {}};
  input.chunks.push_back(
      {.num_tokens = options_.prefill_tokens, .context_start = 0, .kv_blocks = blocks_});
  return Forward(input);
}

DecodeVram DecodeModel::Vram() const {
  const std::optional<backend::DeviceMemory> memory = backend_->Memory();
  ABSL_RAW_CHECK(memory.has_value(), "a GPU has memory of its own");
  return {.weights = model::ComputeModelSize(config()).dense_bytes,
          .slots = experts_->cache().num_slots() * static_cast<int64_t>(expert_bytes()),
          .kv_cache = static_cast<int64_t>(blocks_.size()) * model::KvBlockBytes(config()),
          .in_use = memory->total_bytes - memory->free_bytes};
}

std::vector<int32_t> DecodeModel::RandomTokens(int count) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) {
    token = static_cast<int32_t>(random_() % static_cast<uint32_t>(config().vocab_size));
  }
  return tokens;
}

double DecodeModel::Forward(const model::StepInput& input) {
  const auto start = Clock::now();
  absl::Status status = transformer_->Forward(input);
  status.Update(transformer_->FollowLastStep());
  status.Update(transformer_->EndStep(&shares_));
  status.Update(backend_->Synchronize());
  Check(status);
  return SecondsSince(start);
}

}  // namespace moed
