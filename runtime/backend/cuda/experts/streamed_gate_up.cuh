// The first of two passes over experts in VRAM (two_pass_experts.h), where registers hold the
// tokens: each of 16 warps owns 128 columns of every slice of up to 2048 and keeps its columns of
// the tokens of an expert's joined tasks. The gate and up rows of a tile come slice by slice
// through a ring of stages; what the warps summed up meets in shared memory once a tile.
#pragma once

#include "runtime/backend/cuda/experts/tile_groups.cuh"
#include "runtime/backend/cuda/experts/weight_readers.cuh"
#include "runtime/backend/cuda/primitives/stage_ring.cuh"

namespace moed::backend {

// Uint4 of tokens that a lane's registers hold, four for each slice and eight tokens.
inline constexpr int kMostTokenPieces = 16;

// How a stage lies in shared memory: neurons, each its piece of the gate row and of the up row, the
// header before the former.
template <class Format>
struct GateUpLayout {
  static constexpr int kStages = Format::kHeaderBytes > 0 ? 4 : 3;

  int slices;
  int warps;   // that have columns in a slice
  int to_up;   // bytes
  int neuron;  // bytes
  __host__ __device__ explicit GateUpLayout(int hidden) {
    const int pieces = (hidden + kWarpColumns - 1) / kWarpColumns;
    slices = (pieces + kTileWarps - 1) / kTileWarps;
    warps = (pieces + slices - 1) / slices;
    to_up = Format::kHeaderBytes + Format::ColumnBytes(columns());
    // An odd number of 64 bytes, so that two neurons lie in different banks.
    neuron = (2 * to_up + 63) / 128 * 128 + 64;
  }
  __host__ __device__ int columns() const { return warps * kWarpColumns; }
  __host__ __device__ int stage_bytes() const { return kTileNeurons * neuron; }
  __host__ __device__ int bytes() const { return kStages * stage_bytes(); }
};

// A block's sums on their way from its warps to activations, and what else of the tile is wanted
// then.
template <class Format, int kTokenTiles>
struct TileSums {
  float partial[kTileWarps][4 * kTokenTiles][32];
  uint32_t headers[kTileNeurons][8];
};

template <class Format, int kTokenTiles>
struct StreamedGateUpState {
  TileSums<Format, kTokenTiles> sums;
  GateUpState state;
  StageBarriers<GateUpLayout<Format>::kStages> barriers;
};

#if __CUDA_ARCH__ >= 900

template <class Format, int kTokenTiles, int kSlices>
class StreamedGateUp {
 public:
  using State = StreamedGateUpState<Format, kTokenTiles>;

  __device__ StreamedGateUp(const ExpertTilesArguments& a, const ExpertTaskSpan& span,
                            const TileRange& range, std::byte* memory, State* state)
      : a_(a),
        span_(span),
        range_(range),
        layout_(a.hidden),
        ring_(memory, layout_.stage_bytes(), &state->barriers, kTileWarps),
        state_(*state),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        fill_cursor_(span, range.begin) {}

  __device__ void Run() {
    state_.state.Begin(fill_cursor_, range_);
    fill_tile_ = range_.begin;
    for (int i = 0; i < kStages; ++i) Fill(/*first_round=*/true);
    TaskCursor cursor(span_, range_.begin);
    for (int tile = range_.begin; tile < range_.end;) {
      state_.state.template Enter<kTokenTiles>(span_, range_, &cursor);
      LoadTokens();
      for (; tile < state_.state.group.end; ++tile) Tile(tile);
    }
  }

 private:
  static constexpr int kStages = GateUpLayout<Format>::kStages;
  using Place = typename StageRing<kStages>::Place;

  // By the first warp: the next slice's copies.
  __device__ void Fill(bool first_round) {
    if (warp_ > 0 || fill_tile_ >= range_.end) return;
    ring_.WaitToFill(fill_place_, first_round);
    fill_cursor_.MoveTo(fill_tile_);
    const int first = fill_slice_ * layout_.columns();
    const int bytes =
        Format::ColumnBytes(min(layout_.columns(), Format::RowValues(a_.hidden) - first));
    const int header = fill_slice_ == 0 ? Format::kHeaderBytes : 0;
    const uint32_t filled = ring_.Filled(fill_place_);
    if (lane_ == 0) ExpectBytes(filled, kTileNeurons * (2 * bytes + header));
    __syncwarp();
    if (lane_ < 2 * kTileNeurons) {
      const int neuron = lane_ % kTileNeurons;
      const int part = lane_ / kTileNeurons;
      const int before = part == 0 ? header : 0;
      const std::byte* const source = fill_cursor_.template TileAddress<Format>(fill_tile_, a_) +
                                      neuron * Format::NeuronBytes(a_.hidden) +
                                      Format::RowOffset(part, a_.hidden) +
                                      Format::ColumnBytes(first) - before;
      std::byte* const target = ring_.Stage(fill_place_) + neuron * layout_.neuron +
                                part * layout_.to_up + Format::kHeaderBytes - before;
      CopyBulk(SharedAddress(target), source, bytes + before, filled);
    }
    fill_place_.Next();
    if (++fill_slice_ < kSlices) return;
    fill_slice_ = 0;
    ++fill_tile_;
  }

  __device__ int ColumnOf(int slice) const {
    return slice * layout_.columns() + warp_ * kWarpColumns;
  }

