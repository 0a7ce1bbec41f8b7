#include "runtime/backend/cuda/attention/decode_attention.h"

#include "runtime/backend/cuda/attention/attend_ahead.cuh"
#include "runtime/backend/cuda/primitives/last_block.cuh"
#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"

namespace moed::backend {
namespace {

constexpr int kThreads = kAttendWarps * 32;

// A norm over all heads reads all of a token's, and each of its blocks does: for more tokens a
// launch of its own that does it once takes less.
constexpr int kMostTokensNormedByEachBlock = 32;

struct ProjectedHead {
  const float* values;

  template <int kDim>
  __device__ bool Load(LaneOfHead<kDim>* lane) const {
    *lane = LaneOfHead<kDim>(values);
    return true;
  }
  __device__ bool LoadPair(int i, float2* pair) const {
    *pair = *reinterpret_cast<const float2*>(values + i);
    return true;
  }
  __device__ void Copy(int head_dim, float* to) const {
    for (int i = threadIdx.x % 32; i < head_dim; i += 32) to[i] = values[i];
  }
};

// Of a token (attend_ahead.cuh).
struct Projections {
  const PrepareQkvArguments& a;
  int token;

  __device__ ProjectedHead Query(int head) const {
    return {a.q + (size_t(token) * a.query_heads + head) * a.head_dim};
  }
  __device__ ProjectedHead Key(int head) const { return {a.k + KvOffset(head)}; }
  __device__ ProjectedHead Value(int head) const { return {a.v + KvOffset(head)}; }

 private:
  __device__ size_t KvOffset(int head) const {
    return (size_t(token) * a.kv_heads + head) * a.head_dim;
  }
};

// Grid: (token, KV head and group of its query heads, split).
template <int kChunks>
__global__ void __launch_bounds__(kThreads, kSplitBlocksPerMultiprocessor)
    DecodeAttention(const __grid_constant__ DecodeAttentionArguments arguments) {
  extern __shared__ __align__(16) float values[];  // [kAttendWarps][kHeadGroup][head_dim]
  __shared__ __align__(16) Ahead ahead;
  const AttentionArguments& a = arguments.attention;
  const int token = blockIdx.x;
  const int split = blockIdx.z;
  const int position = a.step.positions[token];
  const HeadGroup group(a, blockIdx.y);
  const KeyRange range = RangeOf(a, position, split);
  const CachedRows cached = {a, token, group.kv_head};
  if (position >= 0) LookAhead(arguments.prepare, group, cached, range, position, &ahead);
  LetNextKernelBegin();
  WaitForKernelAhead();
  if (position < 0) return;
  __syncthreads();
  const size_t first_row = size_t(token) * a.query_heads + group.first_head;
  AttendRange<kChunks>(arguments.prepare, cached, group, Projections{arguments.prepare, token},
                       range, position, &ahead, values, ScratchPart{a, first_row, split});
  if (a.splits == 1 || !LastBlock(a.arrived + token * gridDim.y + blockIdx.y, a.splits)) return;
  JoinSplits<kAttendWarps>(a, first_row, group.heads, a.out + first_row * a.head_dim);
}

template <int kChunks>
cudaError_t Launch(const DecodeAttentionArguments& arguments, cudaStream_t stream) {
  const AttentionArguments& a = arguments.attention;
  const LaunchShape shape = {
      .grid = dim3(a.tokens, HeadGroups(a.query_heads, a.kv_heads), a.splits),
      .block = kThreads,
      .shared_bytes = sizeof(float) * kAttendWarps * kHeadGroup * a.head_dim};
  return LaunchAhead(DecodeAttention<kChunks>, shape, stream, arguments);
}

}  // namespace

bool DecodeAttentionSupports(const PrepareQkvArguments& prepare, int tokens) {
  if (NormsAllHeads(prepare) && tokens > kMostTokensNormedByEachBlock) return false;
  return prepare.head_dim % 8 == 0 && prepare.head_dim <= kMaxFusedHeadDim;
}

cudaError_t LaunchDecodeAttention(const DecodeAttentionArguments& arguments, cudaStream_t stream) {
  const int head_dim = arguments.prepare.head_dim;
  if (head_dim <= 32) return Launch<1>(arguments, stream);
  if (head_dim <= 64) return Launch<2>(arguments, stream);
  if (head_dim <= 96) return Launch<3>(arguments, stream);
  return Launch<4>(arguments, stream);
}

}  // namespace moed::backend
