#include <bit>

#include "runtime/backend/cuda/attention/attend_warpgroup.cuh"
#include "runtime/backend/cuda/attention/warpgroup_attention.h"
#include "runtime/backend/cuda/primitives/warpgroup_kernel.h"

namespace moed::backend {
namespace {

// A block takes a tile of tokens with 8 query heads of a KV head: two warpgroups attend while
// a third fetches keys and values.
constexpr int kThreads = (1 + kAttendingWarpgroups) * kWarpgroupThreads;
constexpr int kStages = 2;
constexpr int kAlignment = 1024;

template <int kDim>
struct Memory {
  RowTiles<kDim, kAttendingRows> queries[kAttendingWarpgroups];
  RowTiles<kDim, kTileKeys> keys[kStages];
  RowTiles<kDim, kTileKeys> values[kStages];
};

template <int kDim>
constexpr int kSharedBytes = sizeof(Memory<kDim>) + kAlignment;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Of a block's 64 K; the compiler gives each thread 168.
constexpr int kProducerRegisters = 56;
constexpr int kConsumerRegisters = 224;

// Stages of keys, or of values, in turn: one is full once its rows have come, empty once the
// products of both consumers have read it.
struct Ring {
  uint32_t full;   // [kStages] barriers
  uint32_t empty;  // [kStages] barriers

  __device__ void Init() const {
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(full + i * 8, kWarpgroupThreads);
      InitBarrier(empty + i * 8, kAttendingWarpgroups * kWarpgroupThreads / 32);
    }
  }
  __device__ void AwaitFull(int step) const {
    WaitForBytes(full + step % kStages * 8, step / kStages % 2);
    FenceForProducts();
  }
  __device__ void AwaitEmpty(int step) const {
    WaitForBytes(empty + step % kStages * 8, step / kStages % 2 ^ 1);
  }
  __device__ void SetFull(int step) const { ArriveAfterCopies(full + step % kStages * 8); }
  __device__ void SetEmpty(int step) const {
    if (threadIdx.x % 32 == 0) Arrive(empty + step % kStages * 8);
  }
};

// The keys and values of the runs, by one warpgroup.
template <int kDim>
struct Producer {
  static constexpr int kPieces = kDim / 8;
  static constexpr int kLoadRows = kWarpgroupThreads / kPieces;
  static constexpr int kLoads = kTileKeys / kLoadRows;

  const AttentionArguments& a;
  int block_shift;
  const int piece = threadIdx.x % kPieces;
  const int row = threadIdx.x % kWarpgroupThreads / kPieces;

  // Where a tile's rows begin in the cache, in pieces; positions beyond the end repeat the last.
  __device__ void Locate(const PromptWork& work, int first, uint32_t (&offsets)[kLoads]) const {
    const int32_t* blocks = a.step.kv_blocks + a.step.block_begin[work.run.begin];
    const uint32_t width = a.kv_heads * kPieces;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int position = min(first + row + i * kLoadRows, work.end - 1);
      const uint32_t block = blocks[position >> block_shift];
      const uint32_t cache_row = (block << block_shift) + (position & ((1 << block_shift) - 1));
      offsets[i] = cache_row * width + work.kv_head * kPieces + piece;
    }
  }

  __device__ void Load(const __nv_bfloat16* cache, const uint32_t (&offsets)[kLoads],
                       RowTiles<kDim, kTileKeys>& tiles) const {
    const auto* pieces = reinterpret_cast<const uint4*>(cache);
    const uint32_t target = SharedAddress(&tiles.rows[piece / 8][row][(piece % 8) ^ (row % 8)]);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      CopyAsync(target + i * kLoadRows * 128, pieces + offsets[i]);
    }
  }
};

template <int kDim>
__device__ __forceinline__ void Produce(const AttentionArguments& a, int block_shift,
                                        Memory<kDim>& memory, const Ring& keys,
                                        const Ring& values) {
  const Producer<kDim> producer = {a, block_shift};
  static_assert(Producer<kDim>::kLoadRows % 8 == 0, "a thread's rows lie alike in their groups");
  int step = 0;
  ForEachPromptRun<kAttendingHeads>(a, [&](const PromptWork& work) {
    for (int first = work.begin; first < work.end; first += kTileKeys, ++step) {
      uint32_t offsets[Producer<kDim>::kLoads];
      producer.Locate(work, first, offsets);
      keys.AwaitEmpty(step);
      producer.Load(a.keys, offsets, memory.keys[step % kStages]);
      keys.SetFull(step);
      values.AwaitEmpty(step);
      producer.Load(a.values, offsets, memory.values[step % kStages]);
      values.SetFull(step);
    }
  });
}

