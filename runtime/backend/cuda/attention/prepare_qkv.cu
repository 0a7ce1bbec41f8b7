#include "runtime/backend/cuda/attention/lane_of_head.cuh"
#include "runtime/backend/cuda/attention/prepare_head.cuh"
#include "runtime/backend/cuda/attention/prepare_qkv.h"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// rsqrt(mean(x^2) + epsilon) over the whole projection; all threads of the block call it.
__device__ float WholeScale(const float* x, int width, float epsilon) {
  __shared__ float partial[kWarps];
  float squares = 0.0f;
  for (int i = threadIdx.x; i < width; i += kThreads) squares += x[i] * x[i];
  squares = WarpSum(squares);
  __syncthreads();  // the last use of `partial`
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += partial[w];
  return rsqrtf(total / width + epsilon);
}

__global__ void __launch_bounds__(kThreads) PrepareQkv(PrepareQkvArguments a) {
  const int token = blockIdx.x;
  const int warp = threadIdx.x / 32;
  const int position = a.step.positions[token];
  if (position < 0) return;
  const int q_width = a.query_heads * a.head_dim;
  const int kv_width = a.kv_heads * a.head_dim;
  float* q = a.q + size_t(token) * q_width;
  float* k = a.k + size_t(token) * kv_width;
  const float* v = a.v + size_t(token) * kv_width;
  float q_scale = 1.0f;
  float k_scale = 1.0f;
  if (!a.norm_per_head) {
    if (a.q_norm != nullptr) q_scale = WholeScale(q, q_width, a.norm_epsilon);
    if (a.k_norm != nullptr) k_scale = WholeScale(k, kv_width, a.norm_epsilon);
  }
  const size_t row = CacheOffset(a, token, position);
  auto norm_of = [&](const float* norm, int head) {
    return norm == nullptr || a.norm_per_head ? norm : norm + head * a.head_dim;
  };
  auto rotation = [&](int pair) { return RotationOf(a, position, a.inverse_frequencies[pair]); };
  const int heads = a.query_heads + a.kv_heads;
  for (int head = blockIdx.y * kWarps + warp; head < heads; head += gridDim.y * kWarps) {
    if (head < a.query_heads) {
      PrepareHead(a, norm_of(a.q_norm, head), q_scale, rotation, q + head * a.head_dim);
      continue;
    }
    const int kv_head = head - a.query_heads;
    const int offset = kv_head * a.head_dim;
    PrepareHead(a, norm_of(a.k_norm, kv_head), k_scale, rotation, k + offset);
    StoreKeyValue(a, k + offset, v + offset, a.keys + row + offset, a.values + row + offset);
  }
}

// As PrepareQkv, for many tokens: a block to a token, a head's values in registers, rotations
// computed once a token.
template <int kDim>
__global__ void __launch_bounds__(kThreads) PrepareManyQkv(PrepareQkvArguments a) {
  __shared__ Rotation rotations[kDim / 2];
  const int token = blockIdx.x;
  const int position = a.step.positions[token];
  if (position < 0) return;
  if (threadIdx.x < kDim / 2) {
    rotations[threadIdx.x] = RotationOf(a, position, a.inverse_frequencies[threadIdx.x]);
  }
  __syncthreads();
  const size_t row = CacheOffset(a, token, position);
  for (int head = threadIdx.x / 32; head < a.query_heads + a.kv_heads; head += kWarps) {
    const int kv_head = head - a.query_heads;
    float* x = kv_head < 0 ? a.q + (size_t(token) * a.query_heads + head) * kDim
                           : a.k + (size_t(token) * a.kv_heads + kv_head) * kDim;
    LaneOfHead<kDim> values(x);
    values.NormAndClip(kv_head < 0 ? a.q_norm : a.k_norm, a.norm_epsilon, a.clip);
    values.Rotate(rotations);
    values.Store(x);
    if (kv_head < 0) continue;
    values.Store(a.keys + row + kv_head * kDim);
    LaneOfHead<kDim> v(a.v + (size_t(token) * a.kv_heads + kv_head) * kDim);
    v.NormAndClip(nullptr, 0.0f, a.clip);
    v.Store(a.values + row + kv_head * kDim);
  }
}

// From this many tokens on, a block to each keeps the device busy.
constexpr int kManyTokens = 512;

bool PreparesMany(const PrepareQkvArguments& a) {
  const bool whole_norm = !a.norm_per_head && (a.q_norm != nullptr || a.k_norm != nullptr);
  return a.tokens >= kManyTokens && !whole_norm && RotatesWhole(a) &&
         (a.head_dim == 64 || a.head_dim == 128);
}

}  // namespace

void LaunchPrepareQkv(const PrepareQkvArguments& arguments, cudaStream_t stream) {
  if (PreparesMany(arguments)) {
    const auto kernel = arguments.head_dim == 64 ? PrepareManyQkv<64> : PrepareManyQkv<128>;
    kernel<<<arguments.tokens, kThreads, 0, stream>>>(arguments);
    return;
  }
  // A norm over the whole projection reads what other heads' warps write: one block a token then.
  const int heads = arguments.query_heads + arguments.kv_heads;
  const int blocks = arguments.norm_per_head ? (heads + kWarps - 1) / kWarps : 1;
  PrepareQkv<<<dim3(arguments.tokens, blocks), kThreads, 0, stream>>>(arguments);
}

}  // namespace moed::backend
