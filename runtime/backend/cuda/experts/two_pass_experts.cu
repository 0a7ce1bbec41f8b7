#include "runtime/backend/cuda/experts/two_pass_experts.h"

#include <algorithm>

#include "runtime/backend/cuda/device/compiled_kernel.h"
#include "runtime/backend/cuda/experts/bf12_experts.cuh"
#include "runtime/backend/cuda/experts/bf16_experts.cuh"
#include "runtime/backend/cuda/experts/chunked_gate_up.cuh"
#include "runtime/backend/cuda/experts/down_pass.cuh"
#include "runtime/backend/cuda/experts/link_tiles.cuh"
#include "runtime/backend/cuda/experts/streamed_gate_up.cuh"

namespace moed::backend {
namespace {

// Warps of the second pass, by the tasks that are joined: what registers allow.
template <int kTokenTiles>
constexpr int kDownWarps = kTokenTiles > 2 ? 8 : 16;
template <class Format, int kTokenTiles>
using Down = DownLayout<Format, kTokenTiles, kDownWarps<kTokenTiles>>;

// The tiles in VRAM of a block, with the tokens in shared memory (kSlices is 0) or in registers.
template <class Format, int kTokenTiles, int kSlices>
__device__ void GateUpInVram(const ExpertTilesArguments& a, const ExpertTaskSpan& span,
                             const TileRange& range, std::byte* memory) {
  if constexpr (kSlices == 0) {
    __shared__ GateUpState state;
    ChunkedGateUp<Format, kTokenTiles>(a, memory, &state).Run(span, range);
  } else {
#if __CUDA_ARCH__ >= 900
    using State = StreamedGateUpState<Format, kTokenTiles>;
    auto* const state = reinterpret_cast<State*>(memory + GateUpLayout<Format>(a.hidden).bytes());
    StreamedGateUp<Format, kTokenTiles, kSlices>(a, span, range, memory, state).Run();
#endif
  }
}

template <class Format, int kTokenTiles, int kSlices>
__global__ void __launch_bounds__(kTileThreads, 1)
    GateUpTwoPass(const __grid_constant__ ExpertTilesArguments a) {
  extern __shared__ __align__(128) std::byte memory[];
  const ExpertTaskList list = *a.tasks;
  const int link_blocks = IsBulk(a.link) ? NumLinkBlocks(list) : 0;
  if (int(blockIdx.x) < link_blocks) {
    auto* const state =
        reinterpret_cast<TileState*>(memory + LinkSharedBytes<Format>(a.hidden, a.link));
    LinkTiles<Format>(a, list.link, blockIdx.x, link_blocks, memory, state);
    return;
  }
  const TileRange range(list.vram, blockIdx.x - link_blocks, gridDim.x - link_blocks);
  if (range.begin == range.end) return;
  GateUpInVram<Format, kTokenTiles, kSlices>(a, list.vram, range, memory);
}

template <class Format, int kTokenTiles>
__global__ void __launch_bounds__(kDownWarps<kTokenTiles> * 32, 1)
    DownTwoPass(const __grid_constant__ ExpertTilesArguments a) {
#if __CUDA_ARCH__ >= 900
  using Pass = DownPass<Format, kTokenTiles, kDownWarps<kTokenTiles>>;
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ typename Pass::Barriers barriers;
  const ExpertTaskSpan span = a.tasks->vram;
  const int64_t units = int64_t{span.num_tiles} * DownSlices(a.hidden, kDownWarps<kTokenTiles>);
  const int begin = int(units * blockIdx.x / gridDim.x);
  const int end = int(units * (blockIdx.x + 1) / gridDim.x);
  if (begin < end) Pass(a, span, begin, end, memory, &barriers).Run();
#endif
}

template <class Format, int kTokenTiles, int kSlices>
int GateUpBytes(int hidden, LinkAccess link) {
  const int link_bytes =
      IsBulk(link) ? LinkSharedBytes<Format>(hidden, link) + int(sizeof(TileState)) : 0;
  constexpr int kStateBytes = static_cast<int>(sizeof(StreamedGateUpState<Format, kTokenTiles>));
  const int bytes = kSlices == 0 ? ChunkBytes(hidden, kTokenTiles)
                                 : GateUpLayout<Format>(hidden).bytes() + kStateBytes;
  return std::max(bytes, link_bytes);
}

// Calls function(std::integral_constant) with the slices of a hidden size; 0 where registers do not
// hold the tokens.
template <int kTokenTiles, int kSlices = 1, class Function>
cudaError_t WithSlices(int slices, const Function& function) {
  if constexpr (4 * kSlices * kTokenTiles > kMostTokenPieces) {
    return function(std::integral_constant<int, 0>());
  } else {
    if (slices == kSlices) return function(std::integral_constant<int, kSlices>());
    return WithSlices<kTokenTiles, kSlices + 1>(slices, function);
  }
}

template <class Format, int kTokenTiles>
cudaError_t Prepare(int hidden) {
  const LinkAccess link = LinkAccessFor(Format::kKind, hidden);
  const cudaError_t error =
      WithSlices<kTokenTiles>(GateUpLayout<Format>(hidden).slices, [&](auto slices) {
        constexpr int kSlices = decltype(slices)::value;
        return cudaFuncSetAttribute(GateUpTwoPass<Format, kTokenTiles, kSlices>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    GateUpBytes<Format, kTokenTiles, kSlices>(hidden, link));
      });
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(DownTwoPass<Format, kTokenTiles>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              Down<Format, kTokenTiles>::SharedBytes());
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
  const cudaError_t error =
      WithSlices<kTokenTiles>(GateUpLayout<Format>(a.hidden).slices, [&](auto slices) {
        constexpr int kSlices = decltype(slices)::value;
        const int bytes = GateUpBytes<Format, kTokenTiles, kSlices>(a.hidden, a.link);
        GateUpTwoPass<Format, kTokenTiles, kSlices>
            <<<a.multiprocessors, kTileThreads, bytes, stream>>>(a);
        return cudaGetLastError();
      });
  if (error != cudaSuccess) return error;
  DownTwoPass<Format, kTokenTiles><<<a.multiprocessors, kDownWarps<kTokenTiles> * 32,
                                     Down<Format, kTokenTiles>::SharedBytes(), stream>>>(a);
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
  constexpr int kMostBytes = 227 << 10;
  int device = 0;
  int most = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         most >= kMostBytes && KernelsAreCompiledForHopper();
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
