#include "runtime/backend/cuda/bf12_experts.cuh"
#include "runtime/backend/cuda/unpack_experts.h"

namespace moed::backend {
namespace {

constexpr int kThreads = 256;
// A piece: eight values, 16 bytes of bf16.
constexpr int kPieceValues = 8;
constexpr int kPiecesPerBlock = kBf12PairBlockValues / kPieceValues;

// Piece `piece` of a block in shared memory.
__device__ uint4 UnpackPiece(const std::byte* block, int piece, uint32_t base) {
  const int group = piece / 4;  // of 32 values
  const std::byte* at = block + piece % 4 * 16;
  const uint4 bytes = *reinterpret_cast<const uint4*>(at + group / 2 * kBf12PlaneBytes);
  const uint4 nibbles = *reinterpret_cast<const uint4*>(at + 2 * kBf12PlaneBytes);
  const auto* b = reinterpret_cast<const uint32_t*>(&bytes);
  const auto* n = reinterpret_cast<const uint32_t*>(&nibbles);
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // Groups 2 and 3 have their nibbles where 0 and 1 have theirs once these are moved.
    const uint32_t codes = n[i] >> group / 2 * 8;
    pairs[i] = group % 2 == 0 ? DecodeBf12Pair<0>(b[i], codes, base)
                              : DecodeBf12Pair<1>(b[i], codes, base);
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

__device__ void PatchEscape(const Bf12Escape& escape, int row, int target_row, uint16_t* target) {
  const int part = escape.position / row;
  target[part * target_row + escape.position - part * row] = escape.bits;
}

// Grid: (neurons, experts). A neuron passes through shared memory, so that the device reads and
// writes whole lines.
__global__ void __launch_bounds__(kThreads) UnpackExperts(UnpackExpertsArguments a) {
  extern __shared__ __align__(16) std::byte packed[];
  const int neuron = blockIdx.x;
  const int tile = neuron / kTileNeurons;
  const std::byte* blob = a.blobs[blockIdx.y];
  const int neuron_bytes = static_cast<int>(Bf12Experts::NeuronBytes(a.hidden));
  const std::byte* source = blob + Bf12Experts::TileOffset(tile, a.hidden, a.list_bytes) +
                            size_t(neuron % kTileNeurons) * neuron_bytes;
  for (int i = threadIdx.x * 16; i < neuron_bytes; i += kThreads * 16) {
    *reinterpret_cast<uint4*>(packed + i) = *reinterpret_cast<const uint4*>(source + i);
  }
  __syncthreads();
  auto* target = reinterpret_cast<uint16_t*>(a.target + blockIdx.y * a.target_bytes) +
                 size_t{3} * neuron * a.target_row_values;
  const auto& header = *reinterpret_cast<const Bf12Header*>(packed);
  const int row = Bf12Experts::RowValues(a.hidden);
  const int target_pieces = a.target_row_values / kPieceValues;
  for (int part = 0; part < 3; ++part) {
    const std::byte* blocks = packed + sizeof(Bf12Header) + part * Bf12Experts::RowBytes(a.hidden);
    const uint32_t base = Bf12BasePair(header.bases[part]);
    auto* pieces = reinterpret_cast<uint4*>(target + part * a.target_row_values);
    for (int i = threadIdx.x; i < target_pieces; i += kThreads) {
      pieces[i] = UnpackPiece(blocks + i / kPiecesPerBlock * kBf12PairBlockBytes,
                              i % kPiecesPerBlock, base);
    }
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
  const size_t shared_bytes = Bf12Experts::NeuronBytes(arguments.hidden);
  UnpackExperts<<<dim3(arguments.intermediate, arguments.num_experts), kThreads, shared_bytes,
                  stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace moed::backend
