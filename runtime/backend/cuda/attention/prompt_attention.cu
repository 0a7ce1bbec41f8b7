#include <algorithm>

#include "runtime/backend/cuda/attention/attention_tiles.cuh"
#include "runtime/backend/cuda/attention/prompt_attention.h"
#include "runtime/backend/cuda/attention/prompt_runs.cuh"
#include "runtime/backend/cuda/primitives/async_copy.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {
namespace {

// A warp to two tokens: rows 0-7 of its products are the heads of one, rows 8-15 of the other.
constexpr int kWarps = kPromptTileTokens / 2;
constexpr int kThreads = kWarps * 32;
constexpr int kHeads = 8;
constexpr int kTileKeys = 64;
constexpr int kStages = 2;
constexpr float kLog2E = 1.44269504f;

// Keys or values of a tile, 16-byte pieces placed so that eight rows' pieces lie in different
// banks.
template <int kDim>
struct KeyTile {
  uint4 rows[kTileKeys][kDim / 8];

  __device__ uint32_t Address(int row, int piece) const {
    return SharedAddress(&rows[row][piece ^ (row % 8)]);
  }
};

template <int kDim>
struct Stage {
  KeyTile<kDim> keys;
  KeyTile<kDim> values;
};

// A 16 x 16 part of an A operand, high and low halves of what was float32.
struct SplitFragment {
  uint32_t high[4];
  uint32_t low[4];

  __device__ void Set(int i, float first, float second) {
    const SplitPair pair = Split(first, second);
    high[i] = pair.high;
    low[i] = pair.low;
  }
};

__device__ void MultiplySplit(float (&sums)[4], const SplitFragment& a, uint32_t b0, uint32_t b1) {
  MmaK16(sums, a.high[0], a.high[1], a.high[2], a.high[3], b0, b1);
  MmaK16(sums, a.low[0], a.low[1], a.low[2], a.low[3], b0, b1);
}

// The two tokens of a warp, one in each half of its rows: lane 4 g + t works for head g.
template <int kDim>
class WarpRows {
 public:
  __device__ WarpRows(const AttentionArguments& a, const PromptWork& work)
      : lane_(threadIdx.x % 32) {
    const int tile_first = work.run.begin / kPromptTileTokens * kPromptTileTokens;
    for (int half = 0; half < 2; ++half) {
      const int token = tile_first + threadIdx.x / 32 * 2 + half;
      const bool present = token >= work.run.begin && token < work.run.end;
      token_[half] = present && lane_ / 4 < work.heads ? token : -1;
      visible_.Set(half, a, token, present);
    }
    LoadQueries(a, work);
  }

  // Adds a tile of keys from position `first` on.
  __device__ void Add(const Stage<kDim>& stage, int first) {
    float scores[kTileKeys / 8][4] = {};
    Score(stage.keys, scores);
    if (!visible_.SeeAll(first, kTileKeys)) Mask(first, scores);
    Exponentials(scores);
    Accumulate(stage.values, scores);
  }

  __device__ void Store(const AttentionArguments& a, const PromptWork& work) const {
    for (int half = 0; half < 2; ++half) {
      float sum = sum_[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (token_[half] < 0) continue;
      const float scale = 1.0f / sum;
      __nv_bfloat16* out = a.out + Row(a, work, token_[half]) + lane_ % 4 * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<__nv_bfloat162*>(out + n * 8) =
            __floats2bfloat162_rn(out_[n][2 * half] * scale, out_[n][2 * half + 1] * scale);
      }
    }
  }

 private:
  // Where the lane's head of a token begins in q and out.
  __device__ size_t Row(const AttentionArguments& a, const PromptWork& work, int token) const {
    return (size_t(token) * a.query_heads + work.first_head + lane_ / 4) * kDim;
  }

