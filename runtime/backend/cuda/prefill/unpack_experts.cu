#include <algorithm>

#include "runtime/backend/cuda/experts/bf12_experts.cuh"
#include "runtime/backend/cuda/prefill/unpack_experts.h"

namespace moed::backend {
namespace {

constexpr int kMostThreads = 256;
// A thread takes 16 bytes of each plane of a block, eight values of each of its four groups.
constexpr int kBlockWords = 4;
constexpr int kWordValues = 8;
constexpr int kGroupPieces = 4;  // 16 bytes of bf16 each
constexpr int kBlockPieces = kBf12PairBlockValues / kWordValues;

struct Planes {
  uint4 low;   // of groups 0 and 1
  uint4 high;  // of groups 2 and 3
  uint4 nibbles;
};

template <int kGroup>
__device__ uint4 UnpackPiece(const Planes& planes, uint32_t base) {
  const uint4& bytes = kGroup < 2 ? planes.low : planes.high;
  const uint4& nibbles = planes.nibbles;
  return make_uint4(DecodeBf12Pair<kGroup>(bytes.x, nibbles.x, base),
                    DecodeBf12Pair<kGroup>(bytes.y, nibbles.y, base),
                    DecodeBf12Pair<kGroup>(bytes.z, nibbles.z, base),
                    DecodeBf12Pair<kGroup>(bytes.w, nibbles.w, base));
}

template <int kGroup>
__device__ void StorePieces(const Planes& planes, uint32_t base, int first, int end,
                            uint4* pieces) {
  if constexpr (kGroup < 4) {
    const int piece = first + kGroup * kGroupPieces;
    if (piece < end) pieces[piece] = UnpackPiece<kGroup>(planes, base);
    StorePieces<kGroup + 1>(planes, base, first, end, pieces);
  }
}

__device__ void PatchEscape(const Bf12Escape& escape, int row, int target_row, uint16_t* target) {
  const int part = escape.position / row;
  target[part * target_row + escape.position - part * row] = escape.bits;
}

__host__ __device__ int WordsOfNeuron(int hidden) {
  return 3 * (Bf12Experts::RowValues(hidden) / kBf12PairBlockValues) * kBlockWords;
}

// Grid: (neurons, experts).
__global__ void __launch_bounds__(kMostThreads) UnpackExperts(UnpackExpertsArguments a) {
  const int neuron = blockIdx.x;
  const int tile = neuron / kTileNeurons;
  const std::byte* blob = a.blobs[blockIdx.y];
  const int neuron_bytes = static_cast<int>(Bf12Experts::NeuronBytes(a.hidden));
  const std::byte* source = blob + Bf12Experts::TileOffset(tile, a.hidden, a.list_bytes) +
                            size_t(neuron % kTileNeurons) * neuron_bytes;
  auto* target = reinterpret_cast<uint16_t*>(a.target + blockIdx.y * a.target_bytes) +
                 size_t{3} * neuron * a.target_row_values;
  const auto& header = *reinterpret_cast<const Bf12Header*>(source);
  const int row = Bf12Experts::RowValues(a.hidden);
  const int words = WordsOfNeuron(a.hidden);
  const int target_pieces = a.target_row_values / kWordValues;
  for (int i = threadIdx.x; i < words; i += blockDim.x) {
    const int part = i / (words / 3);
    const int block = i % (words / 3) / kBlockWords;
    const std::byte* at = source + sizeof(Bf12Header) + part * Bf12Experts::RowBytes(a.hidden) +
                          block * kBf12PairBlockBytes + i % kBlockWords * 16;
    const Planes planes = {LoadStreaming(at), LoadStreaming(at + kBf12PlaneBytes),
                           LoadStreaming(at + 2 * kBf12PlaneBytes)};
    StorePieces<0>(planes, Bf12BasePair(header.bases[part]), block * kBlockPieces + i % kBlockWords,
                   target_pieces, reinterpret_cast<uint4*>(target + part * a.target_row_values));
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
  for (int i = 1 + threadIdx.x; i <= list[0].neuron; i += blockDim.x) {
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
  const int words = (WordsOfNeuron(arguments.hidden) + 31) / 32 * 32;
  UnpackExperts<<<dim3(arguments.intermediate, arguments.num_experts),
                  std::min(words, kMostThreads), 0, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace moed::backend
