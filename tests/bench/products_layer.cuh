// A layer's experts with many rows each, for cuda_products_bench: weights, tokens, what the
// products should give, and their timing. Weights and tokens are random.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "runtime/backend/cuda/dense/cublas.h"
#include "runtime/backend/cuda/prefill/expert_products.h"
#include "runtime/backend/cuda/prefill/warpgroup_products.h"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"
#include "tests/bench/device_check.cuh"

namespace moed::backend {

struct Shape {
  std::string name;
  int hidden;
  int intermediate;
  int top_k;
};

__global__ void FillRandom(__nv_bfloat16* values, size_t count, float scale, uint64_t seed) {
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    uint64_t state = (i + 1 + seed) * 0x9E3779B97F4A7C15ull;
    state = (state ^ state >> 31) * 0xBF58476D1CE4E5B9ull;
    values[i] = __float2bfloat16(static_cast<int32_t>(state >> 32) / 2147483648.0f * scale);
  }
}

struct Sample {
  const __nv_bfloat16* blob;
  int row;
};

// One block per sampled row: expected[i] is its row of the output.
__global__ void PlainExpert(const Sample* samples, ExpertProductsArguments a, float* expected) {
  extern __shared__ float activations[];
  const Sample sample = samples[blockIdx.x];
  const __nv_bfloat16* x = a.x + size_t(sample.row / a.top_k) * a.hidden;
  const int lane = threadIdx.x % 32;
  for (int n = threadIdx.x / 32; n < a.intermediate; n += blockDim.x / 32) {
    const __nv_bfloat16* neuron = sample.blob + size_t(n) * 3 * a.row_values;
    float gate = 0.0f;
    float up = 0.0f;
    for (int c = lane; c < a.hidden; c += 32) {
      gate += __bfloat162float(neuron[c]) * __bfloat162float(x[c]);
      up += __bfloat162float(neuron[a.row_values + c]) * __bfloat162float(x[c]);
    }
    gate = WarpSum(gate);
    up = WarpSum(up);
    if (lane == 0) activations[n] = __bfloat162float(__float2bfloat16(Silu(gate) * up));
  }
  __syncthreads();
  for (int c = threadIdx.x; c < a.hidden; c += blockDim.x) {
    float sum = 0.0f;
    for (int n = 0; n < a.intermediate; ++n) {
      sum += activations[n] * __bfloat162float(sample.blob[(size_t(n) * 3 + 2) * a.row_values + c]);
    }
    expected[size_t(blockIdx.x) * a.hidden + c] = sum;
  }
}

template <typename T>
T* Allocate(size_t count) {
  T* data;
  CUDA_CHECK(cudaMalloc(&data, std::max<size_t>(count, 1) * sizeof(T)));
  return data;
}

