// The first of two passes over experts in VRAM (two_pass_experts.h), with the tokens of an expert's
// joined tasks in shared memory, all columns of them or, where that is too much, some at a time. A
// warp takes tiles of eight neurons over all columns, so that gates and ups meet in one lane and no
// warp waits for another's sums; weights come straight into registers, 256 columns ahead.
#pragma once

#include <type_traits>

#include "runtime/backend/cuda/experts/expert_tile_walk.cuh"
#include "runtime/backend/cuda/experts/tile_groups.cuh"
#include "runtime/backend/cuda/experts/weight_readers.cuh"

namespace moed::backend {

// Columns of a tile that a warp has in registers.
inline constexpr int kStepColumns = 2 * kWarpColumns;
// Keeps the 16-byte loads of two tokens that are answered together in different banks.
inline constexpr int kChunkPadding = 32;
inline constexpr int kMostTokenBytes = 134 << 10;

__host__ __device__ constexpr int StepsOf(int hidden) {
  return (hidden + kStepColumns - 1) / kStepColumns;
}
// Columns of the tokens that are in shared memory at once.
__host__ __device__ constexpr int ChunkColumns(int hidden, int token_tiles) {
  const int most = kMostTokenBytes / (token_tiles * kTaskTokens * 2) - kChunkPadding;
  const int all = StepsOf(hidden) * kStepColumns;
  return all < most ? all : most / kStepColumns * kStepColumns;
}
__host__ __device__ constexpr int ChunkStride(int hidden, int token_tiles) {
  return ChunkColumns(hidden, token_tiles) + kChunkPadding;
}
__host__ __device__ constexpr int ChunkBytes(int hidden, int token_tiles) {
  return token_tiles * kTaskTokens * ChunkStride(hidden, token_tiles) * 2;
}

template <class Format, int kTokenTiles>
class ChunkedGateUp {
 public:
  __device__ ChunkedGateUp(const ExpertTilesArguments& a, std::byte* memory, GateUpState* state)
      : a_(a),
        tokens_(reinterpret_cast<__nv_bfloat16*>(memory)),
        state_(state),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32) {}

  __device__ void Run(const ExpertTaskSpan& span, const TileRange& range) {
    TaskCursor cursor(span, range.begin);
    state_->Begin(cursor, range);
    for (int tile = range.begin; tile < range.end; tile = state_->group.end) {
      state_->template Enter<kTokenTiles>(span, range, &cursor);
      RunGroup(std::integral_constant<int, 1>());
    }
  }

 private:
  // Calls Tiles with the number of tasks that are joined.
  template <int kTiles>
  __device__ void RunGroup(std::integral_constant<int, kTiles>) {
    if constexpr (kTiles < kTokenTiles) {
      if (state_->group.num_joined > kTiles) {
        return RunGroup(std::integral_constant<int, kTiles + 1>());
      }
    }
    Tiles<kTiles>();
  }

  // Columns from `first` on of kTiles * 8 tokens, absent ones as zeros.
  template <int kTiles>
  __device__ void LoadChunk(int first) {
    const int columns = ChunkColumns(a_.hidden, kTokenTiles);
    const int pieces = min(columns, StepsOf(a_.hidden) * kStepColumns - first) / 8;
    for (int token = 0; token < kTiles * kTaskTokens; ++token) {
      const int row = state_->token[token];
      const __nv_bfloat16* source = a_.x + size_t(max(row, 0)) * a_.hidden + first;
      __nv_bfloat16* target = tokens_ + token * ChunkStride(a_.hidden, kTokenTiles);
      for (int i = threadIdx.x; i < pieces; i += kTileThreads) {
        const bool inside = row >= 0 && first + i * 8 < a_.hidden;
        reinterpret_cast<uint4*>(target)[i] =
            inside ? reinterpret_cast<const uint4*>(source)[i] : make_uint4(0, 0, 0, 0);
      }
    }
    __syncthreads();
  }

  template <int kTiles>
  __device__ void Tiles() {
    const TileGroup& group = state_->group;
    const int chunk = ChunkColumns(a_.hidden, kTokenTiles);
    const bool whole = chunk >= a_.hidden;
    if (const int tile = group.begin + warp_; tile < group.end && !primed_) Prime(tile);
    if (whole) LoadChunk<kTiles>(0);
    for (int tile = group.begin + warp_; tile - warp_ < group.end; tile += kTileWarps) {
      const bool own = tile < group.end;
      const std::byte* const address = group.Address<Format>(tile, a_);
      const typename Format::Header header = header_;
      const typename Format::Bases bases = Format::BasesOf(header, lane_);
      float sums[kTiles][4] = {};
      for (int begin = 0; begin < a_.hidden; begin += chunk) {
        if (!whole) {
          __syncthreads();
          LoadChunk<kTiles>(begin);
        }
        if (!own) continue;
        const int end = min(begin + chunk, a_.hidden);
        const __nv_bfloat16* tokens =
            tokens_ + lane_ / 4 * ChunkStride(a_.hidden, kTokenTiles) + lane_ % 4 * 8;
#pragma unroll 1
        for (int column = begin; column < end; column += kStepColumns, tokens += kStepColumns) {
          if (column + kStepColumns < a_.hidden) {
            Step<kTiles>(bases, tokens, address, column + kStepColumns, sums);
          } else {
            const std::byte* const following = Following(tile);
            primed_ = following != nullptr;
            if (primed_) header_ = Format::LoadHeader(following, a_.hidden, lane_);
            Step<kTiles>(bases, tokens, following, 0, sums);
          }
        }
      }
      if (own) Finish<kTiles>(tile, header, sums);
    }
  }

