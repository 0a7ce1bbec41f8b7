#include <algorithm>

#include "runtime/backend/cuda/prefill/product_operands.cuh"
#include "runtime/backend/cuda/prefill/warpgroup_products.h"
#include "runtime/backend/cuda/primitives/tile_pipeline.cuh"
#include "runtime/backend/cuda/primitives/warpgroup.cuh"
#include "runtime/backend/cuda/primitives/warpgroup_kernel.h"

namespace moed::backend {
namespace {

// A block computes 256 outputs of a tile's rows: two warpgroups multiply, 128 outputs each, while a
// third fills the ring, 64 along k a stage. Weights are the products' first operand, rows of x the
// second, so that few rows cost little. Blocks walk through tiles, a tile's outputs one after the
// other, so that those at work share rows and weights in L2.
constexpr int kDepth = 64;
constexpr int kStages = 4;
constexpr int kConsumers = 2;
constexpr int kOutputs = kConsumers * kWarpgroupOutputs;
static_assert(kOutputs == kWarpgroupBlockOutputs && kDepth == kWarpgroupDepth);
constexpr int kThreads = (1 + kConsumers) * kWarpgroupThreads;
constexpr int kChunks = kDepth / 8;  // 16-byte pieces of a row of a stage
constexpr int kAlignment = 1024;
static_assert(kDepth == kBlobBoxColumns && kDepth == kBlobBoxNeurons);

struct Stage {
  uint4 weights[kConsumers][kHalves][64][kChunks];
  uint4 rows[kWarpgroupProductRows][kChunks];
};
static_assert(sizeof(Stage) % kAlignment == 0);
constexpr int kSharedBytes = kStages * sizeof(Stage) + kAlignment;

struct Arguments {
  ExpertProductsArguments products;
  const std::byte* first_blob;
  size_t blob_stride;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Rows that the filling warpgroup copies at once.
constexpr int kLoadRows = kWarpgroupThreads / kChunks;
constexpr int kRowLoads = kWarpgroupProductRows / kLoadRows;
// Of a block's 64 K; the compiler gives each thread 168.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;

// Stages in turn: one is full once its weights and rows have come, empty once the products of both
// consumers have read it.
struct Ring {
  Stage* stages;
  uint32_t full;   // [kStages] barriers
  uint32_t empty;  // [kStages] barriers

  __device__ Stage& StageOf(int step) const { return stages[step % kStages]; }
  __device__ uint32_t FullOf(int step) const { return full + step % kStages * 8; }
  __device__ uint32_t EmptyOf(int step) const { return empty + step % kStages * 8; }
  static __device__ int TurnOf(int step) { return step / kStages % 2; }
};

// A block's share of (tile, 256 outputs), in order: function(tile, which outputs).
template <class Product, class Function>
__device__ __forceinline__ void ForEachTile(const ExpertProductsArguments& a, Function function) {
  const int blocks = (Product::Outputs(a) + kOutputs - 1) / kOutputs;
  for (int i = blockIdx.x; i < a.num_tiles * blocks; i += gridDim.x) {
    function(a.tiles[i / blocks], i % blocks);
  }
}

template <class Product>
__device__ int Steps(const ExpertProductsArguments& a) {
  return (Product::Depth(a) + kDepth - 1) / kDepth;
}

template <class Product>
__device__ __forceinline__ void LoadWeights(const CUtensorMap& blobs, int expert, int block, int k,
                                            Stage& stage, uint32_t full) {
  ExpectBytes(full, sizeof(stage.weights));
#pragma unroll
  for (int i = 0; i < kConsumers * kHalves; ++i) {
    const BoxPlace place = Product::Box(block * kConsumers + i / kHalves, i % kHalves, k);
    CopyTensorBox(SharedAddress(&stage.weights[i / kHalves][i % kHalves]), blobs, full,
                  place.column, place.part, place.neuron, expert);
  }
}

// By one warpgroup.
template <class Product>
__device__ __forceinline__ void FillRing(const CUtensorMap& blobs, const Arguments& arguments,
                                         const Ring& ring) {
  const ExpertProductsArguments& a = arguments.products;
  const int thread = threadIdx.x % kWarpgroupThreads;
  const int chunk = thread % kChunks;
  const int first = thread / kChunks;
  const int depth = Product::Depth(a);
  const auto* rows = reinterpret_cast<const uint4*>(Product::Rows(a));
  int step = 0;
  ForEachTile<Product>(a, [&](const ExpertProductTile& tile, int block) {
    const int expert = static_cast<int>((tile.blob - arguments.first_blob) / arguments.blob_stride);
    uint32_t begin[kRowLoads];  // of rows, in pieces
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const int row = first + i * kLoadRows;
      begin[i] = row < tile.num_rows
                     ? uint32_t(Product::Row(a, tile.first_row + row)) * uint32_t(depth / 8)
                     : 0;
    }
    for (int k = 0; k < depth; k += kDepth, ++step) {
      auto& stage = ring.StageOf(step);
      const uint32_t full = ring.FullOf(step);
      WaitForBytes(ring.EmptyOf(step), ring.TurnOf(step) ^ 1);
      if (thread == 0) LoadWeights<Product>(blobs, expert, block, k, stage, full);
      const bool inside = k + chunk * 8 < depth;
      const uint4* source = inside ? rows + k / 8 + chunk : rows;
      const uint32_t target = SharedAddress(&stage.rows[first][chunk ^ first % 8]);
#pragma unroll
      for (int i = 0; i < kRowLoads; ++i) {
        if (first + i * kLoadRows < tile.num_rows) {
          CopyAsync(target + i * kLoadRows * sizeof(stage.rows[0]), source + begin[i],
                    inside ? 16 : 0);
        }
      }
      ArriveAfterCopies(full);
    }
  });
}

// sums += one stage.
template <class Product, int kRows>
__device__ __forceinline__ void MultiplyStage(const Stage& stage, int consumer,
                                              float (&sums)[kHalves][kRows / 2]) {
  const uint64_t weights = TileDescriptor(SharedAddress(&stage.weights[consumer]));
  const uint64_t rows = TileDescriptor(SharedAddress(&stage.rows));
  PinSums(sums[0]);
  PinSums(sums[1]);
  BeginProducts();
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      constexpr int kHalfBytes = sizeof(stage.weights[0][0]);
      Multiply<kRows, Product::kTransposed>(
          sums[half], Advance(weights, half * kHalfBytes + k * Product::kStepBytes),
          Advance(rows, k * 32));
    }
  }
  CommitProducts();
}

