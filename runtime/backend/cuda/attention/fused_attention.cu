#include "runtime/backend/cuda/attention/fused_attention.h"

#include <algorithm>

#include "runtime/backend/cuda/attention/attend_ahead.cuh"
#include "runtime/backend/cuda/attention/attention_exchange.cuh"
#include "runtime/backend/cuda/dense/norm_row.cuh"
#include "runtime/backend/cuda/device/compiled_kernel.h"
#include "runtime/backend/cuda/primitives/blocks_barrier.cuh"
#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"
#include "runtime/backend/cuda/primitives/row_stream.cuh"

namespace moed::backend {
namespace {

constexpr int kWarps = kAttendWarps;
constexpr int kThreads = kWarps * 32;
constexpr int kSlots = 10;
constexpr uint32_t kSlotBytes = 2048;
constexpr int kLeastSplits = 2;  // parts of which the output projection makes its input
// A group's columns of an output row; shorter pieces make copying slow.
constexpr int kLeastGroupWidth = 128;

// Dynamic shared memory, in this order: the warps' rings, the warps' values (in the beginning the
// prepared heads), the row that is multiplied.
constexpr size_t kRingBytes = size_t{kWarps} * kSlots * kSlotBytes;
__host__ __device__ constexpr size_t ValuesBytes(int head_dim) {
  return sizeof(float) * kWarps * kHeadGroup * head_dim;
}
__host__ __device__ int RowValues(int hidden, int head_dim) {
  return hidden > kHeadGroup * head_dim ? hidden : kHeadGroup * head_dim;
}
size_t SharedBytes(const FusedAttentionShape& shape) {
  return kRingBytes + ValuesBytes(shape.head_dim) + 2 * RowValues(shape.hidden, shape.head_dim);
}

#if __CUDA_ARCH__ >= 900

using Ring = RowRing<kSlots, kSlotBytes>;

// Copies that a warp starts before its row, and before its keys, were read: these reads would wait
// behind more.
constexpr int kCopiesBesideNorm = 4;
constexpr int kCopiesBesideAttention = 6;

// What a block does: of its KV head's rows of q, k and v every `head_blocks`-th, split `member` of
// the keys, if there are so many, then every `members`-th row of its group's columns.
struct Share {
  HeadGroup group;
  int group_index;
  int member;
  int members;
  int head_member;  // of the blocks of all groups of the KV head
  int head_blocks;
  int position;
  KeyRange range;
  bool splits;   // whether a split is the block's
  bool attends;  // and there is a token

  __device__ Share(const AttentionArguments& a, int groups, int token_position)
      : group(a, blockIdx.x % groups),
        group_index(blockIdx.x % groups),
        member(blockIdx.x / groups),
        members(Members(group_index, groups)),
        position(token_position),
        range(RangeOf(a, position, member)),
        splits(member < a.splits),
        attends(splits && position >= 0) {
    const int head_groups = groups / a.kv_heads;
    head_member = member * head_groups + group_index % head_groups;
    head_blocks = 0;
    for (int i = 0; i < head_groups; ++i) {
      head_blocks += Members(group.kv_head * head_groups + i, groups);
    }
  }

 private:
  __device__ static int Members(int index, int groups) {
    return (gridDim.x - index + groups - 1) / groups;
  }
};

// A row of the q, k and v weights.
struct PartRow {
  const LinearPart* part;
  int row;
  int place;  // counted through all parts
};

// The rows that make a KV head's queries, key and value.
struct HeadRows {
  const LinearPart* parts;  // q, k, v
  int kv_head;
  int query_heads;  // of the KV head
  int kv_heads;
  int head_dim;

  __device__ HeadRows(const FusedAttentionArguments& a, int head)
      : parts(a.qkv.parts),
        kv_head(head),
        query_heads(a.attention.query_heads / a.attention.kv_heads),
        kv_heads(a.attention.kv_heads),
        head_dim(a.attention.head_dim) {}
  __device__ int count() const { return (query_heads + 2) * head_dim; }
  __device__ PartRow operator[](int i) const {
    const int queries = query_heads * head_dim;
    if (i < queries) return {&parts[0], kv_head * queries + i, kv_head * queries + i};
    const bool is_value = i >= queries + head_dim;
    const int row = kv_head * head_dim + i - queries - (is_value ? head_dim : 0);
    return {&parts[is_value ? 2 : 1], row, kv_heads * (queries + (is_value ? head_dim : 0)) + row};
  }
};

// Of a weight's rows, or of several weights' one after the other, a warp's: every stride-th.
struct WarpRows {
  int first;
  int stride;
  int count;