// A tile's scores are on their way while the values of the one before are added.
template <int kDim>
__device__ __forceinline__ void Attend(const AttentionArguments& a, const PromptWork& work,
                                       int index, Memory<kDim>& memory, const Ring& keys,
                                       const Ring& values, int step) {
  AttendingRows<kDim> rows(a, work, index);
  rows.LoadQueries(a, work, memory.queries[index]);
  keys.AwaitFull(step);
  rows.Score(memory.queries[index], memory.keys[step % kStages]);
  WaitForProducts<0>();
  keys.SetEmpty(step);
  rows.Exponentials(work.begin);
  rows.Renew();
  for (int first = work.begin + kTileKeys; first < work.end; first += kTileKeys, ++step) {
    keys.AwaitFull(step + 1);
    rows.Score(memory.queries[index], memory.keys[(step + 1) % kStages]);
    values.AwaitFull(step);
    rows.Accumulate(memory.values[step % kStages]);
    WaitForProducts<1>();
    keys.SetEmpty(step + 1);
    rows.Exponentials(first);
    WaitForProducts<0>();
    values.SetEmpty(step);
    rows.Renew();
  }
  values.AwaitFull(step);
  rows.Accumulate(memory.values[step % kStages]);
  WaitForProducts<0>();
  values.SetEmpty(step);
  rows.Store(a, work);
}

#endif

// Only what is compiled for warpgroup products has barriers in shared memory. Grid: as
// ForEachPromptRun says.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    AttendPrompts(const __grid_constant__ AttentionArguments a, int block_shift) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ uint64_t barriers[4 * kStages];
  extern __shared__ std::byte bytes[];
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(bytes) + kAlignment - 1) / kAlignment;
  auto& memory = *reinterpret_cast<Memory<kDim>*>(begin * kAlignment);
  const Ring keys = {SharedAddress(barriers), SharedAddress(barriers + kStages)};
  const Ring values = {SharedAddress(barriers + 2 * kStages),
                       SharedAddress(barriers + 3 * kStages)};
  if (threadIdx.x == 0) {
    keys.Init();
    values.Init();
    FenceBarriers();
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / kWarpgroupThreads;
  if (warpgroup == kAttendingWarpgroups) {
    GiveRegisters<kProducerRegisters>();
    Produce<kDim>(a, block_shift, memory, keys, values);
  } else {
    TakeRegisters<kConsumerRegisters>();
    int step = 0;
    ForEachPromptRun<kAttendingHeads>(a, [&](const PromptWork& work) {
      Attend<kDim>(a, work, warpgroup, memory, keys, values, step);
      step += (work.end - work.begin + kTileKeys - 1) / kTileKeys;
    });
  }
#endif
}

template <int kDim>
cudaError_t Launch(const AttentionArguments& a, cudaStream_t stream) {
  const int heads_per_kv = a.query_heads / a.kv_heads;
  const dim3 grid((a.tokens + kPromptTileTokens - 1) / kPromptTileTokens,
                  a.kv_heads * ((heads_per_kv + kAttendingHeads - 1) / kAttendingHeads));
  const int block_shift = std::countr_zero(static_cast<uint32_t>(a.block_tokens));
  AttendPrompts<kDim><<<grid, kThreads, kSharedBytes<kDim>, stream>>>(a, block_shift);
  return cudaGetLastError();
}

}  // namespace

bool PrepareWarpgroupAttention() {
  return PrepareWarpgroupKernel(AttendPrompts<64>, kSharedBytes<64>) &&
         PrepareWarpgroupKernel(AttendPrompts<128>, kSharedBytes<128>);
}

bool WarpgroupAttentionSupports(int head_dim, int block_tokens) {
  return (head_dim == 64 || head_dim == 128) &&
         std::has_single_bit(static_cast<uint32_t>(block_tokens));
}

cudaError_t LaunchWarpgroupAttention(const AttentionArguments& arguments, cudaStream_t stream) {
  return arguments.head_dim == 64 ? Launch<64>(arguments, stream) : Launch<128>(arguments, stream);
}

}  // namespace moed::backend
