#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "runtime/backend/cuda/dense/elementwise.h"
#include "runtime/backend/cuda/device/blob_tensor.h"
#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/experts/expert_tiles.h"
#include "runtime/backend/cuda/experts/two_pass_experts.h"
#include "runtime/backend/cuda/prefill/expert_products.h"
#include "runtime/backend/cuda/prefill/experts.h"
#include "runtime/backend/cuda/prefill/experts_at_once.h"
#include "runtime/backend/cuda/prefill/unpack_experts.h"
#include "runtime/backend/cuda/prefill/warpgroup_products.h"

namespace moed::backend {
namespace {

// Rows of an expert from which whole matrix products beat reading the weights once per eight rows.
constexpr size_t kManyRows = 24;
constexpr int kThreads = 256;
// Of experts unpacked at a time.
constexpr size_t kUnpackedBytes = size_t{208} << 20;

constexpr size_t Aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

__global__ void ZeroRows(const ExpertTask* tasks, int hidden, float* out) {
  const ExpertTask& task = tasks[blockIdx.x];
  for (int t = 0; t < task.num_tokens; ++t) {
    for (int i = threadIdx.x; i < hidden; i += kThreads) {
      out[size_t(task.target[t]) * hidden + i] = 0.0f;
    }
  }
}

// gathered[i] = x[rows[i] / top_k]
__global__ void GatherTokens(const __nv_bfloat16* x, const int32_t* rows, int top_k, int hidden,
                             __nv_bfloat16* gathered) {
  const __nv_bfloat16* from = x + size_t(rows[blockIdx.x] / top_k) * hidden;
  for (int i = threadIdx.x; i < hidden; i += kThreads) {
    gathered[size_t(blockIdx.x) * hidden + i] = from[i];
  }
}

// out[rows[i]] = y[i]
__global__ void ScatterRows(const float* y, const int32_t* rows, int hidden, float* out) {
  for (int i = threadIdx.x; i < hidden; i += kThreads) {
    out[size_t(rows[blockIdx.x]) * hidden + i] = y[size_t(blockIdx.x) * hidden + i];
  }
}

// Tasks of at most eight rows each, in the order of `work`.
std::vector<ExpertTask> MakeTasks(std::span<const ExpertWork> work, int top_k,
                                  int tiles_per_expert) {
  std::vector<ExpertTask> tasks;
  int first_tile = 0;
  for (const ExpertWork& item : work) {
    for (size_t begin = 0; begin < item.rows.size(); begin += kTaskTokens) {
      ExpertTask task;
      task.blob = item.blob;
      task.num_tokens = static_cast<int>(std::min<size_t>(kTaskTokens, item.rows.size() - begin));
      task.first_tile = first_tile;
      task.num_tiles = tiles_per_expert;
      for (int i = 0; i < task.num_tokens; ++i) {
        task.token[i] = item.rows[begin + i] / top_k;
        task.target[i] = item.rows[begin + i];
        task.weight[i] = 1.0f;
      }
      first_tile += tiles_per_expert;
      tasks.push_back(task);
    }
  }
  return tasks;
}

}  // namespace

CudaExperts::CudaExperts(const Cublas& cublas, cudaStream_t stream, int multiprocessors)
    : cublas_(cublas),
      stream_(stream),
      multiprocessors_(multiprocessors),
      warpgroup_products_(PrepareWarpgroupProducts()),
      two_passes_(TwoPassSupports()) {}

absl::Status CudaExperts::Run(const ExpertFormat& format, std::span<const ExpertWork> work,
                              int top_k, const Tensor& x, const Tensor& out) {
  const bool whole_tiles = format.intermediate() % kTileNeurons == 0 && format.hidden() % 8 == 0;
  std::vector<ExpertWork> few;
  std::vector<ExpertWork> many;
  for (const ExpertWork& item : work) {
    if (item.rows.empty()) continue;
    (whole_tiles && item.rows.size() < kManyRows ? few : many).push_back(item);
  }
  absl::Status status;
  if (!few.empty()) status = RunFewRows(format, few, top_k, x, out);
  if (!status.ok() || many.empty()) return status;
  return whole_tiles ? RunManyRows(format, many, top_k, x, out)
                     : RunEachAnyShape(format, many, top_k, x, out);
}

size_t CudaExperts::UnpackedAtOnce(const ExpertFormat& bf16,
                                   std::span<const ExpertWork> work) const {
  const size_t most = std::clamp<size_t>(kUnpackedBytes / bf16.blob_bytes(), 1, kMaxUnpacked);
  if (!warpgroup_products_) return std::min(most, work.size());
  size_t rows = 0;
  for (const ExpertWork& item : work) rows += item.rows.size();
  return WarpgroupExpertsAtOnce(bf16, work.size(), rows, most, multiprocessors_);
}

absl::Status CudaExperts::Unpack(const ExpertFormat& format, const ExpertFormat& bf16,
                                 std::span<const ExpertWork> work, std::byte* target) {
  UnpackExpertsArguments arguments = UnpackArguments(format, bf16);
  arguments.target = target;
  arguments.num_experts = static_cast<int>(work.size());
  for (size_t i = 0; i < work.size(); ++i) arguments.blobs[i] = work[i].blob;
  return CudaStatus(LaunchUnpackExperts(arguments, stream_), "launching the unpacking of experts");
}

absl::Status CudaExperts::RunEachAnyShape(const ExpertFormat& format,
                                          std::span<const ExpertWork> work, int top_k,
                                          const Tensor& x, const Tensor& out) {
  const ExpertFormat bf16(ExpertFormatKind::kBF16, format.hidden(), format.intermediate());
  const bool packed = format.kind() != ExpertFormatKind::kBF16;
  const absl::StatusOr<std::byte*> unpacked = unpacked_.Reserve(packed ? bf16.blob_bytes() : 0);
  absl::Status status = unpacked.status();
  for (size_t i = 0; i < work.size() && status.ok(); ++i) {
    ExpertWork item = work[i];
    if (packed) status = Unpack(format, bf16, work.subspan(i, 1), *unpacked);
    if (packed) item.blob = *unpacked;
    if (status.ok()) status = RunAnyShape(bf16, item, top_k, x, out);
  }
  return status;
}

absl::Status CudaExperts::RunFewRows(const ExpertFormat& format, std::span<const ExpertWork> work,
                                     int top_k, const Tensor& x, const Tensor& out) {
  const int hidden = static_cast<int>(format.hidden());
  if (prepared_hidden_ != hidden) {
    absl::Status status = CudaStatus(PrepareExpertTiles(hidden), "preparing the expert kernels");
    if (!status.ok()) return status;
    prepared_hidden_ = hidden;
  }
  const int tiles_per_expert = static_cast<int>(format.intermediate() / kTileNeurons);
  const std::vector<ExpertTask> tasks = MakeTasks(work, top_k, tiles_per_expert);
  const size_t task_bytes = tasks.size() * sizeof(ExpertTask);
  const size_t bytes = Aligned(sizeof(ExpertTaskList)) + task_bytes;
  const absl::StatusOr<std::byte*> staging = list_.Stage(bytes);
  if (!staging.ok()) return staging.status();
  const int num_tiles = tiles_per_expert * static_cast<int>(tasks.size());
  const absl::StatusOr<std::byte*> scratch =
      scratch_.Reserve(std::max<size_t>(256, ExpertTilesScratchBytes(num_tiles)));
  if (!scratch.ok()) return scratch.status();
  auto* device_tasks =
      reinterpret_cast<ExpertTask*>(list_.target() + Aligned(sizeof(ExpertTaskList)));
  const ExpertTaskList list{.vram = {static_cast<int32_t>(tasks.size()), num_tiles, device_tasks},
                            .link = {}};
  std::memcpy(*staging, &list, sizeof(list));
  std::memcpy(*staging + Aligned(sizeof(list)), tasks.data(), task_bytes);
  if (absl::Status status = list_.Copy(stream_); !status.ok()) return status;
  ZeroRows<<<static_cast<int>(tasks.size()), kThreads, 0, stream_>>>(device_tasks, hidden,
                                                                     out.As<float>());
  ExpertTilesArguments arguments;
  arguments.tasks = reinterpret_cast<const ExpertTaskList*>(list_.target());
  arguments.x = x.As<__nv_bfloat16>();
  arguments.output = out.As<float>();
  arguments.activations = reinterpret_cast<__nv_bfloat16*>(*scratch);
  arguments.format = format.kind();
  arguments.hidden = hidden;
  arguments.list_bytes = static_cast<int>(format.tile_list_bytes());
  arguments.multiprocessors = multiprocessors_;
  // As for a single token: nothing is joined.
  arguments.joined_tasks =
      JoinedTasksFor(two_passes_, format.kind(), hidden, /*rows=*/1, top_k, /*num_experts=*/1);
  return CudaStatus(LaunchExpertTiles(arguments, stream_), "launching the expert kernels");
}

absl::Status CudaExperts::RunManyRows(const ExpertFormat& format, std::span<const ExpertWork> work,
                                      int top_k, const Tensor& x, const Tensor& out) {
  const ExpertFormat bf16(ExpertFormatKind::kBF16, format.hidden(), format.intermediate());
  const bool packed = format.kind() != ExpertFormatKind::kBF16;
  const size_t at_once = packed ? UnpackedAtOnce(bf16, work) : work.size();
  const absl::StatusOr<std::byte*> unpacked =
      unpacked_.Reserve(packed ? at_once * bf16.blob_bytes() : 0);
  if (!unpacked.ok()) return unpacked.status();
  std::vector<const std::byte*> blobs;
  for (size_t i = 0; i < work.size(); ++i) {
    blobs.push_back(packed ? *unpacked + i % at_once * bf16.blob_bytes() : work[i].blob);
  }
  ExpertProductsArguments arguments = {.x = x.As<__nv_bfloat16>(),
                                       .out = out.As<float>(),
                                       .top_k = top_k,
                                       .hidden = static_cast<int>(format.hidden()),
                                       .intermediate = static_cast<int>(format.intermediate()),
                                       .row_values = static_cast<int>(bf16.row_values())};
  std::optional<BlobTensor> tensor;
  if (warpgroup_products_) tensor = DescribeBlobs(bf16, blobs);
  std::vector<int> ends;  // of each expert's tiles
  absl::Status status = ListProducts(tensor.has_value() ? kWarpgroupProductRows : kProductRows,
                                     work, blobs, &arguments, &ends);
  const ExpertProductTile* const tiles = arguments.tiles;
  for (size_t first = 0; first < work.size() && status.ok(); first += at_once) {
    const size_t count = std::min(at_once, work.size() - first);
    if (packed) status = Unpack(format, bf16, work.subspan(first, count), *unpacked);
    if (!status.ok()) break;
    const int begin = first == 0 ? 0 : ends[first - 1];
    arguments.tiles = tiles + begin;
    arguments.num_tiles = ends[first + count - 1] - begin;
    status = CudaStatus(tensor.has_value()
                            ? LaunchWarpgroupProducts(arguments, *tensor, multiprocessors_, stream_)
                            : LaunchExpertProducts(arguments, stream_),
                        "launching the expert products");
  }
  return status;
}

absl::Status CudaExperts::ListProducts(int most_rows, std::span<const ExpertWork> work,
                                       std::span<const std::byte* const> blobs,
                                       ExpertProductsArguments* arguments, std::vector<int>* ends) {
  std::vector<ExpertProductTile> tiles;
  size_t num_rows = 0;
  for (size_t i = 0; i < work.size(); ++i) {
    const auto count = static_cast<int32_t>(work[i].rows.size());
    AddProductTiles(most_rows, blobs[i], static_cast<int32_t>(num_rows), count, &tiles);
    ends->push_back(static_cast<int>(tiles.size()));
    num_rows += count;
  }
  const size_t tiles_bytes = Aligned(tiles.size() * sizeof(tiles[0]));
  const absl::StatusOr<std::byte*> staging = list_.Stage(tiles_bytes + num_rows * sizeof(int32_t));
  if (!staging.ok()) return staging.status();
  std::memcpy(*staging, tiles.data(), tiles.size() * sizeof(tiles[0]));
  auto* rows = reinterpret_cast<int32_t*>(*staging + tiles_bytes);
  for (const ExpertWork& item : work) rows = std::copy(item.rows.begin(), item.rows.end(), rows);
  const absl::StatusOr<std::byte*> scratch =
      scratch_.Reserve(num_rows * arguments->intermediate * sizeof(__nv_bfloat16));
  if (!scratch.ok()) return scratch.status();
  arguments->activations = reinterpret_cast<__nv_bfloat16*>(*scratch);
  arguments->tiles = reinterpret_cast<const ExpertProductTile*>(list_.target());
  arguments->rows = reinterpret_cast<const int32_t*>(list_.target() + tiles_bytes);
  return list_.Copy(stream_);
}

absl::Status CudaExperts::RunAnyShape(const ExpertFormat& format, const ExpertWork& work, int top_k,
                                      const Tensor& x, const Tensor& out) {
  const int hidden = static_cast<int>(format.hidden());
  const int neurons = static_cast<int>(format.intermediate());
  const int rows = static_cast<int>(work.rows.size());
  const size_t rows_bytes = Aligned(size_t{4} * rows);
  const size_t gathered_bytes = Aligned(size_t{2} * rows * hidden);
  const size_t gate_up_bytes = Aligned(size_t{8} * rows * neurons);
  const size_t activation_bytes = Aligned(size_t{2} * rows * neurons);
  absl::StatusOr<std::byte*> scratch =
      scratch_.Reserve(rows_bytes + gathered_bytes + gate_up_bytes + activation_bytes +
                       Aligned(size_t{4} * rows * hidden));
  if (!scratch.ok()) return scratch.status();
  std::byte* next = *scratch;
  auto take = [&next](size_t bytes) { return std::exchange(next, next + bytes); };
  auto* row_ids = reinterpret_cast<int32_t*>(take(rows_bytes));
  auto* gathered = reinterpret_cast<__nv_bfloat16*>(take(gathered_bytes));
  auto* gate_up = reinterpret_cast<float*>(take(gate_up_bytes));
  auto* activations = reinterpret_cast<__nv_bfloat16*>(take(activation_bytes));
  auto* y = reinterpret_cast<float*>(next);

  absl::Status status = CudaStatus(
      cudaMemcpyAsync(row_ids, work.rows.data(), size_t{4} * rows, cudaMemcpyHostToDevice, stream_),
      "copying an expert's rows");
  if (!status.ok()) return status;
  GatherTokens<<<rows, kThreads, 0, stream_>>>(x.As<__nv_bfloat16>(), row_ids, top_k, hidden,
                                               gathered);
  const auto* weights = reinterpret_cast<const __nv_bfloat16*>(work.blob);
  const int row = static_cast<int>(format.row_values());
  const int stride = 3 * row;
  for (int half = 0; half < 2 && status.ok(); ++half) {
    status = cublas_.Multiply(MatrixProduct<__nv_bfloat16>{.transpose_a = true,
                                                           .m = neurons,
                                                           .n = rows,
                                                           .k = hidden,
                                                           .a = weights + half * row,
                                                           .a_stride = stride,
                                                           .b = gathered,
                                                           .b_stride = hidden,
                                                           .c = gate_up + half * neurons,
                                                           .c_stride = 2 * neurons},
                              "an expert's gate and up products");
  }
  if (!status.ok()) return status;
  LaunchSwiGlu(gate_up, rows, neurons, activations, stream_);
  status = cublas_.Multiply(MatrixProduct<__nv_bfloat16>{.m = hidden,
                                                         .n = rows,
                                                         .k = neurons,
                                                         .a = weights + 2 * row,
                                                         .a_stride = stride,
                                                         .b = activations,
                                                         .b_stride = neurons,
                                                         .c = y,
                                                         .c_stride = hidden},
                            "an expert's down product");
  if (!status.ok()) return status;
  ScatterRows<<<rows, kThreads, 0, stream_>>>(y, row_ids, hidden, out.As<float>());
  return CudaStatus(cudaGetLastError(), "launching an expert's products");
}

}  // namespace moed::backend
