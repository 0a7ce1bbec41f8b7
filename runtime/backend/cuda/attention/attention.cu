#include <algorithm>

#include "runtime/backend/cuda/attention/attend_split.cuh"
#include "runtime/backend/cuda/attention/attention.h"
#include "runtime/backend/cuda/attention/prompt_runs.cuh"
#include "runtime/backend/cuda/primitives/last_block.cuh"

namespace moed::backend {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kMinSplitTokens = 64;

// Grid: (token, KV head and group of its query heads, split).
template <int kChunks>
__global__ void __launch_bounds__(kThreads) Attend(AttentionArguments a) {
  constexpr int kHalves = (kChunks + 1) / 2;
  extern __shared__ __align__(16) float values[];  // [kWarps][kHeadGroup][head_dim]
  __shared__ WarpResult results[kWarps];
  const int token = blockIdx.x;
  const int split = blockIdx.z;
  const int position = a.step.positions[token];
  if (position < 0) return;
  if (a.prompts_apart && RunOf(a.step, a.tokens, token).IsTiled()) return;
  const HeadGroup group(a, blockIdx.y);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const size_t first_row = size_t(token) * a.query_heads + group.first_head;

  const Queries<kChunks> q(a.q + first_row * a.head_dim, group.heads, a.head_dim, a.scale, lane);
  Softmax<kHalves> softmax;
  AttendWarp<kWarps>(a, RangeOf(a, position, split), CachedRows{a, token, group.kv_head}, q, warp,
                     lane, &softmax);
  StoreWarp(softmax, a.head_dim, warp, lane, results, values);
  __syncthreads();

  JoinWarps<kWarps>(results, values, group.heads, a.head_dim, ScratchPart{a, first_row, split});
  if (a.splits == 1 || !LastBlock(a.arrived + token * gridDim.y + blockIdx.y, a.splits)) return;
  JoinSplits<kWarps>(a, first_row, group.heads, a.out + first_row * a.head_dim);
}

template <int kChunks>
void Launch(const AttentionArguments& a, cudaStream_t stream) {
  const int shared_bytes = kWarps * kHeadGroup * a.head_dim * static_cast<int>(sizeof(float));
  Attend<kChunks><<<dim3(a.tokens, HeadGroups(a.query_heads, a.kv_heads), a.splits), kThreads,
                    shared_bytes, stream>>>(a);
}

}  // namespace

size_t AttentionScratchBytes(int tokens, int query_heads, int head_dim, int splits) {
  return splits == 1 ? 0 : size_t(tokens) * query_heads * splits * (head_dim + 4) * sizeof(float);
}

int AttentionSplits(int tokens, int query_heads, int kv_heads, int max_context,
                    int multiprocessors) {
  const int blocks = std::max(1, tokens * HeadGroups(query_heads, kv_heads));
  if (blocks > kMaxSplitGroups) return 1;
  const int wanted = kSplitBlocksPerMultiprocessor * multiprocessors / blocks;
  const int useful = (max_context + kMinSplitTokens - 1) / kMinSplitTokens;
  return std::clamp(std::min(wanted, useful), 1, kMaxSplits);
}

bool LaunchAttention(const AttentionArguments& a, cudaStream_t stream) {
  if (a.head_dim % 8 != 0) return false;
  switch ((a.head_dim + 31) / 32) {
    case 1:
      Launch<1>(a, stream);
      return true;
    case 2:
      Launch<2>(a, stream);
      return true;
    case 3:
      Launch<3>(a, stream);
      return true;
    case 4:
      Launch<4>(a, stream);
      return true;
    case 5:
    case 6:
      Launch<6>(a, stream);
      return true;
    case 7:
    case 8:
      Launch<8>(a, stream);
      return true;
    default:
      return false;
  }
}

}  // namespace moed::backend
