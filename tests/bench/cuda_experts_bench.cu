// Times the CUDA expert kernels against the memory they must read, at several models' shapes and
// batches, weights in VRAM and in mapped host memory; both bandwidths are measured in the same run.
// Each case is first checked against a plain kernel.
//
// usage: cuda_experts_bench [gigabytes of experts, default 8]
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "runtime/backend/cuda/expert_neurons.h"
#include "runtime/backend/cuda/expert_tiles.h"

namespace {

using moed::backend::ExpertTask;
using moed::backend::ExpertTaskList;

void Check(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(1);
}
#define CUDA_CHECK(call) Check((call), #call, __LINE__)

struct Shape {
  const char* name;
  int hidden;
  int intermediate;
  int num_experts;
  int top_k;
  size_t ExpertBytes() const { return size_t{6} * hidden * intermediate; }
};

__global__ void FillRandom(uint32_t* words, size_t count, float scale) {
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    uint64_t state = (i + 1) * 0x9E3779B97F4A7C15ull;
    state = (state ^ state >> 31) * 0xBF58476D1CE4E5B9ull;
    state ^= state >> 29;
    const float a = (static_cast<int32_t>(state) / 2147483648.0f) * scale;
    const float b = (static_cast<int32_t>(state >> 32) / 2147483648.0f) * scale;
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    words[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
}

__global__ void ReadAll(const uint4* data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 value = __ldcs(data + i);
    sum += value.x ^ value.y ^ value.z ^ value.w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

// One block per (task, neuron), token by token: the reference.
__global__ void PlainExperts(const ExpertTaskList* list, const __nv_bfloat16* x, float* residual,
                             int hidden) {
  const ExpertTask& task = list->tasks[blockIdx.y];
  const auto* neuron =
      reinterpret_cast<const __nv_bfloat16*>(task.blob) + size_t{3} * hidden * blockIdx.x;
  __shared__ float gate_sum;
  __shared__ float up_sum;
  for (int t = 0; t < task.num_tokens; ++t) {
    if (threadIdx.x == 0) gate_sum = up_sum = 0.0f;
    __syncthreads();
    float gate = 0.0f;
    float up = 0.0f;
    for (int c = threadIdx.x; c < hidden; c += blockDim.x) {
      const float value = __bfloat162float(x[size_t(task.token[t]) * hidden + c]);
      gate += __bfloat162float(neuron[c]) * value;
      up += __bfloat162float(neuron[hidden + c]) * value;
    }
    atomicAdd(&gate_sum, gate);
    atomicAdd(&up_sum, up);
    __syncthreads();
    const float activation =
        __bfloat162float(__float2bfloat16(gate_sum / (1 + expf(-gate_sum)) * up_sum));
    for (int c = threadIdx.x; c < hidden; c += blockDim.x) {
      atomicAdd(residual + size_t(task.token[t]) * hidden + c,
                task.weight[t] * activation * __bfloat162float(neuron[2 * hidden + c]));
    }
    __syncthreads();
  }
}

// Microseconds of one call: median over replays of a graph that holds `calls` of them.
double Microseconds(cudaStream_t stream, int calls, const std::function<void(int)>& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) launch(i);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    cudaEventRecord(begin, stream);
    CUDA_CHECK(cudaGraphLaunch(executable, stream));
    cudaEventRecord(end, stream);
    CUDA_CHECK(cudaStreamSynchronize(stream));
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 2) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  return times[times.size() / 2] * 1e3 / calls;
}

class Bench {
 public:
  explicit Bench(size_t bytes) : bytes_(bytes) {
    CUDA_CHECK(cudaGetDeviceProperties(&properties_, 0));
    CUDA_CHECK(cudaStreamCreate(&stream_));
    CUDA_CHECK(cudaMalloc(&weights_, bytes_));
    FillRandom<<<1024, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(weights_), bytes_ / 4, 0.03f);
    void* host =
        mmap(nullptr, kHostBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(host, kHostBytes, MADV_HUGEPAGE);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    CUDA_CHECK(cudaMemcpy(host, weights_, kHostBytes, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaHostRegister(host, kHostBytes, cudaHostRegisterMapped));
    CUDA_CHECK(cudaHostGetDevicePointer(reinterpret_cast<void**>(&link_), host, 0));
    vram_gbps_ = ReadRate(weights_, std::min(bytes_, size_t{4} << 30), 8);
    link_gbps_ = ReadRate(link_, size_t{1} << 30, 1);
    std::printf("%s: VRAM %.0f GB/s, link %.1f GB/s read by a kernel\n", properties_.name,
                vram_gbps_, link_gbps_);
  }

  void Run(const Shape& shape, int batch, bool over_link) {
    const std::byte* base = over_link ? link_ : weights_;
    const size_t available = (over_link ? kHostBytes : bytes_) / shape.ExpertBytes();
    const int layers = over_link ? 2 : std::clamp(int(available / shape.num_experts), 1, 24);
    std::vector<ExpertTaskList*> lists;
    double touched = 0;
    for (int layer = 0; layer < layers; ++layer) {
      lists.push_back(MakeLayer(shape, batch, base, available, layer, &touched));
    }
    touched /= layers;
    const double limit_us =
        touched * shape.ExpertBytes() / (over_link ? link_gbps_ : vram_gbps_) / 1e3;
    __nv_bfloat16* x = RandomTokens(batch, shape.hidden);
    const bool neurons = batch == 1 && moed::backend::ExpertNeuronsSupports(shape.hidden);
    if (neurons) Report(shape, batch, "neurons", over_link, lists, x, touched, limit_us);
    Report(shape, batch, "tiles", over_link, lists, x, touched, limit_us);
    for (ExpertTaskList* list : lists) Free(list);
    CUDA_CHECK(cudaFree(x));
  }

 private:
  static constexpr size_t kHostBytes = size_t{4} << 30;

  double ReadRate(const std::byte* data, size_t bytes, int calls) {
    uint32_t* sink;
    CUDA_CHECK(cudaMalloc(&sink, 4));
    double best = 1e30;
    for (int blocks : {1, 2, 4, 8}) {
      best = std::min(best, Microseconds(stream_, calls, [&](int) {
                        ReadAll<<<properties_.multiProcessorCount * blocks, 512, 0, stream_>>>(
                            reinterpret_cast<const uint4*>(data), bytes / 16, sink);
                      }));
    }
    CUDA_CHECK(cudaFree(sink));
    return bytes / best / 1e3;
  }

  // Random routing of `batch` tokens over experts of a layer.
  ExpertTaskList* MakeLayer(const Shape& shape, int batch, const std::byte* base, size_t available,
                            int layer, double* touched) {
    std::vector<std::vector<int>> tokens(shape.num_experts);
    std::vector<int> ids(shape.num_experts);
    for (int t = 0; t < batch; ++t) {
      std::iota(ids.begin(), ids.end(), 0);
      std::shuffle(ids.begin(), ids.end(), random_);
      for (int k = 0; k < shape.top_k; ++k) tokens[ids[k]].push_back(t);
    }
    std::vector<ExpertTask> tasks;
    int first_tile = 0;
    for (int e = 0; e < shape.num_experts; ++e) {
      *touched += !tokens[e].empty();
      for (size_t begin = 0; begin < tokens[e].size(); begin += moed::backend::kTaskTokens) {
        ExpertTask task;
        task.blob =
            base + (size_t(layer) * shape.num_experts + e) % available * shape.ExpertBytes();
        task.expert = e;
        task.num_tokens = std::min<int>(moed::backend::kTaskTokens, tokens[e].size() - begin);
        task.first_tile = first_tile;
        task.num_tiles = shape.intermediate / moed::backend::kTileNeurons;
        first_tile += task.num_tiles;
        for (int i = 0; i < task.num_tokens; ++i) {
          task.token[i] = tokens[e][begin + i];
          task.target[i] = task.token[i];
          task.weight[i] = 1.0f / shape.top_k;
        }
        tasks.push_back(task);
      }
    }
    ExpertTaskList list{int(tasks.size()), first_tile, nullptr};
    CUDA_CHECK(cudaMalloc(&list.tasks, tasks.size() * sizeof(ExpertTask)));
    CUDA_CHECK(cudaMemcpy(list.tasks, tasks.data(), tasks.size() * sizeof(ExpertTask),
                          cudaMemcpyHostToDevice));
    ExpertTaskList* device;
    CUDA_CHECK(cudaMalloc(&device, sizeof(list)));
    CUDA_CHECK(cudaMemcpy(device, &list, sizeof(list), cudaMemcpyHostToDevice));
    return device;
  }

  void Free(ExpertTaskList* device) {
    ExpertTaskList list;
    CUDA_CHECK(cudaMemcpy(&list, device, sizeof(list), cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaFree(list.tasks));
    CUDA_CHECK(cudaFree(device));
  }

  __nv_bfloat16* RandomTokens(int batch, int hidden) {
    __nv_bfloat16* x;
    CUDA_CHECK(cudaMalloc(&x, size_t(batch) * hidden * 2));
    FillRandom<<<64, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(x), size_t(batch) * hidden / 2,
                                        2.0f);
    return x;
  }

  void Launch(const Shape& shape, const char* kernel, const ExpertTaskList* list,
              const __nv_bfloat16* x, float* residual, __nv_bfloat16* activations) {
    if (kernel[0] == 'n') {
      CUDA_CHECK(moed::backend::LaunchExpertNeurons(
          {list, x, residual, shape.hidden, shape.intermediate, properties_.multiProcessorCount},
          stream_));
    } else {
      CUDA_CHECK(moed::backend::LaunchExpertTiles(
          {list, x, residual, activations, shape.hidden, properties_.multiProcessorCount},
          stream_));
    }
  }

  void Report(const Shape& shape, int batch, const char* kernel, bool over_link,
              const std::vector<ExpertTaskList*>& lists, const __nv_bfloat16* x, double touched,
              double limit_us) {
    CUDA_CHECK(moed::backend::PrepareExpertTiles(shape.hidden));
    if (kernel[0] == 'n') CUDA_CHECK(moed::backend::PrepareExpertNeurons(shape.hidden));
    const size_t values = size_t(batch) * shape.hidden;
    float *residual, *expected;
    CUDA_CHECK(cudaMalloc(&residual, values * 4));
    CUDA_CHECK(cudaMalloc(&expected, values * 4));
    const int max_tiles = shape.num_experts * ((batch + 7) / 8) * shape.intermediate / 8;
    __nv_bfloat16* activations = nullptr;
    const size_t scratch = moed::backend::ExpertTilesScratchBytes(shape.hidden, max_tiles);
    if (scratch > 0) CUDA_CHECK(cudaMalloc(&activations, scratch));

    ExpertTaskList list;
    CUDA_CHECK(cudaMemcpy(&list, lists[0], sizeof(list), cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemset(residual, 0, values * 4));
    CUDA_CHECK(cudaMemset(expected, 0, values * 4));
    PlainExperts<<<dim3(shape.intermediate, list.num_tasks), 128, 0, stream_>>>(
        lists[0], x, expected, shape.hidden);
    Launch(shape, kernel, lists[0], x, residual, activations);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    std::vector<float> got(values), want(values);
    CUDA_CHECK(cudaMemcpy(got.data(), residual, values * 4, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemcpy(want.data(), expected, values * 4, cudaMemcpyDeviceToHost));
    double error = 0, norm = 0;
    for (size_t i = 0; i < values; ++i) {
      error += (got[i] - want[i]) * double(got[i] - want[i]);
      norm += want[i] * double(want[i]);
    }
    error = std::sqrt(error / norm);

    const double us = Microseconds(stream_, int(lists.size()), [&](int i) {
      Launch(shape, kernel, lists[i], x, residual, activations);
    });
    std::printf("%-12s %-4s batch %2d %-7s %6.1f experts %8.1f us = %.2f of the limit%s\n",
                shape.name, over_link ? "link" : "VRAM", batch, kernel, touched, us, us / limit_us,
                error < 1e-2 ? "" : "   WRONG");
    if (!(error < 1e-2)) std::printf("   relative error %.2e\n", error);
    CUDA_CHECK(cudaFree(residual));
    CUDA_CHECK(cudaFree(expected));
    if (activations != nullptr) CUDA_CHECK(cudaFree(activations));
  }

  size_t bytes_;
  cudaDeviceProp properties_;
  cudaStream_t stream_;
  std::byte* weights_ = nullptr;
  std::byte* link_ = nullptr;
  double vram_gbps_ = 0;
  double link_gbps_ = 0;
  std::mt19937 random_{7};
};

}  // namespace

int main(int argc, char** argv) {
  Bench bench((argc > 1 ? std::atoi(argv[1]) : 8) * (size_t{1} << 30));
  const Shape shapes[] = {
      {"Qwen3-30B", 2048, 768, 128, 8},
      {"OLMoE", 2048, 1024, 64, 8},
      {"Mixtral", 4096, 14336, 8, 2},
      {"DeepSeek-V3", 7168, 2048, 256, 8},
  };
  for (const Shape& shape : shapes) {
    for (int batch : {1, 8, 32, 64}) bench.Run(shape, batch, /*over_link=*/false);
    for (int batch : {1, 8}) bench.Run(shape, batch, /*over_link=*/true);
  }
  return 0;
}
