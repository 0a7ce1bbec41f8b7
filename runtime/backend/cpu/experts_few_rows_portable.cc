#include <algorithm>

#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/cpu/experts_portable.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/experts_few_rows_portable.cc"
#include "hwy/foreach_target.h"
// Highway's own headers come after foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moed::backend {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using Words = hn::RebindToUnsigned<Floats>;
using Halves = hn::Repartition<uint16_t, Floats>;
using FloatVector = hn::Vec<Floats>;

constexpr int64_t kLanes = hn::MaxLanes(Floats());
// bf16 values of a vector. Floats that meet them are kept as the values at even places, then those
// at odd ones, since that is how a vector of bf16 widens without shuffles.
constexpr int64_t kBlock = 2 * kLanes;
// bf16 values of a cache line.
constexpr int64_t kLine = 32;
// Neurons whose down rows are added in one pass over y.
constexpr int kNeuronsAtOnce = 4;

struct Widened {
  FloatVector even;
  FloatVector odd;
};

HWY_INLINE Widened Widen(const BFloat16* values) {
  const auto both = hn::BitCast(Words(), hn::LoadU(Halves(), values));
  return {hn::BitCast(Floats(), hn::ShiftLeft<16>(both)),
          hn::BitCast(Floats(), hn::And(both, hn::Set(Words(), 0xffff0000u)))};
}

// Fetches the line `ahead` values further into the L2 cache. Evenly spread over the work: a burst
// of them, or the few that the L1 cache may have in flight, reach half the memory's rate.
HWY_INLINE void PrefetchLine(const BFloat16* values, int64_t ahead) {
  __builtin_prefetch(values + ahead, /*rw=*/0, /*locality=*/2);
}

// gate[r], up[r] = the products of a neuron's two rows with kRows rows of x (widened).
template <int kRows>
HWY_INLINE void MultiplyNeuron(const BFloat16* HWY_RESTRICT gate_row,
                               const BFloat16* HWY_RESTRICT up_row, int64_t width, int64_t ahead,
                               const float* HWY_RESTRICT x, float* gate, float* up) {
  const Floats d;
  // Two chains a sum where rows alone are too few to hide the latency.
  constexpr int kChains = kRows <= 2 ? 2 : 1;
  FloatVector gate_sums[kRows][kChains];
  FloatVector up_sums[kRows][kChains];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kChains; ++c) gate_sums[r][c] = up_sums[r][c] = hn::Zero(d);
  }
  for (int64_t i = 0; i < width; i += kBlock) {
    if (i % kLine == 0) {
      PrefetchLine(gate_row + i, ahead);
      PrefetchLine(up_row + i, ahead);
    }
    const Widened g = Widen(gate_row + i);
    const Widened u = Widen(up_row + i);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto even = hn::Load(d, x + r * width + i);
      const auto odd = hn::Load(d, x + r * width + i + kLanes);
      FloatVector& gate_odd = gate_sums[r][kChains - 1];
      FloatVector& up_odd = up_sums[r][kChains - 1];
      gate_sums[r][0] = hn::MulAdd(g.even, even, gate_sums[r][0]);
      up_sums[r][0] = hn::MulAdd(u.even, even, up_sums[r][0]);
      gate_odd = hn::MulAdd(g.odd, odd, gate_odd);
      up_odd = hn::MulAdd(u.odd, odd, up_odd);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 1; c < kChains; ++c) {
      gate_sums[r][0] = hn::Add(gate_sums[r][0], gate_sums[r][c]);
      up_sums[r][0] = hn::Add(up_sums[r][0], up_sums[r][c]);
    }
    gate[r] = hn::GetLane(hn::SumOfLanes(d, gate_sums[r][0]));
    up[r] = hn::GetLane(hn::SumOfLanes(d, up_sums[r][0]));
  }
}

// All rows, four at a time: after the first four the neuron's weights come from the L1 cache.
HWY_INLINE void MultiplyRows(const BFloat16* gate_row, const BFloat16* up_row, int64_t width,
                             int64_t ahead, const float* x, int rows, float* gate, float* up) {
  for (int r = 0; r < rows; r += 4) {
    const float* first = x + r * width;
    const int64_t fetch = r == 0 ? ahead : 0;
    switch (std::min(rows - r, 4)) {
      case 1:
        MultiplyNeuron<1>(gate_row, up_row, width, fetch, first, gate + r, up + r);
        break;
      case 2:
        MultiplyNeuron<2>(gate_row, up_row, width, fetch, first, gate + r, up + r);
        break;
      case 3:
        MultiplyNeuron<3>(gate_row, up_row, width, fetch, first, gate + r, up + r);
        break;
      default:
        MultiplyNeuron<4>(gate_row, up_row, width, fetch, first, gate + r, up + r);
    }
  }
}

