// Times the CUDA expert kernels against the memory they must read, at several models' shapes,
// formats and batches, weights in VRAM and in mapped host memory; both bandwidths are measured in
// the same run. Each case is first checked against a plain kernel that reads the bf16 weights.
// neurons: expert_neurons.h; tiles: expert_tiles.h, experts in VRAM in one pass or, with a number
// of tasks joined, in two.
//
// usage: cuda_experts_bench [gigabytes of experts, default 8] [shape, as Qwen3, or all] [batches,
// as 1,8]
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "runtime/backend/cuda/experts/expert_neurons.h"
#include "runtime/backend/cuda/experts/expert_tiles.h"
#include "runtime/backend/cuda/prefill/unpack_experts.h"
#include "tests/bench/device_check.cuh"
#include "tests/bench/expert_workload.cuh"
#include "tests/bench/plain_experts.cuh"
#include "tests/bench/read_all.cuh"

namespace moed::backend {
namespace {

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
  Bench(size_t bytes, const char* batches) : bytes_(bytes) {
    for (const char* at = batches; *at != 0; at += *at != 0) {
      batches_.push_back(int(std::strtol(at, const_cast<char**>(&at), 10)));
    }
    CUDA_CHECK(cudaGetDeviceProperties(&properties_, 0));
    CUDA_CHECK(cudaStreamCreate(&stream_));
    CUDA_CHECK(cudaMalloc(&vram_, bytes_));
    void* host =
        mmap(nullptr, kHostBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(host, kHostBytes, MADV_HUGEPAGE);
    CUDA_CHECK(cudaHostRegister(host, kHostBytes, cudaHostRegisterMapped));
    CUDA_CHECK(cudaHostGetDevicePointer(reinterpret_cast<void**>(&link_), host, 0));
    vram_gbps_ = ReadRate(vram_, std::min(bytes_, size_t{4} << 30), 8);
    link_gbps_ = ReadRate(link_, size_t{1} << 30, 1);
    std::printf("%s: VRAM %.0f GB/s, link %.1f GB/s read by a kernel\n", properties_.name,
                vram_gbps_, link_gbps_);
  }

  void Run(const ExpertBenchShape& shape, ExpertFormatKind kind) {
    const ExpertWeights weights(shape, kind);
    weights.Fill(vram_, bytes_);
    weights.Fill(link_, kHostBytes);
    CUDA_CHECK(cudaMalloc(&plain_, weights.plain().size()));
    CUDA_CHECK(
        cudaMemcpy(plain_, weights.plain().data(), weights.plain().size(), cudaMemcpyHostToDevice));
    for (int batch : batches_) RunBatch(shape, weights, batch, /*over_link=*/false);
    for (int batch : {1, 8}) {
      if (std::count(batches_.begin(), batches_.end(), batch) > 0) {
        RunBatch(shape, weights, batch, /*over_link=*/true);
      }
    }
    if (kind == ExpertFormatKind::kBF12) RunUnpack(shape, weights);
    CUDA_CHECK(cudaFree(plain_));
  }

 private:
  static constexpr int kNeurons = -1;  // in place of a number of joined tasks
  static constexpr size_t kHostBytes = size_t{4} << 30;

  void RunBatch(const ExpertBenchShape& shape, const ExpertWeights& weights, int batch,
                bool over_link) {
    const size_t each = weights.format().blob_bytes();
    const size_t available = (over_link ? kHostBytes : bytes_) / each;
    const int layers = over_link ? 2 : std::clamp(int(available / shape.num_experts), 1, 24);
    const StoredExperts stored = {over_link ? link_ : vram_, each, available, over_link};
    const auto make_lists = [&](int joined, double* touched) {
      std::vector<ExpertTaskList*> lists;
      random_.seed(batch);
      for (int layer = 0; layer < layers; ++layer) {
        const std::vector<std::vector<int>> tokens = RouteAtRandom(shape, batch, random_);
        for (const std::vector<int>& of_expert : tokens) *touched += !of_expert.empty();
        lists.push_back(UploadTasks(TasksOf(shape, tokens, stored, layer, joined), over_link));
      }
      *touched /= layers;
      return lists;
    };
    __nv_bfloat16* x = RandomTokens(batch, shape.hidden);
    const ExpertFormatKind kind = weights.format().kind();
    for (int joined : {0, 1, 2, 4}) {
      if (joined > 1 && (batch <= 8 || over_link)) continue;
      double touched = 0;
      const std::vector<ExpertTaskList*> lists = make_lists(joined, &touched);
      const double limit_us = touched * each / (over_link ? link_gbps_ : vram_gbps_) / 1e3;
      if (joined == 0 && batch == 1 && ExpertNeuronsSupports(kind, shape.hidden)) {
        Report(shape, weights, batch, kNeurons, over_link, lists, x, touched, limit_us);
      }
      if (joined > 0 || shape.hidden <= 2048) {
        Report(shape, weights, batch, joined, over_link, lists, x, touched, limit_us);
      }
      for (ExpertTaskList* list : lists) FreeTaskList(list);
    }
    CUDA_CHECK(cudaFree(x));
  }

  // Against the time that reading the packed bytes and writing the others would take.
  void RunUnpack(const ExpertBenchShape& shape, const ExpertWeights& weights) {
    auto arguments = UnpackArguments(weights.format(), weights.bf16());
    const size_t each = weights.format().blob_bytes();
    const size_t calls = std::min<size_t>(8, bytes_ / each / kMaxUnpacked);
    arguments.num_experts = kMaxUnpacked;
    std::byte* target;
    CUDA_CHECK(cudaMalloc(&target, kMaxUnpacked * weights.bf16().blob_bytes()));
    arguments.target = target;
    const double us = Microseconds(stream_, int(calls), [&](int call) {
      for (int i = 0; i < kMaxUnpacked; ++i) {
        arguments.blobs[i] = vram_ + (size_t(call) * kMaxUnpacked + i) * each;
      }
      CUDA_CHECK(LaunchUnpackExperts(arguments, stream_));
    });
    const double gigabytes = kMaxUnpacked * (each + weights.bf16().blob_bytes()) / 1e9;
    std::printf("%-12s unpacking %.0f GB/s read and written = %.2f of VRAM's rate\n", shape.name,
                gigabytes / us * 1e6, gigabytes / us * 1e6 / vram_gbps_);
    CUDA_CHECK(cudaFree(target));
  }

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

  __nv_bfloat16* RandomTokens(int batch, int hidden) {
    __nv_bfloat16* x;
    CUDA_CHECK(cudaMalloc(&x, size_t(batch) * hidden * 2));
    FillRandom<<<64, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(x), size_t(batch) * hidden / 2,
                                        2.0f);
    return x;
  }

