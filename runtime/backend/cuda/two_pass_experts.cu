#include "runtime/backend/cuda/two_pass_experts.h"

#include <algorithm>

#include "runtime/backend/cuda/bf12_experts.cuh"
#include "runtime/backend/cuda/bf16_experts.cuh"
#include "runtime/backend/cuda/down_pass.cuh"
#include "runtime/backend/cuda/gate_up_pass.cuh"
#include "runtime/backend/cuda/link_tiles.cuh"

namespace moed::backend {
namespace {

// Warps and slots of the second pass, by the tasks that are joined: what registers and shared
// memory allow.
template <int kTokenTiles>
constexpr int kDownWarps = kTokenTiles > 2 ? 8 : 16;
template <int kTokenTiles>
constexpr int kDownSlots = kTokenTiles > 2 ? 8 : 5;
template <class Format, int kTokenTiles>
constexpr int kDownBytes =
    DownRing<Format, kTokenTiles, kDownWarps<kTokenTiles>, kDownSlots<kTokenTiles>>::kBytes;

template <class Format, int kTokenTiles>
__global__ void __launch_bounds__(kTileThreads, 1)
    GateUpTwoPass(const __grid_constant__ ExpertTilesArguments a) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ TileState state;
  const ExpertTaskList list = *a.tasks;
  const int link_blocks = a.link == LinkAccess::kBulk ? NumLinkBlocks(list) : 0;
  if (int(blockIdx.x) < link_blocks) {
    LinkTiles<Format>(a, list.link, blockIdx.x, link_blocks, memory, &state);
    return;
  }
  __shared__ GateUpState own;
  const TileRange range(list.vram, blockIdx.x - link_blocks, gridDim.x - link_blocks);
  if (range.begin == range.end) return;
  GateUpPass<Format, kTokenTiles>(a, memory, &own).Run(list.vram, range);
}

template <class Format, int kTokenTiles>
__global__ void __launch_bounds__(kDownWarps<kTokenTiles> * 32, 1)
    DownTwoPass(const __grid_constant__ ExpertTilesArguments a) {
  extern __shared__ __align__(128) std::byte memory[];
  constexpr int kWarps = kDownWarps<kTokenTiles>;
  const ExpertTaskSpan span = a.tasks->vram;
  __shared__ DownPlace places[kWarps][2];
  const int64_t units = int64_t{span.num_tiles} * DownSlices(a.hidden, kWarps);
  const int begin = int(units * blockIdx.x / gridDim.x);
  const int end = int(units * (blockIdx.x + 1) / gridDim.x);
  if (begin == end) return;
  RunDownPass<Format, kTokenTiles, kWarps, kDownSlots<kTokenTiles>>(
      a, span, begin, end, places[threadIdx.x / 32], memory);
}

template <class Format, int kTokenTiles>
int GateUpBytes(int hidden, LinkAccess link) {
  const int link_bytes = link == LinkAccess::kBulk ? LinkSharedBytes<Format>(hidden) : 0;
  return std::max(ChunkBytes(hidden, kTokenTiles), link_bytes);
}

template <class Format, int kTokenTiles>
cudaError_t Prepare(int hidden) {
  const cudaError_t error = cudaFuncSetAttribute(
      GateUpTwoPass<Format, kTokenTiles>, cudaFuncAttributeMaxDynamicSharedMemorySize,
      GateUpBytes<Format, kTokenTiles>(hidden, LinkAccessFor(Format::kKind, hidden)));
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(DownTwoPass<Format, kTokenTiles>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kDownBytes<Format, kTokenTiles>);
}

template <class Format>
cudaError_t PrepareFormat(int hidden) {
  for (const cudaError_t error :
       {Prepare<Format, 1>(hidden), Prepare<Format, 2>(hidden), Prepare<Format, 4>(hidden)}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class Format, int kTokenTiles>
cudaError_t Launch(const ExpertTilesArguments& a, cudaStream_t stream) {
  const int bytes = GateUpBytes<Format, kTokenTiles>(a.hidden, a.link);
  GateUpTwoPass<Format, kTokenTiles><<<a.multiprocessors, kTileThreads, bytes, stream>>>(a);
  DownTwoPass<Format, kTokenTiles><<<a.multiprocessors, kDownWarps<kTokenTiles> * 32,
                                     kDownBytes<Format, kTokenTiles>, stream>>>(a);
  return cudaGetLastError();
}

template <class Format>
cudaError_t LaunchFormat(const ExpertTilesArguments& a, cudaStream_t stream) {
  if (a.joined_tasks <= 1) return Launch<Format, 1>(a, stream);
  if (a.joined_tasks <= 2) return Launch<Format, 2>(a, stream);
  return Launch<Format, 4>(a, stream);
}

}  // namespace

bool TwoPassSupports() {
  constexpr int kStaticBytes = static_cast<int>(sizeof(TileState)) + 1024;
  constexpr int kBytes = std::max({kMostTokenBytes + kStaticBytes, kDownBytes<Bf12Experts, 1>,
                                   kDownBytes<Bf12Experts, 2>, kDownBytes<Bf12Experts, 4>});
  int device = 0;
  int most = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         kBytes <= most;
}

cudaError_t PrepareTwoPass(int hidden) {
  const cudaError_t error = PrepareFormat<Bf16Experts>(hidden);
  return error != cudaSuccess ? error : PrepareFormat<Bf12Experts>(hidden);
}

cudaError_t LaunchTwoPass(const ExpertTilesArguments& arguments, cudaStream_t stream) {
  return arguments.format == ExpertFormatKind::kBF12 ? LaunchFormat<Bf12Experts>(arguments, stream)
                                                     : LaunchFormat<Bf16Experts>(arguments, stream);
}

}  // namespace moed::backend