  // Scaled so that softmax is a power of two.
  __device__ void LoadQueries(const AttentionArguments& a, const PromptWork& work) {
    const float scale = a.scale * kLog2E;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* q = token_[half] < 0 ? nullptr : a.q + Row(a, work, token_[half]);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = k * 16 + i * 8 + lane_ % 4 * 2;
          const float2 x =
              q == nullptr ? make_float2(0.0f, 0.0f) : *reinterpret_cast<const float2*>(q + column);
          queries_[k].Set(2 * i + half, x.x * scale, x.y * scale);
        }
      }
    }
  }

  __device__ void Score(const KeyTile<kDim>& keys, float (&scores)[kTileKeys / 8][4]) const {
#pragma unroll
    for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
      for (int k = 0; k < kDim / 32; ++k) {
        uint32_t b[4];
        LoadMatrices(b, keys.Address(n * 8 + lane_ % 8, k * 4 + lane_ / 8));
        MultiplySplit(scores[n], queries_[2 * k], b[0], b[1]);
        MultiplySplit(scores[n], queries_[2 * k + 1], b[2], b[3]);
      }
    }
  }

  __device__ void Mask(int first, float (&scores)[kTileKeys / 8][4]) const {
#pragma unroll
    for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int key = first + n * 8 + lane_ % 4 * 2 + r % 2;
        if (visible_.Hides(r / 2, key)) scores[n][r] = -INFINITY;
      }
    }
  }

  // Moves to the maxima of the tile's scores, which become probabilities.
  __device__ void Exponentials(float (&scores)[kTileKeys / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = maximum_[half];
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
        highest = fmaxf(highest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
      // A row that has seen no key yet must not make NaN of two infinities.
      const float base = highest == -INFINITY ? 0.0f : highest;
      const float correction = exp2f(maximum_[half] - base);
      maximum_[half] = highest;
      float sum = sum_[half] * correction;
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = exp2f(scores[n][i] - base);
          sum += scores[n][i];
        }
      }
      sum_[half] = sum;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        out_[n][2 * half] *= correction;
        out_[n][2 * half + 1] *= correction;
      }
    }
  }

  __device__ void Accumulate(const KeyTile<kDim>& values, const float (&p)[kTileKeys / 8][4]) {
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      SplitFragment a;
      a.Set(0, p[2 * k][0], p[2 * k][1]);
      a.Set(1, p[2 * k][2], p[2 * k][3]);
      a.Set(2, p[2 * k + 1][0], p[2 * k + 1][1]);
      a.Set(3, p[2 * k + 1][2], p[2 * k + 1][3]);
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        uint32_t b[4];
        LoadMatricesTransposed(b, values.Address(k * 16 + lane_ % 16, n * 2 + lane_ / 16));
        MultiplySplit(out_[2 * n], a, b[0], b[1]);
        MultiplySplit(out_[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  int lane_;
  int token_[2];  // -1: nothing to store
  VisibleKeys visible_;
  SplitFragment queries_[kDim / 16];
  float maximum_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {};
  float out_[kDim / 8][4] = {};
};

// Starts the copy of a tile from position `first` on; keys beyond the end repeat the last.
template <int kDim>
__device__ void LoadStage(const AttentionArguments& a, const PromptWork& work, int first,
                          Stage<kDim>* stage) {
  constexpr int kPieces = kDim / 8;
  const size_t width = size_t(a.kv_heads) * kDim;
  const int32_t* blocks = a.step.kv_blocks + a.step.block_begin[work.run.begin];
  const int piece = threadIdx.x % kPieces;
  for (int row = threadIdx.x / kPieces; row < kTileKeys; row += kThreads / kPieces) {
    const int position = min(first + row, work.end - 1);
    const size_t cache_row =
        size_t(blocks[position / a.block_tokens]) * a.block_tokens + position % a.block_tokens;
    const size_t offset = cache_row * width + work.kv_head * kDim + piece * 8;
    CopyAsync(stage->keys.Address(row, piece), a.keys + offset);
    CopyAsync(stage->values.Address(row, piece), a.values + offset);
  }
  CommitCopies();
}

template <int kDim>
__device__ void AttendRun(const AttentionArguments& a, const PromptWork& work,
                          Stage<kDim>* stages) {
  WarpRows<kDim> rows(a, work);
  LoadStage(a, work, work.begin, &stages[0]);
  int stage = 0;
  for (int first = work.begin; first < work.end; first += kTileKeys, stage = 1 - stage) {
    WaitForCopies<0>();
    __syncthreads();
    if (first + kTileKeys < work.end) {
      LoadStage(a, work, first + kTileKeys, &stages[1 - stage]);
    }
    rows.Add(stages[stage], first);
  }
  rows.Store(a, work);
  __syncthreads();  // the stages belong to the next run
}

// Grid: as ForEachPromptRun says.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 1) AttendPrompts(AttentionArguments a) {
  extern __shared__ __align__(128) std::byte memory[];
  auto* stages = reinterpret_cast<Stage<kDim>*>(memory);
  ForEachPromptRun<kHeads>(a, [&](const PromptWork& work) { AttendRun<kDim>(a, work, stages); });
}

template <int kDim>
cudaError_t Prepare() {
  return cudaFuncSetAttribute(AttendPrompts<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kStages * sizeof(Stage<kDim>));
}

template <int kDim>
cudaError_t Launch(const AttentionArguments& a, cudaStream_t stream) {
  const int heads_per_kv = a.query_heads / a.kv_heads;
  const dim3 grid((a.tokens + kPromptTileTokens - 1) / kPromptTileTokens,
                  a.kv_heads * ((heads_per_kv + kHeads - 1) / kHeads));
  AttendPrompts<kDim><<<grid, kThreads, kStages * sizeof(Stage<kDim>), stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

bool PromptAttentionSupports(int head_dim) { return head_dim == 64 || head_dim == 128; }

cudaError_t PreparePromptAttention() {
  const cudaError_t error = Prepare<64>();
  return error != cudaSuccess ? error : Prepare<128>();
}

cudaError_t LaunchPromptAttention(const AttentionArguments& arguments, cudaStream_t stream) {
  return arguments.head_dim == 64 ? Launch<64>(arguments, stream) : Launch<128>(arguments, stream);
}

}  // namespace moed::backend