  void Launch(const ExpertFormat& format, int joined, const ExpertTaskList* list,
              const __nv_bfloat16* x, float* residual, __nv_bfloat16* activations) {
    const int hidden = int(format.hidden());
    const int list_bytes = int(format.tile_list_bytes());
    const int multiprocessors = properties_.multiProcessorCount;
    if (joined == kNeurons) {
      ExpertNeuronsArguments arguments;
      arguments.tasks = list;
      arguments.x = x;
      arguments.output = residual;
      arguments.hidden = hidden;
      arguments.intermediate = int(format.intermediate());
      arguments.list_bytes = list_bytes;
      arguments.multiprocessors = multiprocessors;
      CUDA_CHECK(LaunchExpertNeurons(format.kind(), arguments, stream_));
    } else {
      const LinkAccess link = LinkAccessFor(format.kind(), hidden);
      CUDA_CHECK(LaunchExpertTiles({list, x, residual, activations, format.kind(), hidden,
                                    list_bytes, multiprocessors, link, joined},
                                   stream_));
    }
  }

  void Report(const ExpertBenchShape& shape, const ExpertWeights& weights, int batch, int joined,
              bool over_link, const std::vector<ExpertTaskList*>& lists, const __nv_bfloat16* x,
              double touched, double limit_us) {
    const ExpertFormat& format = weights.format();
    CUDA_CHECK(PrepareExpertTiles(shape.hidden));
    if (joined == kNeurons) {
      CUDA_CHECK(PrepareExpertNeurons(format.kind(), shape.hidden));
    }
    const size_t values = size_t(batch) * shape.hidden;
    float *residual, *expected;
    CUDA_CHECK(cudaMalloc(&residual, values * 4));
    CUDA_CHECK(cudaMalloc(&expected, values * 4));
    const int max_tiles = shape.num_experts * ((batch + 7) / 8) * shape.intermediate / 8;
    __nv_bfloat16* activations = nullptr;
    CUDA_CHECK(cudaMalloc(&activations, ExpertTilesScratchBytes(max_tiles)));

    const ExpertTaskSpan span = SpanOf(lists[0]);
    CUDA_CHECK(cudaMemset(residual, 0, values * 4));
    CUDA_CHECK(cudaMemset(expected, 0, values * 4));
    PlainExperts<<<dim3(shape.intermediate, span.num_tasks), 128, 0, stream_>>>(
        span.tasks, plain_, weights.bf16().blob_bytes(), x, expected, shape.hidden);
    Launch(format, joined, lists[0], x, residual, activations);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    const double error = RelativeError(residual, expected, values);

    const double us = Microseconds(stream_, int(lists.size()), [&](int i) {
      Launch(format, joined, lists[i], x, residual, activations);
    });
    const std::string kernel = joined == kNeurons ? "neurons"
                               : joined == 0      ? "one pass"
                                                  : "two x" + std::to_string(joined);
    std::printf("%-12s %s %-4s batch %2d %-8s %6.1f experts %8.1f us = %.2f of the limit%s\n",
                shape.name, ExpertFormatName(format.kind()).data(), over_link ? "link" : "VRAM",
                batch, kernel.c_str(), touched, us, us / limit_us, error < 1e-2 ? "" : "   WRONG");
    if (!(error < 1e-2)) std::printf("   relative error %.2e\n", error);
    std::fflush(stdout);
    CUDA_CHECK(cudaFree(residual));
    CUDA_CHECK(cudaFree(expected));
    CUDA_CHECK(cudaFree(activations));
  }