  // The tile that the warp takes after `tile`; null if there is none.
  __device__ const std::byte* Following(int tile) const {
    if (tile + kTileWarps < state_->group.end) {
      return state_->group.Address<Format>(tile + kTileWarps, a_);
    }
    const int first = state_->next.begin + warp_;
    return first < state_->next.end ? state_->next.Address<Format>(first, a_) : nullptr;
  }

  // The first columns of a tile into registers.
  __device__ void Prime(int tile) {
    const std::byte* const address = state_->group.Address<Format>(tile, a_);
    header_ = Format::LoadHeader(address, a_.hidden, lane_);
    Load(address, 0, &first_);
    Load(address, kWarpColumns, &second_);
  }
  __device__ void Load(const std::byte* address, int column, typename Format::GateUp* out) {
    Format::template LoadRows<0>(address, a_.hidden, column, lane_, out);
    Format::template LoadRows<1>(address, a_.hidden, column, lane_, out);
    if constexpr (!Format::kHasEscapes) {
      Format::template LoadRows<2>(address, a_.hidden, column, lane_, out);
      Format::template LoadRows<3>(address, a_.hidden, column, lane_, out);
    }
  }

  // Multiplies what is in registers, and loads that of `source` from `next` on instead, unless it
  // is null.
  template <int kTiles>
  __device__ void Step(const typename Format::Bases& bases, const __nv_bfloat16* tokens,
                       const std::byte* source, int next, float (&sums)[kTiles][4]) {
    const int tile_stride = kTaskTokens * ChunkStride(a_.hidden, kTokenTiles);
    Format::template MultiplyGateUp<kTiles>(first_, bases, TokenPieces{tokens, tile_stride}, sums,
                                            [&](auto piece) {
                                              if (source == nullptr) return;
                                              Format::template LoadRows<decltype(piece)::value>(
                                                  source, a_.hidden, next, lane_, &first_);
                                            });
    Format::template MultiplyGateUp<kTiles>(
        second_, bases, TokenPieces{tokens + kWarpColumns, tile_stride}, sums, [&](auto piece) {
          if (source == nullptr) return;
          Format::template LoadRows<decltype(piece)::value>(source, a_.hidden, next + kWarpColumns,
                                                            lane_, &second_);
        });
  }

  // From the sums to activations in memory; what escapes change is added on the way, of the down
  // rows straight to the output.
  template <int kTiles>
  __device__ void Finish(int tile, const typename Format::Header& header,
                         float (&sums)[kTiles][4]) {
    const int local = tile - state_->group.first_tile;
    const int own = 2 * (lane_ % 4);  // the lane's first token of a task
    const auto for_each_escape = [&](const auto& function) {
      if constexpr (Format::kHasEscapes) {
        Format::ForEachEscapeOfTile(header, state_->group.blob, local * kTileNeurons, a_.hidden,
                                    a_.list_bytes, lane_, function);
      }
    };
    for_each_escape([&](int part, int column, float delta) {
      if (part == 2) return;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        const int row = state_->token[i / 2 * kTaskTokens + own + i % 2];
        if (row < 0) continue;
        const float change = delta * __bfloat162float(a_.x[size_t(row) * a_.hidden + column]);
        sums[i / 2][i % 2] += part == 0 ? change : 0.0f;
        sums[i / 2][2 + i % 2] += part == 0 ? 0.0f : change;
      }
    });
    __nv_bfloat16 activations[2 * kTiles];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int token = i / 2 * kTaskTokens + own + i % 2;
      const float product = Silu(sums[i / 2][i % 2]) * sums[i / 2][2 + i % 2];
      activations[i] = __float2bfloat16(state_->token[token] >= 0 ? product : 0.0f);
      TileActivations* const out =
          ActivationsOf(a_, state_->group.task + i / 2, state_->group.num_tiles, local);
      out->tokens[own + i % 2][lane_ / 4] = activations[i];
    }
    if constexpr (Format::kHasEscapes) {
      if (lane_ % 4 == 0) {
        ActivationsOf(a_, state_->group.task, state_->group.num_tiles, local)
            ->down_bases[lane_ / 4] = header.x >> 16 & 0xff;
      }
    }
    for_each_escape([&](int part, int column, float delta) {
      if (part != 2) return;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        const int token = i / 2 * kTaskTokens + own + i % 2;
        if (state_->token[token] < 0) continue;
        atomicAdd(a_.output + size_t(state_->target[token]) * a_.hidden + column,
                  state_->weight[token] * __bfloat162float(activations[i]) * delta);
      }
    });
  }

  const ExpertTilesArguments& a_;
  __nv_bfloat16* tokens_;
  GateUpState* state_;
  int warp_;
  int lane_;
  bool primed_ = false;  // the warp's next tile begins in registers
  typename Format::Header header_ = {};
  typename Format::GateUp first_;
  typename Format::GateUp second_;
};

}  // namespace moed::backend
