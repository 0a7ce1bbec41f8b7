#include "runtime/backend/cuda/sampling/row_sampler.h"

#include <algorithm>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "runtime/backend/cuda/device/compiled_kernel.h"
#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/sampling/sample_row.cuh"

namespace moed::backend {
namespace {

struct SampleRowsArguments {
  const float* logits = nullptr;  // [any, V]
  const RowSampling* rows = nullptr;
  const LogitAdjustment* adjustments = nullptr;
  SampledRow* results = nullptr;
  int vocab_size = 0;
  int slice = 0;  // ids of a block
};

// Grid: a cluster for each row. Shared memory: RowShared, then the slice.
__global__ void __launch_bounds__(kRowThreads, 2) SampleRows(SampleRowsArguments a) {
  extern __shared__ __align__(16) std::byte memory[];
  const int index = blockIdx.x / kRowBlocks;
  RowArguments row;
  row.sampling = a.rows[index];
  row.logits = a.logits + size_t(row.sampling.row) * a.vocab_size;
  row.adjustments = a.adjustments + row.sampling.first_adjustment;
  row.result = a.results + index;
  RowBlock block;
  block.shared = reinterpret_cast<RowShared*>(memory);
  block.values = reinterpret_cast<float*>(memory + sizeof(RowShared));
  block.rank = ClusterRank();
  block.first = min(block.rank * a.slice, a.vocab_size);
  block.width = min(a.slice, a.vocab_size - block.first);
  block.vocab_size = a.vocab_size;
  SampleRow(block, row);
  ClusterSync();  // others may still read this block's shared memory
}

int SliceOf(int vocab_size) { return (vocab_size + kRowBlocks - 1) / kRowBlocks; }

size_t SharedBytes(int vocab_size) {
  return sizeof(RowShared) + sizeof(float) * size_t(SliceOf(vocab_size));
}

// The launch of `rows` clusters; `attribute` must outlive it.
cudaLaunchConfig_t LaunchOf(int rows, int vocab_size, cudaStream_t stream,
                            cudaLaunchAttribute* attribute) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim = {kRowBlocks, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(rows * kRowBlocks);
  config.blockDim = dim3(kRowThreads);
  config.dynamicSmemBytes = SharedBytes(vocab_size);
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

// Whether a cluster can be resident at all.
absl::Status CheckFits(int vocab_size, cudaStream_t stream) {
  const absl::Status refused = absl::UnimplementedError(
      absl::StrCat("the device cannot hold a row of ", vocab_size, " logits in one cluster"));
  if (!KernelsAreCompiledForHopper()) return refused;
  const auto bytes = static_cast<int>(SharedBytes(vocab_size));
  int clusters = 0;
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = LaunchOf(1, vocab_size, stream, &attribute);
  if (cudaFuncSetAttribute(SampleRows, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) !=
          cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&clusters, SampleRows, &config) != cudaSuccess) {
    cudaGetLastError();  // not sticky: nothing was launched
    return refused;
  }
  return clusters > 0 ? absl::OkStatus() : refused;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RowSampler>> CudaRowSampler::Create(const RowSamplerOptions& options,
                                                                   const absl::Status& error,
                                                                   cudaStream_t stream) {
  if (absl::Status status = CheckFits(options.vocab_size, stream); !status.ok()) return status;
  std::unique_ptr<CudaRowSampler> sampler(new CudaRowSampler(options, error, stream));
  if (absl::Status status = sampler->Allocate(); !status.ok()) return status;
  return sampler;
}

absl::Status CudaRowSampler::Allocate() {
  absl::Status status =
      CudaStatus(cudaStreamCreateWithFlags(upload_stream_.receive(), cudaStreamNonBlocking),
                 "creating a CUDA stream for the sampler");
  for (CudaEvent* event : {&uploaded_, &sampled_}) {
    status.Update(CudaStatus(cudaEventCreateWithFlags(event->receive(), cudaEventDisableTiming),
                             "creating a CUDA event for the sampler"));
  }
  if (!status.ok()) return status;
  const auto bytes = static_cast<size_t>(RowSamplerBytes(options_.max_rows));
  const auto staging = staging_memory_.Reserve(bytes);
  if (!staging.ok()) return staging.status();
  const auto device = device_memory_.Reserve(bytes);
  if (!device.ok()) return device.status();
  const auto results = result_memory_.Reserve(options_.max_rows * sizeof(SampledRow));
  if (!results.ok()) return results.status();
  staging_ = *staging;
  device_ = *device;
  results_ = reinterpret_cast<SampledRow*>(*results);
  return absl::OkStatus();
}

void CudaRowSampler::Sample(const Tensor& logits, std::span<const RowSampling> rows,
                            std::span<const LogitAdjustment> adjustments) {
  ABSL_RAW_CHECK(static_cast<int>(rows.size()) <= max_rows() &&
                     static_cast<int>(adjustments.size()) <= max_adjustments(),
                 "more rows or adjustments than the sampler was made for");
  num_results_ = rows.size();
  if (rows.empty()) return;
  std::copy(rows.begin(), rows.end(), reinterpret_cast<RowSampling*>(staging_));
  std::copy(adjustments.begin(), adjustments.end(),
            reinterpret_cast<LogitAdjustment*>(staging_ + rows.size_bytes()));
  cudaMemcpyAsync(device_, staging_, rows.size_bytes() + adjustments.size_bytes(),
                  cudaMemcpyHostToDevice, upload_stream_.get());
  cudaEventRecord(uploaded_.get(), upload_stream_.get());
  cudaStreamWaitEvent(stream_, uploaded_.get());
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config =
      LaunchOf(static_cast<int>(rows.size()), options_.vocab_size, stream_, &attribute);
  cudaLaunchKernelEx(&config, SampleRows,
                     SampleRowsArguments{.logits = logits.As<float>(),
                                         .rows = reinterpret_cast<const RowSampling*>(device_),
                                         .adjustments = reinterpret_cast<const LogitAdjustment*>(
                                             device_ + rows.size_bytes()),
                                         .results = results_,
                                         .vocab_size = options_.vocab_size,
                                         .slice = SliceOf(options_.vocab_size)});
  cudaEventRecord(sampled_.get(), stream_);
}

absl::Status CudaRowSampler::Wait() {
  absl::Status status = error_;
  status.Update(CudaStatus(cudaGetLastError(), "sampling"));
  status.Update(CudaStatus(cudaEventSynchronize(sampled_.get()), "sampling"));
  return status;
}

}  // namespace moed::backend
