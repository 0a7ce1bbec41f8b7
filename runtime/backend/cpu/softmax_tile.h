// One step of an online softmax (Milakov and Gimelshein 2018, as FlashAttention uses it): scores of
// some rows against a tile of keys become weights, while each row keeps its running maximum and sum
// and what it has accumulated under the old maximum is scaled down to the new one. Any thread.
#pragma once

#include <cstdint>

namespace moed::backend {

// Keys of a tile.
constexpr int64_t kTileKeys = 64;

// Keys of a tile that a row may see: [begin, end) within the tile.
struct VisibleKeys {
  int64_t begin = 0;
  int64_t end = 0;
};

// What a row has gathered so far: weights are relative to exp(maximum).
struct RunningSoftmax {
  float maximum = 0;  // -infinity before the first key
  float sum = 0;      // of weights
};

// scores: kTileKeys floats of one row. weights: key j's weight goes to weights[j * weights_stride],
// zero for invisible keys. accumulated: `width` floats, a multiple of 16.
void SoftmaxTileRow(const float* scores, VisibleKeys visible, RunningSoftmax* running,
                    float* weights, int64_t weights_stride, float* accumulated, int64_t width);

}  // namespace moed::backend
