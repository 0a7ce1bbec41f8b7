#include "runtime/backend/cuda/bf12_experts.cuh"
#include "runtime/backend/cuda/unpack_experts.h"

namespace moed::backend {
namespace {

constexpr int kThreads = 128;
// A piece: the 32 values of a block that 16 bytes of each plane hold.
constexpr int kPiecesPerBlock = 4;

// Four times eight values of a piece, 32 values apart.
__device__ void UnpackPiece(const std::byte* block, int piece, uint32_t base, int columns_left,
                            uint16_t* target) {
  const std::byte* at = block + piece * 16;
  const uint4 low = LoadStreaming(at);
  const uint4 high = LoadStreaming(at + kBf12PlaneBytes);
  const uint4 nibbles = LoadStreaming(at + 2 * kBf12PlaneBytes);
  const auto* l = reinterpret_cast<const uint32_t*>(&low);
  const auto* h = reinterpret_cast<const uint32_t*>(&high);
  const auto* n = reinterpret_cast<const uint32_t*>(&nibbles);
  uint32_t pairs[4][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[0][i] = DecodeBf12Pair<0>(l[i], n[i], base);
    pairs[1][i] = DecodeBf12Pair<1>(l[i], n[i], base);
    pairs[2][i] = DecodeBf12Pair<2>(h[i], n[i], base);
    pairs[3][i] = DecodeBf12Pair<3>(h[i], n[i], base);
  }
#pragma unroll
  for (int group = 0; group < 4; ++group) {
    const int column = 32 * group + 8 * piece;
    if (column >= columns_left) continue;
    *reinterpret_cast<uint4*>(target + column) =
        make_uint4(pairs[group][0], pairs[group][1], pairs[group][2], pairs[group][3]);
  }
}

__device__ void PatchEscape(const Bf12Escape& escape, int row, int target_row, uint16_t* target) {
  const int part = escape.position / row;
  target[part * target_row + escape.position - part * row] = escape.bits;
}

// Grid: (neurons, experts).
__global__ void __launch_bounds__(kThreads) UnpackExperts(UnpackExpertsArguments a) {
  const int neuron = blockIdx.x;
  const int tile = neuron / kTileNeurons;
  const std::byte* blob = a.blobs[blockIdx.y];
  const std::byte* source = blob + Bf12Experts::TileOffset(tile, a.hidden, a.list_bytes) +
                            neuron % kTileNeurons * Bf12Experts::NeuronBytes(a.hidden);
  auto* target = reinterpret_cast<uint16_t*>(a.target + blockIdx.y * a.target_bytes) +
                 size_t{3} * neuron * a.target_row_values;
  const auto& header = *reinterpret_cast<const Bf12Header*>(source);
  const int row = Bf12Experts::RowValues(a.hidden);
  const int pieces = row / kBf12PairBlockValues * kPiecesPerBlock;
  for (int i = threadIdx.x; i < 3 * pieces; i += kThreads) {
    const int part = i / pieces;
    const int block = i % pieces / kPiecesPerBlock;
    const int column = block * kBf12PairBlockValues;
    const std::byte* at = source + sizeof(Bf12Header) + part * Bf12Experts::RowBytes(a.hidden) +
                          block * kBf12PairBlockBytes;
    UnpackPiece(at, i % kPiecesPerBlock, Bf12BasePair(header.bases[part]),
                a.target_row_values - column, target + part * a.target_row_values + column);
  }
  __syncthreads();
  const int count = header.num_escapes;
  if (threadIdx.x < min(count, kBf12HeaderEscapes)) {
    PatchEscape(header.escapes[threadIdx.x], row, a.target_row_values, target);
  }
  if (count <= kBf12HeaderEscapes) return;
  const int next = neuron / kBf12TileNeurons + 1;
  const size_t list_end =
      Bf12Experts::TileOffset(next * Bf12Experts::kListTiles, a.hidden, a.list_bytes);
  const auto* list = reinterpret_cast<const Bf12TileEscape*>(blob + list_end - a.list_bytes);
  for (int i = 1 + threadIdx.x; i <= list[0].neuron; i += kThreads) {
    if (list[i].neuron != neuron % kBf12TileNeurons) continue;
    PatchEscape(list[i].escape, row, a.target_row_values, target);
  }
}

}  // namespace

UnpackExpertsArguments UnpackArguments(const ExpertFormat& format, const ExpertFormat& target) {
  UnpackExpertsArguments arguments;
  arguments.target_bytes = target.blob_bytes();
  arguments.hidden = static_cast<int>(format.hidden());
  arguments.intermediate = static_cast<int>(format.intermediate());
  arguments.target_row_values = static_cast<int>(target.row_values());
  arguments.list_bytes = static_cast<int>(format.tile_list_bytes());
  return arguments;
}

cudaError_t LaunchUnpackExperts(const UnpackExpertsArguments& arguments, cudaStream_t stream) {
  UnpackExperts<<<dim3(arguments.intermediate, arguments.num_experts), kThreads, 0, stream>>>(
      arguments);
  return cudaGetLastError();
}

}  // namespace moed::backend