  size_t bytes_;
  std::vector<int> batches_;
  cudaDeviceProp properties_;
  cudaStream_t stream_;
  std::byte* vram_ = nullptr;
  std::byte* link_ = nullptr;
  std::byte* plain_ = nullptr;
  double vram_gbps_ = 0;
  double link_gbps_ = 0;
  std::mt19937 random_{7};
};

int Main(int argc, char** argv) {
  Bench bench((argc > 1 ? std::atoi(argv[1]) : 8) * (size_t{1} << 30),
              argc > 3 ? argv[3] : "1,8,32,64");
  const std::string wanted = argc > 2 ? argv[2] : "all";
  const ExpertBenchShape shapes[] = {
      {"Qwen3-30B", 2048, 768, 128, 8},
      {"OLMoE", 2048, 1024, 64, 8},
      {"Mixtral", 4096, 14336, 8, 2},
      {"DeepSeek-V3", 7168, 2048, 256, 8},
  };
  for (const ExpertBenchShape& shape : shapes) {
    if (wanted != "all" && std::string(shape.name).rfind(wanted, 0) != 0) continue;
    for (ExpertFormatKind kind : {ExpertFormatKind::kBF16, ExpertFormatKind::kBF12}) {
      bench.Run(shape, kind);
    }
  }
  return 0;
}

}  // namespace
}  // namespace moed::backend

int main(int argc, char** argv) { return moed::backend::Main(argc, argv); }
