#include "runtime/backend/cuda/dense/one_wave_linear.h"

#include <optional>

#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kUnitOutputs = 8;
constexpr int kTileTokens = 16;
constexpr int kPairColumns = 64;  // a warp takes 128 bytes of each weight row at a time
constexpr int kPairsAhead = 2;    // of a warp, in registers

__device__ uint32_t PackBFloat16(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Where a block stands: its units of outputs, its warps' pairs of columns.
struct LinearShare {
  int first_unit;
  int begin;  // pairs of the block's slice
  int end;

  __device__ LinearShare(const LinearArguments& a, int units)
      : first_unit(blockIdx.x * units),
        begin(Pairs(a) * blockIdx.y / gridDim.y),
        end(Pairs(a) * (blockIdx.y + 1) / gridDim.y) {}
  __host__ __device__ static int Pairs(const LinearArguments& a) {
    return (a.in_features + kPairColumns - 1) / kPairColumns;
  }
};

// A unit's outputs, in one of the parts.
struct LinearUnit {
  const LinearPart* part = nullptr;
  int first_output = 0;

  __device__ LinearUnit(const LinearArguments& a, int unit) {
    for (int i = 0; i < a.num_parts; ++i) {
      const int units = a.parts[i].out_features / kUnitOutputs;
      if (unit < units) {
        part = &a.parts[i];
        first_output = unit * kUnitOutputs;
        return;
      }
      unit -= units;
    }
  }
};

// What a lane holds of the weights: of each unit row lane / 4, 16 bytes of each half of a pair.
template <int kUnits>
struct UnitWeights {
  const __nv_bfloat16* rows[kUnits];
  uint4 values[kPairsAhead][2][kUnits];

  __device__ UnitWeights(const LinearArguments& a, const LinearShare& share) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const LinearUnit unit(a, share.first_unit + u);
      rows[u] = unit.part == nullptr
                    ? a.parts[0].weight
                    : unit.part->weight +
                          size_t(unit.first_output + threadIdx.x % 32 / 4) * a.in_features;
    }
  }
  __device__ static int Column(int pair, int half) {
    return pair * kPairColumns + half * 32 + threadIdx.x % 4 * 8;
  }
  template <int kIndex>
  __device__ void Load(const LinearArguments& a, const LinearShare& share, int pair) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = Column(pair, half);
      const bool inside = pair < share.end && column < a.in_features;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        values[kIndex][half][u] = inside ? LoadStreaming(rows[u] + column) : make_uint4(0, 0, 0, 0);
      }
    }
  }
  // Brings the pairs from `first` on into L2.
  __device__ void Prefetch(const LinearArguments& a, const LinearShare& share, int first) const {
    if (threadIdx.x % 4 != 0) return;
    for (int pair = first; pair < share.end; pair += kWarps) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(rows[u] + pair * kPairColumns));
      }
    }
  }
};

// rsqrt(mean(x^2) + epsilon) of the residual's rows lane / 4 and the eighth after it. By all warps
// of the block.
__device__ float2 ScalesOfRows(const LinearArguments& a) {
  __shared__ float partial[kTileTokens][kWarps];
  const int warp = threadIdx.x / 32;
  const int g = threadIdx.x % 32 / 4;
#pragma unroll
  for (int first = 0; first < kTileTokens; first += 8) {
    const float* row = a.residual + size_t(first + g) * a.in_features;
    float squares = 0.0f;
    if (first + g < a.rows) {
#pragma unroll 16
      for (int column = threadIdx.x / 32 * 16 + threadIdx.x % 4 * 4; column < a.in_features;
           column += kWarps * 16) {
        const float4 x = *reinterpret_cast<const float4*>(row + column);
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
      }
    }
    squares += __shfl_xor_sync(0xffffffffu, squares, 1);
    squares += __shfl_xor_sync(0xffffffffu, squares, 2);
    if (threadIdx.x % 4 == 0) partial[first + g][warp] = squares;
  }
  __syncthreads();
  float2 squares = make_float2(0.0f, 0.0f);
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    squares.x += partial[g][w];
    squares.y += partial[g + 8][w];
  }
  return make_float2(rsqrtf(squares.x / a.in_features + a.norm_epsilon),
                     rsqrtf(squares.y / a.in_features + a.norm_epsilon));
}

// Eight columns of the residual's row, normed.
__device__ uint4 NormedTokens(const LinearArguments& a, size_t at, int column, float scale) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 x = *reinterpret_cast<const float4*>(a.residual + at + 4 * i);
    const float4 weight = *reinterpret_cast<const float4*>(a.norm_weight + column + 4 * i);
    pairs[2 * i] = PackBFloat16(x.x * scale * weight.x, x.y * scale * weight.y);
    pairs[2 * i + 1] = PackBFloat16(x.z * scale * weight.z, x.w * scale * weight.w);
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Eight columns of a row of x, which with kNorms is made of the residual; zeros beyond.
template <bool kNorms>
__device__ uint4 LoadTokens(const LinearArguments& a, int row, int column, float scale) {
  if (row >= a.rows || column >= a.in_features) return make_uint4(0, 0, 0, 0);
  const size_t at = size_t(row) * a.in_features + column;
  if constexpr (kNorms) {
    return NormedTokens(a, at, column, scale);
  } else {
    return *reinterpret_cast<const uint4*>(a.x + at);
  }
}

