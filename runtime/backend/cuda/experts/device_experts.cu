#include <algorithm>
#include <utility>

#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/experts/device_experts.h"
#include "runtime/backend/cuda/experts/expert_tiles.h"
#include "runtime/backend/cuda/experts/planned_route.h"
#include "runtime/backend/cuda/experts/two_pass_experts.h"
#include "runtime/backend/cuda/plan/cold_plan.h"

namespace moed::backend {
namespace {

constexpr size_t Aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Hands out pieces of an allocation; with a null base it only counts.
class Cutter {
 public:
  explicit Cutter(std::byte* base) : base_(base) {}
  template <typename T>
  T* Cut(size_t count) {
    auto* piece = reinterpret_cast<T*>(base_ == nullptr ? nullptr : base_ + bytes_);
    bytes_ += Aligned(count * sizeof(T));
    return piece;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  size_t bytes_ = 0;
};

absl::Status CheckShape(const DeviceExpertsOptions& options) {
  const ExpertFormat& format = options.format;
  if (format.intermediate() % kTileNeurons == 0 && format.hidden() % 8 == 0) {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat("the CUDA kernels take hidden sizes and intermediate sizes in multiples of 8, "
                   "not ",
                   format.hidden(), " and ", format.intermediate()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceExperts>> CudaDeviceExperts::Create(
    const DeviceExpertsOptions& options, Backend& backend, const StepTables& steps, int* arrived,
    cudaStream_t stream, SideStream& side, int multiprocessors) {
  if (absl::Status status = CheckShape(options); !status.ok()) return status;
  std::unique_ptr<CudaDeviceExperts> experts(
      new CudaDeviceExperts(options, backend, steps, arrived, stream, side, multiprocessors));
  if (absl::Status status = experts->Allocate(); !status.ok()) return status;
  if (options.cold_path != ColdPath::kLink) {
    auto cold_path = CudaColdPath::Create(options, stream);
    if (!cold_path.ok()) return cold_path.status();
    experts->cold_path_ = *std::move(cold_path);
  }
  return experts;
}

CudaDeviceExperts::CudaDeviceExperts(const DeviceExpertsOptions& options, Backend& backend,
                                     const StepTables& steps, int* arrived, cudaStream_t stream,
                                     SideStream& side, int multiprocessors)
    : options_(options),
      backend_(backend),
      steps_(steps),
      arrived_(arrived),
      stream_(stream),
      side_(side),
      multiprocessors_(multiprocessors),
      link_access_(LinkAccessFor(options.format.kind(), static_cast<int>(options.format.hidden()))),
      two_passes_(TwoPassSupports()) {
  for (int experts : options_.experts_per_layer) {
    first_expert_.push_back(total_experts_);
    total_experts_ += experts;
  }
}

absl::Status CudaDeviceExperts::Allocate() {
  const size_t table_bytes = CutTable(nullptr);
  const auto table = table_.Reserve(table_bytes);
  const auto work = work_.Reserve(CutWork(nullptr));
  trace_bytes_ = UsesOffset() + total_experts_ * sizeof(ExpertUse);
  const auto device_trace = device_trace_.Reserve(trace_bytes_);
  const auto host_trace = host_trace_.Reserve(trace_bytes_);
  for (const absl::Status& status :
       {table.status(), work.status(), device_trace.status(), host_trace.status()}) {
    if (!status.ok()) return status;
  }
  device_trace_data_ = *device_trace;
  host_trace_data_ = *host_trace;
  CutTable(*table);
  CutWork(*work);
  absl::Status status = FillTable(table_bytes);
  const int hidden = static_cast<int>(options_.format.hidden());
  status.Update(CudaStatus(PrepareExpertTiles(hidden), "preparing the expert kernels"));
  const ExpertFormatKind format = options_.format.kind();
  if (status.ok() && ExpertNeuronsSupports(format, hidden)) {
    status = CudaStatus(PrepareExpertNeurons(format, hidden), "preparing the expert kernels");
  }
  return status;
}

// Lays the table out from `base` on, which may be null; returns its bytes.
size_t CudaDeviceExperts::CutTable(std::byte* base) {
  Cutter cutter(base);
  const size_t num_layers = first_expert_.size();
  device_layers_ = cutter.Cut<ExpertTableLayer>(num_layers);
  auto* entries = cutter.Cut<ExpertTableEntry>(total_experts_);
  auto* offered = cutter.Cut<OfferedSlot>(2 * size_t(total_experts_));
  auto* num_offered = cutter.Cut<int32_t>(num_layers);
  auto* uses = reinterpret_cast<ExpertUse*>(device_trace_data_ + UsesOffset());
  layers_.assign(num_layers, {});
  for (size_t i = 0; i < num_layers; ++i) {
    const int first = first_expert_[i];
    const int num_experts = options_.experts_per_layer[i];
    layers_[i] = {.entries = entries + first,
                  .offered = offered + 2 * first,
                  .num_offered = num_offered + i,
                  .uses = uses + first,
                  .experts = options_.host_experts + first * options_.format.blob_bytes(),
                  .num_experts = num_experts,
                  .max_offered = 2 * num_experts};
  }
  return cutter.bytes();
}

// The same for the list of a layer's tasks and what the kernels need beside it.
size_t CudaDeviceExperts::CutWork(std::byte* base) {
  const auto most =
      *std::max_element(options_.experts_per_layer.begin(), options_.experts_per_layer.end());
  const size_t max_tasks = most + StepPairs() / kTaskTokens;
  const size_t max_tiles = max_tasks * (options_.format.intermediate() / kTileNeurons);
  const size_t scratch_bytes = ExpertTilesScratchBytes(static_cast<int>(max_tiles));
  Cutter cutter(base);
  list_ = cutter.Cut<ExpertTaskList>(1);
  vram_tasks_ = cutter.Cut<ExpertTask>(max_tasks);
  link_tasks_ = cutter.Cut<ExpertTask>(max_tasks);
  activations_ = cutter.Cut<__nv_bfloat16>(scratch_bytes / sizeof(__nv_bfloat16));
  return cutter.bytes();
}

// Empty entries, no offers, nothing used.
absl::Status CudaDeviceExperts::FillTable(size_t table_bytes) {
  const std::vector<ExpertTableEntry> entries(total_experts_);
  absl::Status status;
  for (const cudaError_t error :
       {cudaMemsetAsync(device_layers_, 0, table_bytes, stream_),
        cudaMemsetAsync(device_trace_data_, 0, trace_bytes_, stream_),
        cudaMemcpyAsync(device_layers_, layers_.data(), layers_.size() * sizeof(layers_[0]),
                        cudaMemcpyHostToDevice, stream_),
        cudaMemcpyAsync(layers_[0].entries, entries.data(), entries.size() * sizeof(entries[0]),
                        cudaMemcpyHostToDevice, stream_),
        cudaStreamSynchronize(stream_)}) {
    status.Update(CudaStatus(error, "setting up the table of experts"));
  }
  return status;
}

size_t CudaDeviceExperts::StepPairs() const { return size_t(options_.max_tokens) * options_.top_k; }

size_t CudaDeviceExperts::UsesOffset() const {
  return Aligned(first_expert_.size() * StepPairs() * sizeof(int32_t));
}

int64_t CudaDeviceExperts::PaddedTokens(int64_t tokens) const {
  // Powers of two, and from 8 on also one and a half times them.
  int64_t padded = 1;
  while (padded < tokens) {
    padded = padded >= 8 && padded * 3 / 2 >= tokens ? padded * 3 / 2 : padded * 2;
  }
  return std::min<int64_t>(padded, options_.max_tokens);
}

absl::Status CudaDeviceExperts::BeginStep(int64_t tokens) {
  step_tokens_ = tokens;
  return cold_path_ != nullptr ? cold_path_->BeginStep(PaddedTokens(tokens)) : absl::OkStatus();
}

absl::Status CudaDeviceExperts::EndStep() {
  absl::Status status = finished_;
  status.Update(side_.Wait());
  if (!status.ok() || cold_path_ == nullptr) return status;
  for (int layer = 0; layer < static_cast<int>(layers_.size()); ++layer) {
    if (options_.experts_per_layer[layer] == 0) continue;
    cold_path_->workers().FollowUses(layer, StepIds(layer, step_tokens_), Uses(layer));
  }
  return cold_path_->EndStep();
}

absl::Status CudaDeviceExperts::Apply(std::span<const ExpertEdit> edits) {
  if (cold_path_ != nullptr) cold_path_->workers().Follow(edits);
  return edits_.Apply(edits, device_layers_, layers_.size(), stream_);
}

Tensor CudaDeviceExperts::ids(int layer, int64_t tokens) const {
  return Tensor(device_trace_data_ + layer * StepPairs() * sizeof(int32_t), DType::kI32,
                {tokens, options_.top_k});
}

void CudaDeviceExperts::Route(int layer, const RouterStep& step) {
  const int rows = static_cast<int>(step.x.dim(0));
  const bool single = rows == 1 && options_.top_k <= kMostPlannedExperts;
  planned_ =
      (single || cold_path_ == nullptr) && NormRouteSupports(rows, static_cast<int>(step.x.dim(1)));
  if (!planned_) {
    backend_.NormRoute(step);
    return;
  }
  const NormRouteArguments route = NormRouteArgumentsOf(step, arrived_);
  const PlanExpertsArguments plan = PlanArguments(layer, step.weights, rows);
  if (RunsNeurons(rows) && step.spec.num_experts <= kMostChoiceExperts) {
    LaunchLogits(route, stream_);
    choice_ = {step.spec, route.logits, route.ids, route.weights, arrived_, plan, {}};
    if (cold_path_ != nullptr) choice_.mail = cold_path_->MailOf(layer);
  } else if (cold_path_ == nullptr) {
    LaunchRouteAndPlan(route, plan, stream_);
  } else {
    LaunchRouteAndDivide(route, DivideArguments(layer, plan), stream_);
  }
}

void CudaDeviceExperts::Run(int layer, const Tensor& weights, const Tensor& x,
                            const Tensor& residual) {
  const int rows = static_cast<int>(x.dim(0));
  if (!std::exchange(planned_, false)) Plan(layer, weights, x);
  const bool collects = choice_.mail.state != nullptr;
  Compute(layer, rows, x, residual);
  if (cold_path_ != nullptr && !collects) cold_path_->Collect(residual.As<float>(), rows);
}

int CudaDeviceExperts::JoinedTasks(int layer, int rows) const {
  return JoinedTasksFor(two_passes_, options_.format.kind(),
                        static_cast<int>(options_.format.hidden()), rows, options_.top_k,
                        options_.experts_per_layer[layer]);
}

PlanExpertsArguments CudaDeviceExperts::PlanArguments(int layer, const Tensor& weights,
                                                      int rows) const {
  return {.layer = layers_[layer],
          .slots = options_.slots,
          .blob_bytes = options_.format.blob_bytes(),
          .tiles_per_expert = static_cast<int>(options_.format.intermediate() / kTileNeurons),
          .ids = ids(layer, rows).As<int32_t>(),
          .weights = weights.As<float>(),
          .positions = steps_.view().positions,
          .rows = rows,
          .top_k = options_.top_k,
          .joined_tasks = JoinedTasks(layer, rows),
          .joined_link_tasks = IsBulk(link_access_) ? kMostJoinedTasks : 0,
          .list = list_,
          .vram_tasks = vram_tasks_,
          .link_tasks = link_tasks_};
}

DivideExpertsArguments CudaDeviceExperts::DivideArguments(int layer,
                                                          const PlanExpertsArguments& plan) const {
  return {
      .plan = plan, .layer = layer, .mailbox = cold_path_->mailbox(), .state = cold_path_->state()};
}

void CudaDeviceExperts::Plan(int layer, const Tensor& weights, const Tensor& x) {
  const int rows = static_cast<int>(x.dim(0));
  const PlanExpertsArguments plan = PlanArguments(layer, weights, rows);
  if (cold_path_ == nullptr) {
    LaunchPlanExperts(plan, stream_);
    return;
  }
  LaunchDivideExperts(DivideArguments(layer, plan), stream_);
  cold_path_->Post(x.As<__nv_bfloat16>(), rows);
}

bool CudaDeviceExperts::RunsNeurons(int rows) const {
  return rows == 1 && options_.top_k <= kMaxNeuronTasks && multiprocessors_ >= kLeastNeuronBlocks &&
         ExpertNeuronsSupports(options_.format.kind(), static_cast<int>(options_.format.hidden()));
}

void CudaDeviceExperts::Compute(int layer, int rows, const Tensor& x, const Tensor& residual) {
  const int hidden = static_cast<int>(options_.format.hidden());
  const ExpertFormatKind format = options_.format.kind();
  const int list_bytes = static_cast<int>(options_.format.tile_list_bytes());
  if (RunsNeurons(rows)) {
    ExpertNeuronsArguments neurons;
    neurons.choice = std::exchange(choice_, {});
    neurons.tasks = list_;
    neurons.x = x.As<__nv_bfloat16>();
    neurons.output = residual.As<float>();
    neurons.hidden = hidden;
    neurons.intermediate = static_cast<int>(options_.format.intermediate());
    neurons.list_bytes = list_bytes;
    neurons.multiprocessors = multiprocessors_;
    LaunchExpertNeurons(format, neurons, stream_);
    return;
  }
  ExpertTilesArguments tiles;
  tiles.tasks = list_;
  tiles.x = x.As<__nv_bfloat16>();
  tiles.output = residual.As<float>();
  tiles.activations = activations_;
  tiles.format = format;
  tiles.hidden = hidden;
  tiles.list_bytes = list_bytes;
  tiles.multiprocessors = multiprocessors_;
  tiles.link = link_access_;
  tiles.joined_tasks = JoinedTasks(layer, rows);
  LaunchExpertTiles(tiles, stream_);
}

void CudaDeviceExperts::FinishStep() {
  finished_ = side_.Fork(stream_);
  cudaMemcpyAsync(host_trace_data_, device_trace_data_, trace_bytes_, cudaMemcpyDeviceToHost,
                  side_.stream());
  if (cold_path_ != nullptr) cold_path_->CopyBack(side_.stream());
  finished_.Update(side_.Mark());
}

std::span<const int32_t> CudaDeviceExperts::StepIds(int layer, int64_t tokens) const {
  return {reinterpret_cast<const int32_t*>(host_trace_data_) + layer * StepPairs(),
          size_t(tokens) * options_.top_k};
}

std::span<const ExpertUse> CudaDeviceExperts::Uses(int layer) const {
  const auto* uses = reinterpret_cast<const ExpertUse*>(host_trace_data_ + UsesOffset());
  return {uses + first_expert_[layer], static_cast<size_t>(options_.experts_per_layer[layer])};
}

ColdNeurons CudaDeviceExperts::cold_neurons() const {
  return cold_path_ != nullptr ? cold_path_->workers().neurons() : ColdNeurons();
}

ColdRates CudaDeviceExperts::cold_rates() const {
  return cold_path_ != nullptr ? cold_path_->rates() : ColdRates();
}

}  // namespace moed::backend