template <typename T>
T* Copied(const std::vector<T>& values) {
  T* data = Allocate<T>(values.size());
  CUDA_CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

// Milliseconds of a call in the middle of several.
inline double Milliseconds(cudaStream_t stream, const std::function<void()>& launch) {
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 23; ++i) {
    CUDA_CHECK(cudaEventRecord(begin, stream));
    launch();
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// A layer's experts and the rows they are given.
class Layer {
 public:
  Layer(const Shape& shape, const std::vector<std::vector<int32_t>>& rows_of, cudaStream_t stream,
        int multiprocessors)
      : shape_(shape),
        format_(ExpertFormatKind::kBF16, shape.hidden, shape.intermediate),
        rows_of_(rows_of),
        stream_(stream),
        multiprocessors_(multiprocessors) {
    const int row_values = int(format_.row_values());
    blob_values_ = format_.blob_bytes() / sizeof(__nv_bfloat16);
    blobs_ = Allocate<__nv_bfloat16>(rows_of.size() * blob_values_);
    FillRandom<<<1024, 256, 0, stream>>>(blobs_, rows_of.size() * blob_values_, 0.05f, 1);
    for (const auto& rows : rows_of) all_rows_.insert(all_rows_.end(), rows.begin(), rows.end());
    const size_t tokens = all_rows_.size() / shape.top_k;
    auto* x = Allocate<__nv_bfloat16>(tokens * shape.hidden);
    FillRandom<<<1024, 256, 0, stream>>>(x, tokens * shape.hidden, 1.0f, 99);
    arguments_ = {.rows = Copied(all_rows_),
                  .x = x,
                  .activations = Allocate<__nv_bfloat16>(all_rows_.size() * shape.intermediate),
                  .out = Allocate<float>(all_rows_.size() * shape.hidden),
                  .top_k = shape.top_k,
                  .hidden = shape.hidden,
                  .intermediate = shape.intermediate,
                  .row_values = row_values};
    MakeSamples();
  }

  ~Layer() {
    for (const void* data :
         {static_cast<const void*>(blobs_), static_cast<const void*>(samples_),
          static_cast<const void*>(expected_), static_cast<const void*>(arguments_.rows),
          static_cast<const void*>(arguments_.x), static_cast<const void*>(arguments_.activations),
          static_cast<const void*>(arguments_.out)}) {
      CUDA_CHECK(cudaFree(const_cast<void*>(data)));
    }
  }

  double Flops() const {
    return 6.0 * double(all_rows_.size()) * shape_.hidden * shape_.intermediate;
  }

  // Checks and times a launch of tiles of at most `most_rows`.
  void Report(const char* kernel, int most_rows, double limit_tflops,
              const std::function<void(const ExpertProductsArguments&)>& launch) {
    const std::vector<ExpertProductTile> tiles = Tiles(most_rows);
    ExpertProductTile* device_tiles = Copied(tiles);
    ExpertProductsArguments arguments = arguments_;
    arguments.tiles = device_tiles;
    arguments.num_tiles = int(tiles.size());
    const size_t values = all_rows_.size() * shape_.hidden;
    CUDA_CHECK(cudaMemsetAsync(arguments.out, 0xff, values * 4, stream_));
    CUDA_CHECK(cudaMemsetAsync(arguments.activations, 0xff,
                               all_rows_.size() * shape_.intermediate * 2, stream_));
    launch(arguments);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    const std::string verdict = Verdict();
    const double ms = Milliseconds(stream_, [&] { launch(arguments); });
    const double tflops = Flops() / ms / 1e9;
    std::printf("%-26s %-11s %5zu tiles %7.3f ms %5.0f TFLOP/s = %.2f of cuBLAS's%s\n",
                shape_.name.c_str(), kernel, tiles.size(), ms, tflops, tflops / limit_tflops,
                verdict.c_str());
    std::fflush(stdout);
    CUDA_CHECK(cudaFree(device_tiles));
  }

  void ReportPlain(double limit_tflops) {
    Report("mma", kProductRows, limit_tflops, [&](const ExpertProductsArguments& arguments) {
      CUDA_CHECK(LaunchExpertProducts(arguments, stream_));
    });
  }

  void ReportWarpgroups(double limit_tflops) {
    if (!PrepareWarpgroupProducts()) return;
    std::vector<const std::byte*> blobs;
    for (size_t e = 0; e < rows_of_.size(); ++e) blobs.push_back(Blob(e));
    const auto tensor = DescribeBlobs(format_, blobs);
    if (!tensor.has_value()) {
      std::printf("%-26s the driver does not take the blobs as a tensor\n", shape_.name.c_str());
      return;
    }
    Report("warpgroups", kWarpgroupProductRows, limit_tflops,
           [&](const ExpertProductsArguments& arguments) {
             CUDA_CHECK(LaunchWarpgroupProducts(arguments, *tensor, multiprocessors_, stream_));
           });
  }

  // The same products on rows that are gathered already, without SwiGLU.
  void ReportCublas(const Cublas& cublas, double limit_tflops) {
    const int wide = std::max(shape_.hidden, 2 * shape_.intermediate);
    auto* in = Allocate<__nv_bfloat16>(all_rows_.size() * wide);
    FillRandom<<<1024, 256, 0, stream_>>>(in, all_rows_.size() * wide, 1.0f, 5);
    auto* out = Allocate<float>(all_rows_.size() * wide);
    const double ms = Milliseconds(stream_, [&] { MultiplyByCublas(cublas, in, out); });
    std::printf("%-26s %-11s             %7.3f ms %5.0f TFLOP/s = %.2f of cuBLAS's\n",
                shape_.name.c_str(), "cuBLAS", ms, Flops() / ms / 1e9,
                Flops() / ms / 1e9 / limit_tflops);
    CUDA_CHECK(cudaFree(in));
    CUDA_CHECK(cudaFree(out));
  }

 private:
  const std::byte* Blob(size_t expert) const {
    return reinterpret_cast<const std::byte*>(blobs_ + expert * blob_values_);
  }

  std::vector<ExpertProductTile> Tiles(int most_rows) const {
    std::vector<ExpertProductTile> tiles;
    int32_t first = 0;
    for (size_t e = 0; e < rows_of_.size(); ++e) {
      AddProductTiles(most_rows, Blob(e), first, int32_t(rows_of_[e].size()), &tiles);
      first += int32_t(rows_of_[e].size());
    }
    return tiles;
  }

  // Up to a thousand rows, and what they should become.
  void MakeSamples() {
    const size_t every = std::max<size_t>(1, all_rows_.size() / 1000);
    std::vector<Sample> samples;
    size_t next = 0;
    for (size_t e = 0; e < rows_of_.size(); ++e) {
      for (const int32_t row : rows_of_[e]) {
        if (next++ % every == 0) samples.push_back({blobs_ + e * blob_values_, row});
      }
    }
    for (const Sample& sample : samples) sampled_rows_.push_back(sample.row);
    samples_ = Copied(samples);
    expected_ = Allocate<float>(samples.size() * shape_.hidden);
    const int bytes = shape_.intermediate * int(sizeof(float));
    CUDA_CHECK(
        cudaFuncSetAttribute(PlainExpert, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    PlainExpert<<<int(samples.size()), 256, bytes, stream_>>>(samples_, arguments_, expected_);
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaStreamSynchronize(stream_));
  }

  // Empty, or where the output is wrong.
  std::string Verdict() const {
    std::vector<float> got(shape_.hidden), want(shape_.hidden);
    size_t wrong = 0;
    std::string first;
    for (size_t i = 0; i < sampled_rows_.size(); ++i) {
      CUDA_CHECK(cudaMemcpy(got.data(), arguments_.out + size_t(sampled_rows_[i]) * shape_.hidden,
                            got.size() * 4, cudaMemcpyDeviceToHost));
      CUDA_CHECK(cudaMemcpy(want.data(), expected_ + i * shape_.hidden, want.size() * 4,
                            cudaMemcpyDeviceToHost));
      double error = 0, norm = 0;
      int worst = 0;
      for (int c = 0; c < shape_.hidden; ++c) {
        const double e = std::abs(double(got[c]) - want[c]);
        if (!(e <= std::abs(double(got[worst]) - want[worst]))) worst = c;
        error += e * e;
        norm += double(want[c]) * want[c];
      }
      if (std::sqrt(error / norm) < 5e-3) continue;
      if (wrong++ == 0) {
        first = " row " + std::to_string(sampled_rows_[i]) + " column " + std::to_string(worst) +
                ": " + std::to_string(got[worst]) + " for " + std::to_string(want[worst]);
      }
    }
    if (wrong == 0) return "";
    return "  WRONG: " + std::to_string(wrong) + " of " + std::to_string(sampled_rows_.size()) +
           " rows, first" + first;
  }

  void MultiplyByCublas(const Cublas& cublas, const __nv_bfloat16* in, float* out) const {
    const int stride = 3 * arguments_.row_values;
    size_t row = 0;
    for (size_t e = 0; e < rows_of_.size(); ++e) {
      const __nv_bfloat16* blob = blobs_ + e * blob_values_;
      const int rows = int(rows_of_[e].size());
      MatrixProduct<__nv_bfloat16> p = {.transpose_a = true,
                                        .m = shape_.intermediate,
                                        .n = rows,
                                        .k = shape_.hidden,
                                        .a = blob,
                                        .a_stride = stride,
                                        .b = in + row * shape_.hidden,
                                        .b_stride = shape_.hidden,
                                        .c = out + row * 2 * shape_.intermediate,
                                        .c_stride = 2 * shape_.intermediate};
      bool ok = cublas.Multiply(p, "gate").ok();
      p.a += arguments_.row_values;
      p.c += shape_.intermediate;
      ok = ok && cublas.Multiply(p, "up").ok();
      p = {.m = shape_.hidden,
           .n = rows,
           .k = shape_.intermediate,
           .a = blob + 2 * arguments_.row_values,
           .a_stride = stride,
           .b = in + row * shape_.intermediate,
           .b_stride = shape_.intermediate,
           .c = out + row * shape_.hidden,
           .c_stride = shape_.hidden};
      ok = ok && cublas.Multiply(p, "down").ok();
      if (!ok) std::exit((std::fprintf(stderr, "cuBLAS failed\n"), 1));
      row += rows;
    }
  }

  Shape shape_;
  ExpertFormat format_;
  std::vector<std::vector<int32_t>> rows_of_;
  cudaStream_t stream_;
  int multiprocessors_;
  size_t blob_values_;
  __nv_bfloat16* blobs_;
  std::vector<int32_t> all_rows_;
  std::vector<int32_t> sampled_rows_;
  Sample* samples_;
  float* expected_;
  ExpertProductsArguments arguments_;
};

}  // namespace moed::backend