// The products of pair `pair`, whose weights are values[kIndex]; lane 4 g + t holds tokens g and
// g + 8 and output g at columns c + t * 8 to + 7: k is permuted alike on both sides, so that
// 16-byte loads are fragments as they stand.
template <int kIndex, int kTiles, bool kNorms, int kUnits>
__device__ void MultiplyPair(const LinearArguments& a, const UnitWeights<kUnits>& weights,
                             const float2& scales, int pair, float (&sums)[kUnits][kTiles][4]) {
  const int g = threadIdx.x % 32 / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int column = UnitWeights<kUnits>::Column(pair, half);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = tile * kTileTokens + g;
      const uint4 low = LoadTokens<kNorms>(a, row, column, scales.x);
      const uint4 high = LoadTokens<kNorms>(a, row + 8, column, scales.y);
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint4& w = weights.values[kIndex][half][u];
        MmaK16(sums[u][tile], low.x, high.x, low.y, high.y, w.x, w.y);
        MmaK16(sums[u][tile], low.z, high.z, low.w, high.w, w.z, w.w);
      }
    }
  }
}

// What the warps summed up, into the outputs: element r of a lane is token g + r / 2 * 8 of the
// tile, output 2 t + r % 2 of the unit.
template <int kUnits, int kTiles>
__device__ void StoreUnits(const LinearArguments& a, const LinearShare& share,
                           const float (&partial)[kWarps][kUnits * kTiles * 4][32]) {
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32; i < kUnits * kTiles * 4; i += kWarps) {
    const int r = i % 4;
    const int row = i / 4 % kTiles * kTileTokens + lane / 4 + r / 2 * 8;
    const LinearUnit unit(a, share.first_unit + i / (4 * kTiles));
    if (row >= a.rows || unit.part == nullptr) continue;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += partial[w][i][lane];
    const int output = unit.first_output + 2 * (lane % 4) + r % 2;
    if (unit.part->bias != nullptr && blockIdx.y == 0) sum += unit.part->bias[output];
    float* const target = unit.part->out + size_t(row) * unit.part->out_features + output;
    if (a.accumulate) {
      atomicAdd(target, sum);
    } else {
      *target = sum;
    }
  }
}

// Grid: (units by kUnits, slices of the columns, which only what is added up may have). A block's
// warps share out its columns.
template <int kUnits, int kTiles, bool kNorms>
__global__ void __launch_bounds__(kThreads, 1)
    OneWaveLinear(const __grid_constant__ LinearArguments a) {
  static_assert(kPairsAhead == 2);
  __shared__ float partial[kWarps][kUnits * kTiles * 4][32];
  const LinearShare share(a, kUnits);
  const int warp = threadIdx.x / 32;
  UnitWeights<kUnits> weights(a, share);
  weights.template Load<0>(a, share, share.begin + warp);
  weights.template Load<1>(a, share, share.begin + warp + kWarps);
  weights.Prefetch(a, share, share.begin + warp + kPairsAhead * kWarps);
  LetNextKernelBegin();
  WaitForKernelAhead();
  float sums[kUnits][kTiles][4] = {};
  const float2 scales = kNorms ? ScalesOfRows(a) : make_float2(1.0f, 1.0f);
  for (int pair = share.begin + warp; pair < share.end; pair += kPairsAhead * kWarps) {
    MultiplyPair<0, kTiles, kNorms>(a, weights, scales, pair, sums);
    weights.template Load<0>(a, share, pair + 2 * kWarps);
    MultiplyPair<1, kTiles, kNorms>(a, weights, scales, pair + kWarps, sums);
    weights.template Load<1>(a, share, pair + 3 * kWarps);
  }
#pragma unroll
  for (int i = 0; i < kUnits * kTiles * 4; ++i) {
    partial[warp][i][threadIdx.x % 32] = sums[i / (4 * kTiles)][i / 4 % kTiles][i % 4];
  }
  __syncthreads();
  StoreUnits<kUnits, kTiles>(a, share, partial);
}

// How a product is cut.
struct Wave {
  int units;  // of a block
  int blocks;
  int slices;
};

int Multiprocessors() {
  int device = 0;
  int count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// That whose blocks end first, if one keeps at least half of the multiprocessors busy.
std::optional<Wave> WaveFor(const LinearArguments& a) {
  const int multiprocessors = Multiprocessors();
  int all_units = 0;
  for (int i = 0; i < a.num_parts; ++i) {
    if (a.parts[i].out_features % kUnitOutputs != 0) return std::nullopt;
    all_units += a.parts[i].out_features / kUnitOutputs;
  }
  std::optional<Wave> best;
  int least = 0;
  for (const int units : {4, 5, 6}) {
    for (const int slices : {1, 2, 4}) {
      const int blocks = (all_units + units - 1) / units;
      const int all = blocks * slices;
      const int cost = units * LinearShare::Pairs(a) / slices;
      if (all > multiprocessors || all < multiprocessors / 2) continue;
      if ((slices > 1 && !a.accumulate) || (best.has_value() && cost >= least)) continue;
      best = {units, blocks, slices};
      least = cost;
    }
  }
  return best;
}

template <int kUnits>
auto KernelOf(const LinearArguments& a) {
  if (a.residual != nullptr) return OneWaveLinear<kUnits, 1, true>;
  return a.rows <= kTileTokens ? OneWaveLinear<kUnits, 1, false> : OneWaveLinear<kUnits, 2, false>;
}

}  // namespace

bool OneWaveLinearSupports(const LinearArguments& a) {
  return a.rows <= kMostOneWaveRows && a.in_features % 8 == 0 && WaveFor(a).has_value();
}

cudaError_t LaunchOneWaveLinear(const LinearArguments& a, cudaStream_t stream) {
  const Wave wave = *WaveFor(a);
  const auto kernel = wave.units == 4   ? KernelOf<4>(a)
                      : wave.units == 5 ? KernelOf<5>(a)
                                        : KernelOf<6>(a);
  return LaunchAhead(kernel, {.grid = dim3(wave.blocks, wave.slices), .block = kThreads}, stream,
                     a);
}

}  // namespace moed::backend