  __device__ void LoadTokens() {
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      const int row = state_.state.token[n * kTaskTokens + lane_ / 4];
      const __nv_bfloat16* const token = a_.x + size_t(max(row, 0)) * a_.hidden;
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int column = ColumnOf(slice) + c * 32 + lane_ % 4 * 8;
          const bool inside = row >= 0 && warp_ < layout_.warps && column < a_.hidden;
          tokens_[slice][n][c] =
              inside ? *reinterpret_cast<const uint4*>(token + column) : make_uint4(0, 0, 0, 0);
        }
      }
    }
  }

  __device__ void Tile(int tile) {
    float sums[kTokenTiles][4] = {};
    typename Format::Header header = {};
    typename Format::Bases bases = {};
    uint32_t own_header = 0;
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      ring_.WaitForFill(place_);
      const std::byte* const stage = ring_.Stage(place_);
      if constexpr (Format::kHasEscapes) {
        if (slice == 0) {
          header.x = *reinterpret_cast<const uint32_t*>(stage + lane_ / 4 * layout_.neuron);
          bases = Format::BasesOf(header, lane_);
          const int i = threadIdx.x % (8 * kTileNeurons);
          own_header = reinterpret_cast<const uint32_t*>(stage + i / 8 * layout_.neuron)[i % 8];
        }
      }
      typename Format::GateUp weights;
      const int columns = warp_ < layout_.warps ? a_.hidden - ColumnOf(slice) : 0;
      Format::ReadGateUp(stage + lane_ / 4 * layout_.neuron + Format::kHeaderBytes +
                             Format::ColumnBytes(warp_ * kWarpColumns),
                         layout_.to_up, columns, lane_, &weights);
      Format::template MultiplyGateUp<kTokenTiles>(
          weights, bases, [&](int n, int piece) { return tokens_[slice][n][piece]; }, sums,
          NothingToLoad());
      ring_.Leave(place_);
      Fill(/*first_round=*/false);
      place_.Next();
    }
    __syncthreads();  // the last tile's sums are no longer wanted
#pragma unroll
    for (int i = 0; i < 4 * kTokenTiles; ++i) {
      state_.sums.partial[warp_][i][lane_ ^ Swizzle(warp_)] = sums[i / 4][i % 4];
    }
    if (Format::kHasEscapes && threadIdx.x < 8 * kTileNeurons) {
      state_.sums.headers[threadIdx.x / 8][threadIdx.x % 8] = own_header;
    }
    __syncthreads();
    Finish(tile - state_.state.group.first_tile);
  }

  // Lanes that add up the warps' sums for a neuron and token, neighbours, and how many each.
  static constexpr int kShares = kTileThreads / (kTokenTiles * kTaskTokens * kTileNeurons);
  static constexpr int kEach = kTileWarps / kShares;
  // Lets lanes that read different warps' sums read different banks.
  __device__ static int Swizzle(int warp) { return warp / kEach * (32 / kShares); }

  // From the sums to activations in memory; what escapes change is added on the way, of the down
  // rows straight to the output. `tile`: of the expert.
  __device__ void Finish(int tile) {
    const int share = threadIdx.x % kShares;
    const int pair = threadIdx.x / kShares;
    const int n = pair / (kTaskTokens * kTileNeurons);
    const int r = pair / 32 % 2;
    const int source = pair % 32;
    const int of_task = 2 * (source % 4) + r;
    const int token = n * kTaskTokens + of_task;
    const int neuron = source / 4;
    const GateUpState& group = state_.state;
    float gate = 0.0f;
    float up = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int warp = share * kEach + i;
      const auto& partial = state_.sums.partial[warp];
      gate += partial[4 * n + r][source ^ Swizzle(warp)];
      up += partial[4 * n + 2 + r][source ^ Swizzle(warp)];
    }
    const int row = group.token[token];
    const auto for_each_escape = [&](const auto& function) {
      if constexpr (Format::kHasEscapes) {
        if (row < 0) return;
        Format::ForEachShareOfEscapes(
            *reinterpret_cast<const Bf12Header*>(state_.sums.headers[neuron]), group.group.blob,
            tile * kTileNeurons + neuron, a_.hidden, a_.list_bytes, share, kShares, function);
      }
    };
    for_each_escape([&](int part, int column, float delta) {
      if (part == 2) return;
      const float change = delta * __bfloat162float(a_.x[size_t(row) * a_.hidden + column]);
      (part == 0 ? gate : up) += change;
    });
#pragma unroll
    for (int offset = kShares / 2; offset > 0; offset /= 2) {
      gate += __shfl_xor_sync(0xffffffffu, gate, offset);
      up += __shfl_xor_sync(0xffffffffu, up, offset);
    }
    const __nv_bfloat16 activation = __float2bfloat16(row >= 0 ? Silu(gate) * up : 0.0f);
    for_each_escape([&](int part, int column, float delta) {
      if (part != 2) return;
      atomicAdd(a_.output + size_t(group.target[token]) * a_.hidden + column,
                group.weight[token] * __bfloat162float(activation) * delta);
    });
    if (share != 0 || n >= group.group.num_joined) return;
    TileActivations* const out =
        ActivationsOf(a_, group.group.task + n, group.group.num_tiles, tile);
    out->tokens[of_task][neuron] = activation;
    if (Format::kHasEscapes && token == 0) {
      out->down_bases[neuron] = state_.sums.headers[neuron][0] >> 16 & 0xff;
    }
  }

  const ExpertTilesArguments& a_;
  const ExpertTaskSpan& span_;
  TileRange range_;
  GateUpLayout<Format> layout_;
  StageRing<kStages> ring_;
  State& state_;
  int warp_;
  int lane_;
  Place place_;
  TaskCursor fill_cursor_;
  Place fill_place_;
  int fill_tile_ = 0;
  int fill_slice_ = 0;
  uint4 tokens_[kSlices][kTokenTiles][4];
};

#endif

}  // namespace moed::backend