// y[r] += sum over kNeurons of act[n * rows + r] * their down rows.
template <int kNeurons>
HWY_INLINE void AddDownRows(const BFloat16* HWY_RESTRICT down, int64_t stride, int64_t width,
                            int64_t ahead, const float* HWY_RESTRICT act, int rows,
                            float* HWY_RESTRICT y) {
  const Floats d;
  for (int64_t i = 0; i < width; i += kBlock) {
    Widened weights[kNeurons];
#pragma GCC unroll 4
    for (int n = 0; n < kNeurons; ++n) {
      if (i % kLine == 0) PrefetchLine(down + n * stride + i, ahead);
      weights[n] = Widen(down + n * stride + i);
    }
    for (int r = 0; r < rows; ++r) {
      float* target = y + r * width + i;
      auto even = hn::Load(d, target);
      auto odd = hn::Load(d, target + kLanes);
#pragma GCC unroll 4
      for (int n = 0; n < kNeurons; ++n) {
        const auto factor = hn::Set(d, act[n * rows + r]);
        even = hn::MulAdd(factor, weights[n].even, even);
        odd = hn::MulAdd(factor, weights[n].odd, odd);
      }
      hn::Store(even, d, target);
      hn::Store(odd, d, target + kLanes);
    }
  }
}

// y += the part of neurons [first, first + kNeurons).
template <int kNeurons>
HWY_INLINE void AddNeurons(const NeuronRows& neurons, int64_t first, const float* x, int rows,
                           float* y) {
  float gate[kNeuronsAtOnce * kMaxFewRows];
  float up[kNeuronsAtOnce * kMaxFewRows];
  BFloat16 rounded[kNeuronsAtOnce * kMaxFewRows];
  float act[kNeuronsAtOnce * kMaxFewRows];
  const int64_t width = neurons.width;
  const int64_t ahead = kNeuronsAtOnce * neurons.stride;
  for (int n = 0; n < kNeurons; ++n) {
    const int64_t offset = (first + n) * neurons.stride;
    MultiplyRows(neurons.gate + offset, neurons.up + offset, width, ahead, x, rows, gate + n * rows,
                 up + n * rows);
  }
  ActivateSwiGlu(gate, up, kNeurons * rows, rounded);
  for (int i = 0; i < kNeurons * rows; ++i) act[i] = ToFloat(rounded[i]);
  AddDownRows<kNeurons>(neurons.down + first * neurons.stride, neurons.stride, width, ahead, act,
                        rows, y);
}

void FewRows(const NeuronRows& neurons, const BFloat16* const* x, int rows, float* scratch,
             float* y) {
  const Floats d;
  const int64_t width = neurons.width;
  for (int r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; i += kBlock) {
      const Widened values = Widen(x[r] + i);
      hn::Store(values.even, d, scratch + r * width + i);
      hn::Store(values.odd, d, scratch + r * width + i + kLanes);
    }
  }
  std::fill_n(y, rows * width, 0.0f);
  int64_t n = 0;
  for (; n + kNeuronsAtOnce <= neurons.count; n += kNeuronsAtOnce) {
    AddNeurons<kNeuronsAtOnce>(neurons, n, scratch, rows, y);
  }
  for (; n < neurons.count; ++n) AddNeurons<1>(neurons, n, scratch, rows, y);
  for (float* block = y; block < y + rows * width; block += kBlock) {
    const auto even = hn::Load(d, block);
    const auto odd = hn::Load(d, block + kLanes);
    hn::StoreInterleaved2(even, odd, d, block);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(FewRows);

void FewRowsPortable(const NeuronRows& neurons, const BFloat16* const* x, int rows, float* scratch,
                     float* y) {
  HWY_DYNAMIC_DISPATCH(FewRows)(neurons, x, rows, scratch, y);
}

}  // namespace moed::backend
#endif
