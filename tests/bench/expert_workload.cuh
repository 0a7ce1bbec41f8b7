// What cuda_experts_bench computes: experts of a model's shape, and lists of tasks that random
// routing makes of a batch, on the device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "runtime/backend/bf12.h"
#include "runtime/backend/cuda/plan/expert_tasks.h"
#include "tests/bench/device_check.cuh"

namespace moed::backend {

struct ExpertBenchShape {
  const char* name;
  int hidden;
  int intermediate;
  int num_experts;
  int top_k;
};

// The distinct experts of a shape in both formats, normal weights; on the device as often as fits.
class ExpertWeights {
 public:
  ExpertWeights(const ExpertBenchShape& shape, ExpertFormatKind kind)
      : bf16_(ExpertFormatKind::kBF16, shape.hidden, shape.intermediate),
        format_(kind, shape.hidden, shape.intermediate,
                kind == ExpertFormatKind::kBF12 ? Bf12TileEscapeCapacity(8) : 0) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    std::vector<uint16_t> values(1 << 16);
    for (uint16_t& value : values) value = __bfloat16_as_ushort(__float2bfloat16(normal(random)));
    plain_.resize(kDistinct * bf16_.blob_bytes());
    auto* words = reinterpret_cast<uint16_t*>(plain_.data());
    std::minstd_rand pick(2);
    for (size_t i = 0; i < plain_.size() / 2; ++i) words[i] = values[pick() >> 8 & 0xffff];
    encoded_ = plain_;
    if (kind == ExpertFormatKind::kBF16) return;
    encoded_.assign(kDistinct * format_.blob_bytes(), std::byte{0});
    for (int e = 0; e < kDistinct; ++e) {
      const bool fits = EncodeBf12(
          bf16_, std::span(plain_).subspan(e * bf16_.blob_bytes(), bf16_.blob_bytes()), format_,
          std::span(encoded_).subspan(e * format_.blob_bytes(), format_.blob_bytes()));
      if (!fits) std::exit((std::fprintf(stderr, "more escapes than a tile holds\n"), 1));
    }
  }

  static constexpr int kDistinct = 2;
  const ExpertFormat& bf16() const { return bf16_; }
  const ExpertFormat& format() const { return format_; }
  const std::vector<std::byte>& plain() const { return plain_; }
  // Fills `bytes` at `target` with whole experts, expert i being the i % kDistinct-th.
  void Fill(std::byte* target, size_t bytes) const {
    const size_t each = format_.blob_bytes();
    for (size_t i = 0; (i + 1) * each <= bytes; ++i) {
      CUDA_CHECK(cudaMemcpy(target + i * each, encoded_.data() + i % kDistinct * each, each,
                            cudaMemcpyDefault));
    }
  }

 private:
  ExpertFormat bf16_;
  ExpertFormat format_;
  std::vector<std::byte> plain_;
  std::vector<std::byte> encoded_;
};

// Where a layer's experts lie, one behind another, and begin anew behind the last.
struct StoredExperts {
  const std::byte* blobs;
  size_t expert_bytes;
  size_t count;
  bool over_link;
};

// Which of `batch` tokens each expert has.
inline std::vector<std::vector<int>> RouteAtRandom(const ExpertBenchShape& shape, int batch,
                                                   std::mt19937& random) {
  std::vector<std::vector<int>> tokens(shape.num_experts);
  std::vector<int> ids(shape.num_experts);
  for (int t = 0; t < batch; ++t) {
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random);
    for (int k = 0; k < shape.top_k; ++k) tokens[ids[k]].push_back(t);
  }
  return tokens;
}

// Tasks of the experts of layer `layer`; if `joined` is not 0, so many of an expert's share its
// tiles, and the first has them.
inline std::vector<ExpertTask> TasksOf(const ExpertBenchShape& shape,
                                       const std::vector<std::vector<int>>& tokens,
                                       const StoredExperts& stored, int layer, int joined) {
  std::vector<ExpertTask> tasks;
  int first_tile = 0;
  for (int e = 0; e < shape.num_experts; ++e) {
    const int count = int(tokens[e].size() + kTaskTokens - 1) / kTaskTokens;
    const size_t index = (size_t(layer) * shape.num_experts + e) % stored.count;
    for (int place = 0; place < count; ++place) {
      const size_t begin = size_t(place) * kTaskTokens;
      const bool leads = joined == 0 || place % joined == 0;
      ExpertTask task;
      task.blob = stored.blobs + index * stored.expert_bytes;
      task.expert = int(index % ExpertWeights::kDistinct);
      task.num_tokens = std::min<int>(kTaskTokens, tokens[e].size() - begin);
      task.first_tile = first_tile;
      task.num_tiles = leads ? shape.intermediate / kTileNeurons : 0;
      task.num_joined = leads ? std::min(std::max(joined, 1), count - place) : 0;
      first_tile += task.num_tiles;
      for (int i = 0; i < task.num_tokens; ++i) {
        task.token[i] = tokens[e][begin + i];
        task.target[i] = task.token[i];
        task.weight[i] = 1.0f / shape.top_k;
      }
      tasks.push_back(task);
    }
  }
  return tasks;
}

// On the device, with its tasks; FreeTaskList frees both.
inline ExpertTaskList* UploadTasks(const std::vector<ExpertTask>& tasks, bool over_link) {
  const int tiles = tasks.back().first_tile + tasks.back().num_tiles;
  ExpertTaskSpan span{int(tasks.size()), tiles, nullptr};
  CUDA_CHECK(cudaMalloc(&span.tasks, tasks.size() * sizeof(ExpertTask)));
  CUDA_CHECK(cudaMemcpy(span.tasks, tasks.data(), tasks.size() * sizeof(ExpertTask),
                        cudaMemcpyHostToDevice));
  ExpertTaskList list;
  (over_link ? list.link : list.vram) = span;
  ExpertTaskList* device;
  CUDA_CHECK(cudaMalloc(&device, sizeof(list)));
  CUDA_CHECK(cudaMemcpy(device, &list, sizeof(list), cudaMemcpyHostToDevice));
  return device;
}

// That which has tasks.
inline ExpertTaskSpan SpanOf(const ExpertTaskList* device) {
  ExpertTaskList list;
  CUDA_CHECK(cudaMemcpy(&list, device, sizeof(list), cudaMemcpyDeviceToHost));
  return list.vram.num_tasks > 0 ? list.vram : list.link;
}

inline void FreeTaskList(ExpertTaskList* device) {
  CUDA_CHECK(cudaFree(SpanOf(device).tasks));
  CUDA_CHECK(cudaFree(device));
}

}  // namespace moed::backend
