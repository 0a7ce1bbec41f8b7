#include "runtime/backend/cuda/prepare_qkv.h"
#include "runtime/backend/cuda/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__device__ float Clip(float value, float limit) {
  return limit > 0.0f ? fminf(fmaxf(value, -limit), limit) : value;
}

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

// Norm, clip and rotation of one head by one warp, in place.
__device__ void PrepareHead(const PrepareQkvArguments& a, const float* norm, float whole_scale,
                            int head, int position, float* x) {
  const int lane = threadIdx.x % 32;
  float scale = whole_scale;
  if (norm != nullptr && a.norm_per_head) {
    float squares = 0.0f;
    for (int i = lane; i < a.head_dim; i += 32) squares += x[i] * x[i];
    scale = rsqrtf(WarpSum(squares) / a.head_dim + a.norm_epsilon);
  }
  const float* weight =
      norm == nullptr ? nullptr : norm + (a.norm_per_head ? 0 : head * a.head_dim);
  for (int i = lane; i < a.head_dim; i += 32) {
    const float normed = weight == nullptr ? x[i] : x[i] * scale * weight[i];
    x[i] = Clip(normed, a.clip);
  }
  __syncwarp();
  const int pairs = a.rotary_dims / 2;
  for (int j = lane; j < pairs; j += 32) {
    float sine;
    float cosine;
    sincosf(static_cast<float>(position) * a.inverse_frequencies[j], &sine, &cosine);
    sine *= a.attention_factor;
    cosine *= a.attention_factor;
    float& first = x[a.interleaved ? 2 * j : j];
    float& second = x[a.interleaved ? 2 * j + 1 : j + pairs];
    const float rotated = first * cosine - second * sine;
    second = second * cosine + first * sine;
    first = rotated;
  }
  __syncwarp();
}

__global__ void __launch_bounds__(kThreads) PrepareQkv(PrepareQkvArguments a) {
  const int token = blockIdx.x;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
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
  const int block = a.step.kv_blocks[a.step.block_begin[token] + position / a.block_tokens];
  const size_t row = (size_t(block) * a.block_tokens + position % a.block_tokens) * kv_width;
  const int heads = a.query_heads + a.kv_heads;
  for (int head = blockIdx.y * kWarps + warp; head < heads; head += gridDim.y * kWarps) {
    if (head < a.query_heads) {
      PrepareHead(a, a.q_norm, q_scale, head, position, q + head * a.head_dim);
      continue;
    }
    const int kv_head = head - a.query_heads;
    const int offset = kv_head * a.head_dim;
    PrepareHead(a, a.k_norm, k_scale, kv_head, position, k + offset);
    for (int i = lane; i < a.head_dim; i += 32) {
      a.keys[row + offset + i] = __float2bfloat16(k[offset + i]);
      a.values[row + offset + i] = __float2bfloat16(Clip(v[offset + i], a.clip));
    }
  }
}

}  // namespace

void LaunchPrepareQkv(const PrepareQkvArguments& arguments, cudaStream_t stream) {
  // A norm over the whole projection reads what other heads' warps write: one block a token then.
  const int heads = arguments.query_heads + arguments.kv_heads;
  const int blocks = arguments.norm_per_head ? (heads + kWarps - 1) / kWarps : 1;
  PrepareQkv<<<dim3(arguments.tokens, blocks), kThreads, 0, stream>>>(arguments);
}

}  // namespace moed::backend