// The consumer's part of outputs `block` of a tile of at most kRows rows, from the stages from
// `first_step` on.
template <class Product, int kRows>
__device__ __forceinline__ void MultiplyTile(const ExpertProductsArguments& a,
                                             const ExpertProductTile& tile, int block, int consumer,
                                             const Ring& ring, int first_step) {
  const int lane = threadIdx.x % 32;
  const typename Product::template Targets<kRows> targets(a, tile, lane);
  float sums[kHalves][kRows / 2];
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) sums[half][i] = 0.0f;
  }
  const int end = first_step + Steps<Product>(a);
  for (int step = first_step; step < end; ++step) {
    WaitForBytes(ring.FullOf(step), ring.TurnOf(step));
    FenceForProducts();
    MultiplyStage<Product, kRows>(ring.StageOf(step), consumer, sums);
    WaitForProducts<1>();
    if (step > first_step && lane == 0) Arrive(ring.EmptyOf(step - 1));
  }
  WaitForProducts<0>();
  PinSums(sums[0]);
  PinSums(sums[1]);
  if (lane == 0) Arrive(ring.EmptyOf(end - 1));
  Product::template Store<kRows>(a, tile, targets, block * kConsumers + consumer,
                                 threadIdx.x / 32 % 4, lane, sums);
}

// As MultiplyTile, with sums for no more rows than it takes.
template <class Product, class... Rest>
__device__ __forceinline__ void MultiplyAnyTile(const ExpertProductsArguments& a,
                                                const ExpertProductTile& tile, Rest... rest) {
  const int rows = tile.num_rows;
  if (rows <= 32) {
    MultiplyTile<Product, 32>(a, tile, rest...);
  } else if (rows <= 64) {
    MultiplyTile<Product, 64>(a, tile, rest...);
  } else if (rows <= 96) {
    MultiplyTile<Product, 96>(a, tile, rest...);
  } else if (rows <= 112) {
    MultiplyTile<Product, 112>(a, tile, rest...);
  } else if (rows <= 128) {
    MultiplyTile<Product, 128>(a, tile, rest...);
  } else if (rows <= 144) {
    MultiplyTile<Product, 144>(a, tile, rest...);
  } else {
    MultiplyTile<Product, 160>(a, tile, rest...);
  }
}

// By each of the consumers.
template <class Product>
__device__ __forceinline__ void EmptyRing(const ExpertProductsArguments& a, const Ring& ring,
                                          int consumer) {
  int step = 0;
  ForEachTile<Product>(a, [&](const ExpertProductTile& tile, int block) {
    MultiplyAnyTile<Product>(a, tile, block, consumer, ring, step);
    step += Steps<Product>(a);
  });
}

#endif

// Only what is compiled for warpgroup products has barriers in shared memory.
template <class Product>
__global__ void __launch_bounds__(kThreads, 1)
    Multiply(const __grid_constant__ CUtensorMap blobs, const __grid_constant__ Arguments a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ uint64_t full[kStages];
  __shared__ uint64_t empty[kStages];
  extern __shared__ std::byte memory[];
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kAlignment - 1) / kAlignment;
  const Ring ring = {reinterpret_cast<Stage*>(begin * kAlignment), SharedAddress(full),
                     SharedAddress(empty)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(ring.FullOf(i), 1 + kWarpgroupThreads);
      InitBarrier(ring.EmptyOf(i), kConsumers * kWarpgroupThreads / 32);
    }
    FenceBarriers();
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / kWarpgroupThreads;
  if (warpgroup == kConsumers) {
    GiveRegisters<kProducerRegisters>();
    FillRing<Product>(blobs, a, ring);
  } else {
    TakeRegisters<kConsumerRegisters>();
    EmptyRing<Product>(a.products, ring, warpgroup);
  }
#endif
}

template <class Product>
void Launch(const Arguments& a, const CUtensorMap& blobs, int multiprocessors,
            cudaStream_t stream) {
  const int blocks =
      (Product::Outputs(a.products) + kOutputs - 1) / kOutputs * a.products.num_tiles;
  Multiply<Product>
      <<<std::min(blocks, multiprocessors), kThreads, kSharedBytes, stream>>>(blobs, a);
}

}  // namespace

bool PrepareWarpgroupProducts() {
  return PrepareWarpgroupKernel(Multiply<GateUp>, kSharedBytes) &&
         PrepareWarpgroupKernel(Multiply<Down>, kSharedBytes);
}

cudaError_t LaunchWarpgroupProducts(const ExpertProductsArguments& arguments,
                                    const BlobTensor& blobs, int multiprocessors,
                                    cudaStream_t stream) {
  const Arguments a = {arguments, blobs.first, blobs.stride};
  Launch<GateUp>(a, blobs.map, multiprocessors, stream);
  Launch<Down>(a, blobs.map, multiprocessors, stream);
  return cudaGetLastError();
}

}  // namespace moed::backend