  __device__ WarpRows(int all, int first_row, int row_stride)
      : first(first_row),
        stride(row_stride),
        count(first_row < all ? (all - first_row + row_stride - 1) / row_stride : 0) {}
  __device__ int operator[](int i) const { return first + i * stride; }
};

// store(row, its product with x) for each of the rows that `stream` brings, by one lane.
template <class Stream, class Store>
__device__ void MultiplyRows(Stream& stream, const WarpRows& rows, const __nv_bfloat16* x,
                             const Store& store) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = 0; i < rows.count; i += Stream::kRows) {
    const float product = stream.Next(x);
    if (lane < Stream::kRows && i + lane < rows.count) store(rows[i + lane], product);
  }
}

// Starts the output weights' copies, attends once the projections are there, and adds the output
// once all have `read` the residual.
template <int kChunks>
__device__ void AttendAndOutput(const FusedAttentionArguments& a, const Share& share,
                                const Exchange& exchange, const BlocksBarrier& read, Ring& ring,
                                int first_sequence, Ahead* ahead, float* values,
                                __nv_bfloat16* row) {
  const HeadGroup& group = share.group;
  const int head_dim = a.attention.head_dim;
  const WarpRows rows(a.output.out_features, threadIdx.x / 32 * share.members + share.member,
                      kWarps * share.members);
  const __nv_bfloat16* columns = a.output.weight + group.first_head * head_dim;
  const size_t row_values = size_t(a.attention.query_heads) * head_dim;
  RowStream stream(
      ring, first_sequence, rows.count, group.heads * head_dim,
      [&](int i) { return reinterpret_cast<const std::byte*>(columns + rows[i] * row_values); },
      share.splits ? kCopiesBesideAttention : kSlots);
  if (share.splits) {
    AttendRange<kChunks>(a.prepare, CachedRows{a.attention, 0, group.kv_head}, group, exchange,
                         share.range, share.position, ahead, values,
                         TaggedPart{exchange, group.first_head, a.attention.splits, share.member});
    stream.FillRing();
  }
  read.Wait();  // no warp needs `row` any more, either
  JoinTaggedSplits<kWarps>(exchange, group.first_head, group.heads, a.attention.splits, row);
  __syncthreads();
  const bool adds_bias = a.output.bias != nullptr && group.first_head == 0;
  MultiplyRows(stream, rows, row, [&](int target, float product) {
    atomicAdd(a.output.out + target, product + (adds_bias ? a.output.bias[target] : 0.0f));
  });
}

// One block to a multiprocessor; all run at once.
template <int kChunks>
__device__ void RunFused(const FusedAttentionArguments& a, int groups) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ uint64_t barriers[kWarps][kSlots];
  __shared__ __align__(16) Ahead ahead;
  __shared__ uint32_t launch;
  const int warp = threadIdx.x / 32;
  auto* const values = reinterpret_cast<float*>(memory + kRingBytes);
  auto* const row =
      reinterpret_cast<__nv_bfloat16*>(memory + kRingBytes + ValuesBytes(a.attention.head_dim));
  const int position = a.attention.step.positions[0];
  RowNorm<kWarps, 2> norm(a.qkv);
  Ring ring(memory + warp * (kSlots * kSlotBytes), barriers[warp], threadIdx.x % 32);
  const Share share(a.attention, groups, position);
  const HeadRows head_rows(a, share.group.kv_head);
  const WarpRows rows(head_rows.count(), warp * share.head_blocks + share.head_member,
                      kWarps * share.head_blocks);
  RowStream stream(
      ring, 0, rows.count, a.qkv.in_features,
      [&](int i) {
        const PartRow at = head_rows[rows[i]];
        return reinterpret_cast<const std::byte*>(at.part->weight +
                                                  size_t(at.row) * a.qkv.in_features);
      },
      kCopiesBesideNorm);
  LetNextKernelBegin();  // all blocks run: the next kernel's can keep none of them from it
  if (share.attends) {
    LookAhead(a.prepare, share.group, CachedRows{a.attention, 0, share.group.kv_head}, share.range,
              share.position, &ahead);
  }
  WaitForKernelAhead();
  norm.Load();
  const ExchangeMemory memory_of = {a.exchange};
  const BlocksBarrier read(memory_of.read());
  if (threadIdx.x == 0) launch = NextLaunch(__ldcg(memory_of.launches()));
  norm.Store(row);
  read.Arrive(gridDim.x, blockIdx.x == 0);
  stream.FillRing();
  const Exchange exchange = memory_of.Values(a.attention, launch);
  MultiplyRows(stream, rows, row, [&](int index, float product) {
    const PartRow at = head_rows[index];
    const float bias = at.part->bias == nullptr ? 0.0f : at.part->bias[at.row];
    StoreTagged(exchange.q + at.place, product + bias, exchange.launch);
  });
  if (position >= 0) {
    AttendAndOutput<kChunks>(a, share, exchange, read, ring, stream.end_sequence(), &ahead, values,
                             row);
  } else {
    read.Wait();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *memory_of.launches() = launch;  // all have read it
}

