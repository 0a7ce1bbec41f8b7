// What the escapes of a tile's weights change, added while its sums become activations: by the
// eight lanes of Activate for a neuron and token, each taking one of those in the neuron's header.
// That keeps it short, which counts: all warps wait for it. Rare neurons have more, in a list.
#pragma once

#include "runtime/backend/bf12.h"
#include "runtime/backend/cuda/experts/bf12_escapes.cuh"
#include "runtime/backend/cuda/experts/expert_tile_walk.cuh"

namespace moed::backend {

class TileEscapes {
 public:
  // `tokens`: the task's, in shared memory, as the headers in `state` are.
  __device__ TileEscapes(const ExpertTilesArguments& a, TileState* state,
                         const __nv_bfloat16* tokens, NeuronGroup<kTileNeurons> group)
      : a_(a), state_(state), tokens_(tokens), group_(group) {}

  // `share`: the lane, of eight; all of a warp have the same neuron.
  __device__ void AddToSums(int token, int neuron, int share, float& gate, float& up) {
    token_ = token;
    neuron_ = neuron;
    share_ = share;
    const uint32_t* const header = state_->headers[group_.buffer][neuron];
    bases_ = header[0];
    if (count() == 0) return;
    const uint32_t word = header[(share + 1) % kShares];
    const bool own = share < min(count(), kBf12HeaderEscapes);
    // What is not an escape is one of no change in column 0.
    const Place place = PlaceOf(own ? word & 0xffff : 0);
    const float delta = own ? Bf12Delta(word >> 16, BaseOf(place.part)) : 0.0f;
    Add(place, delta, gate, up);
    column_ = place.column;
    down_ = place.part == 2 ? delta : 0.0f;
    if (count() <= kBf12HeaderEscapes) return;
    ForEachListed([&](const Place& at, float change) { Add(at, change, gate, up); });
  }

  // Straight to the output: what those of the down row change. And its base to where all see it.
  __device__ void AddToOutput(float activation) {
    if (share_ == 0 && token_ == 0) {
      state_->down_bases[group_.buffer][neuron_] = static_cast<uint8_t>(BaseOf(2));
    }
    if (count() == 0 || token_ >= state_->task.num_tokens) return;
    if (down_ != 0.0f) AddToColumn(column_, activation * down_);
    if (count() <= kBf12HeaderEscapes) return;
    ForEachListed([&](const Place& at, float delta) {
      if (at.part == 2) AddToColumn(at.column, activation * delta);
    });
  }

 private:
  static constexpr int kShares = kTileThreads / (kTaskTokens * kTileNeurons);
  static_assert(kShares > kBf12HeaderEscapes);
  struct Place {
    int part;
    int column;
  };

  __device__ int count() const { return static_cast<int>(bases_ >> 24); }
  __device__ uint32_t BaseOf(int part) const { return bases_ >> 8 * part & 0xff; }
  __device__ Place PlaceOf(uint32_t position) const {
    const int row = Bf12Layout::RowValues(a_.hidden);
    const int part = int(position) < row ? 0 : int(position) < 2 * row ? 1 : 2;
    return {part, int(position) - part * row};
  }

  // function(place, delta) for the lane's share of the list.
  template <class Function>
  __device__ void ForEachListed(const Function& function) const {
    Bf12Escapes::ForEachShareOfListed(state_->task.blob, group_.first_neuron + neuron_, a_.hidden,
                                      a_.list_bytes, share_, kShares,
                                      [&](const Bf12Escape& escape) {
                                        const Place place = PlaceOf(escape.position);
                                        function(place, Bf12Delta(escape.bits, BaseOf(place.part)));
                                      });
  }

  __device__ void Add(const Place& place, float delta, float& gate, float& up) const {
    const float change =
        delta * __bfloat162float(tokens_[token_ * TokenStride(a_.hidden) + place.column]);
    gate += place.part == 0 ? change : 0.0f;
    up += place.part == 1 ? change : 0.0f;
  }
  __device__ void AddToColumn(int column, float change) const {
    atomicAdd(a_.output + size_t(state_->task.target[token_]) * a_.hidden + column,
              state_->task.weight[token_] * change);
  }

  const ExpertTilesArguments& a_;
  TileState* state_;
  const __nv_bfloat16* tokens_;
  NeuronGroup<kTileNeurons> group_;
  int token_;
  int neuron_;
  int share_;
  uint32_t bases_;  // and the count, as the header begins
  int column_;      // of the lane's escape, and what it changes of the down row
  float down_;
};

}  // namespace moed::backend
