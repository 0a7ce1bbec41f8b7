// Times the products of experts with many rows (prefill) against cuBLAS: one large bf16 product,
// and the same experts one by one, all in the same run. Before, every kernel's results are checked
// against a plain one that sums in float32, at shapes and row counts that fill no tile as well.
//
// usage: cuda_products_bench [tokens, default 4096]
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "runtime/backend/cuda/dense/cublas.h"
#include "tests/bench/products_layer.cuh"

namespace moed::backend {
namespace {

// Every row once, `counts` to the experts in turn.
std::vector<std::vector<int32_t>> RowsByCount(const std::vector<int>& counts, int top_k) {
  const int total = std::accumulate(counts.begin(), counts.end(), 0) / top_k * top_k;
  std::vector<int32_t> rows(total);
  std::iota(rows.begin(), rows.end(), 0);
  std::shuffle(rows.begin(), rows.end(), std::mt19937(3));
  std::vector<std::vector<int32_t>> rows_of;
  size_t begin = 0;
  for (const int count : counts) {
    const size_t end = std::min(rows.size(), begin + count);
    rows_of.emplace_back(rows.begin() + begin, rows.begin() + end);
    begin = end;
  }
  return rows_of;
}

// Rows token * top_k + rank of random routing.
std::vector<std::vector<int32_t>> RandomRouting(int tokens, int experts, int top_k) {
  std::vector<std::vector<int32_t>> rows_of(experts);
  std::vector<int> ids(experts);
  std::iota(ids.begin(), ids.end(), 0);
  std::mt19937 random(7);
  for (int t = 0; t < tokens; ++t) {
    for (int k = 0; k < top_k; ++k) {
      std::swap(ids[k], ids[k + random() % (experts - k)]);
      rows_of[ids[k]].push_back(t * top_k + k);
    }
  }
  return rows_of;
}

// TFLOP/s of one large product.
double CublasRate(const Cublas& cublas, cudaStream_t stream) {
  constexpr int kSize = 8192;
  auto* a = Allocate<__nv_bfloat16>(size_t{2} * kSize * kSize);
  FillRandom<<<1024, 256, 0, stream>>>(a, size_t{2} * kSize * kSize, 1.0f, 11);
  float* c = Allocate<float>(size_t{kSize} * kSize);
  const MatrixProduct<__nv_bfloat16> product = {.transpose_a = true,
                                                .m = kSize,
                                                .n = kSize,
                                                .k = kSize,
                                                .a = a,
                                                .a_stride = kSize,
                                                .b = a + size_t{kSize} * kSize,
                                                .b_stride = kSize,
                                                .c = c,
                                                .c_stride = kSize};
  const double ms = Milliseconds(stream, [&] {
    if (!cublas.Multiply(product, "a large product").ok()) std::exit(1);
  });
  CUDA_CHECK(cudaFree(a));
  CUDA_CHECK(cudaFree(c));
  return 2.0 * kSize * kSize * kSize / ms / 1e9;
}

int Main(int tokens) {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreate(&stream));
  const auto cublas = Cublas::Create(stream);
  if (!cublas.ok()) return std::fprintf(stderr, "%s\n", cublas.status().ToString().c_str()), 1;
  const double limit = CublasRate(**cublas, stream);
  std::printf("%s: cuBLAS multiplies bf16 at %.0f TFLOP/s\n", properties.name, limit);
  const std::vector<int> uneven = {1, 63, 64, 65, 128, 129, 300, 24, 97, 113, 145, 160, 161, 500};
  for (const auto& [hidden, intermediate] :
       {std::pair{2048, 768}, {2880, 720}, {64, 24}, {2880, 64}, {200, 104}}) {
    const std::string name = std::to_string(hidden) + " x " + std::to_string(intermediate);
    Layer layer({name, hidden, intermediate, 2}, RowsByCount(uneven, 2), stream,
                properties.multiProcessorCount);
    layer.ReportPlain(limit);
    layer.ReportWarpgroups(limit);
  }
  const std::pair<Shape, int> models[] = {{{"Qwen3-30B-A3B", 2048, 768, 8}, 128},
                                          {{"OLMoE", 2048, 1024, 8}, 64},
                                          {{"Mixtral", 4096, 14336, 2}, 8}};
  for (const auto& [shape, experts] : models) {
    Layer layer(shape, RandomRouting(tokens, experts, shape.top_k), stream,
                properties.multiProcessorCount);
    layer.ReportPlain(limit);
    layer.ReportWarpgroups(limit);
    layer.ReportCublas(**cublas, limit);
  }
  return 0;
}

}  // namespace
}  // namespace moed::backend

int main(int argc, char** argv) {
  return moed::backend::Main(argc > 1 ? std::atoi(argv[1]) : 4096);
}