#endif

template <int kChunks>
__global__ void __launch_bounds__(kThreads, 1)
    FusedAttention(const __grid_constant__ FusedAttentionArguments a, int groups) {
#if __CUDA_ARCH__ >= 900
  RunFused<kChunks>(a, groups);
#endif
}

int Groups(const FusedAttentionShape& shape) {
  return HeadGroups(shape.query_heads, shape.kv_heads);
}

int MostSplits(const FusedAttentionShape& shape) {
  return std::min(kMaxSplits, shape.multiprocessors / Groups(shape));
}

// Whether all blocks of a launch that fits the current device run at once, as those that wait for
// one another must. Processes that share it at the same time could each keep some of the others'
// from it.
bool RunsBlocksTogether() {
  int device = 0;
  int shared = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&shared, cudaDevAttrMpsEnabled, device) == cudaSuccess &&
         shared == 0;
}

// Calls `function` with the kernel for the head dimension.
template <class Function>
auto WithKernel(int head_dim, const Function& function) {
  if (head_dim <= 32) return function(FusedAttention<1>);
  if (head_dim <= 64) return function(FusedAttention<2>);
  if (head_dim <= 96) return function(FusedAttention<3>);
  return function(FusedAttention<4>);
}

}  // namespace

bool FusedAttentionSupports(const FusedAttentionShape& shape) {
  const int groups = Groups(shape);
  const int group_width = shape.query_heads / groups * shape.head_dim;
  if (shape.hidden % 8 != 0 || shape.head_dim % 8 != 0 || shape.head_dim > kMaxFusedHeadDim ||
      group_width < kLeastGroupWidth || groups * kLeastSplits > shape.multiprocessors ||
      !RunsBlocksTogether()) {
    return false;
  }
  return WithKernel(shape.head_dim, [&](auto kernel) {
    const int bytes = static_cast<int>(SharedBytes(shape));
    int blocks = 0;
    const bool fits = KernelsAreCompiledForHopper() &&
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           bytes) == cudaSuccess &&
                      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads,
                                                                    bytes) == cudaSuccess;
    cudaGetLastError();  // a device with less shared memory leaves one
    return fits && blocks > 0;
  });
}

int FusedAttentionSplits(const FusedAttentionShape& shape, int max_context) {
  return std::clamp((max_context + kBlockKeys - 1) / kBlockKeys, kLeastSplits, MostSplits(shape));
}

size_t FusedAttentionExchangeBytes(const FusedAttentionShape& shape) {
  const size_t heads = shape.query_heads + 2 * shape.kv_heads;
  const size_t parts = size_t(shape.query_heads) * MostSplits(shape);
  return 2 * kExchangeWordBytes +
         sizeof(uint64_t) * (heads * shape.head_dim + parts * TaggedPartWords(shape.head_dim));
}

cudaError_t LaunchFusedAttention(const FusedAttentionArguments& arguments,
                                 const FusedAttentionShape& shape, cudaStream_t stream) {
  // Not a cooperative launch, which would not begin early: all blocks fit at once, the kernels
  // ahead end without them, and the one behind begins when all of them run.
  const LaunchShape launch = {.grid = unsigned(shape.multiprocessors),
                              .block = kThreads,
                              .shared_bytes = SharedBytes(shape)};
  return WithKernel(shape.head_dim, [&](auto kernel) {
    return LaunchAhead(kernel, launch, stream, arguments, Groups(shape));
  });
}

}  // namespace moed::backend
