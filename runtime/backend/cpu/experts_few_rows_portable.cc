#include <algorithm>

#include "runtime/backend/cpu/bf12_blocks.h"
#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/cpu/experts_neurons.h"
#include "runtime/backend/cpu/experts_portable.h"
#include "runtime/backend/cpu/weight_fetcher.h"

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
using HalfVector = hn::Vec<Halves>;

constexpr int64_t kLanes = hn::MaxLanes(Floats());
// bf16 values of a vector. Floats that meet them are kept as the values at even places, then those
// at odd ones, since that is how a vector of bf16 widens without shuffles.
constexpr int64_t kBlock = 2 * kLanes;
static_assert(kOrderedSums % kBlock == 0);
// Neurons whose down rows are added in one pass over y.
constexpr int kNeuronsAtOnce = 4;

constexpr int64_t WidenedIndex(int64_t column) {
  return column / kBlock * kBlock + column % 2 * kLanes + column % kBlock / 2;
}

struct Widened {
  FloatVector even;
  FloatVector odd;
};

HWY_INLINE Widened Widen(HalfVector values) {
  const auto both = hn::BitCast(Words(), values);
  return {hn::BitCast(Floats(), hn::ShiftLeft<16>(both)),
          hn::BitCast(Floats(), hn::And(both, hn::Set(Words(), 0xffff0000u)))};
}

// A row of either format. Load(i, offset) gives the block of values at i + offset, i a multiple of
// kStep, offset a constant after unrolling.
struct Bf16Row {
  static constexpr int64_t kStep = 32;
  static constexpr int64_t kStepBytes = 2 * kStep;
  const std::byte* values;

  HWY_INLINE Widened Load(int64_t i, int64_t offset) const {
    const auto* at = reinterpret_cast<const uint16_t*>(values) + i + offset;
    return Widen(hn::LoadU(Halves(), at));
  }
};

struct Bf12Row {
  static constexpr int64_t kStep = kBf12BlockValues;
  static constexpr int64_t kStepBytes = kBf12BlockBytes;
  const std::byte* blocks;
  uint16_t base;  // the exponent, where it stands in a bf16

  HWY_INLINE const std::byte* Block(int64_t i) const { return blocks + i / 2 * 3; }
  HWY_INLINE Widened Load(int64_t i, int64_t offset) const {
    const int64_t group = offset / 32;
    const Halves d;
    const hn::RebindToSigned<Halves> di;
    const auto* words = reinterpret_cast<const uint16_t*>(Block(i)) + offset % 32;
    HalfVector bytes = hn::LoadU(d, words + group / 2 * 32);
    if (group % 2 == 0) bytes = hn::ShiftLeft<8>(bytes);
    // The arithmetic shift leaves the sign where it is and brings the mantissa to its place.
    const HalfVector moved = hn::BitCast(d, hn::ShiftRight<8>(hn::BitCast(di, bytes)));
    const HalfVector signed_mantissa = hn::And(moved, hn::Set(d, 0x807f));
    const HalfVector code =
        hn::And(MoveNibble(group, hn::LoadU(d, words + 64)), hn::Set(d, 0x0780));
    return Widen(hn::Or(signed_mantissa, hn::Add(code, hn::Set(d, base))));
  }
  // Nibble `group` of each word to where the exponent stands in a bf16.
  static HWY_INLINE HalfVector MoveNibble(int64_t group, HalfVector words) {
    if (group == 0) return hn::ShiftLeft<7>(words);
    if (group == 1) return hn::ShiftLeft<3>(words);
    if (group == 2) return hn::ShiftRight<1>(words);
    return hn::ShiftRight<5>(words);
  }
};

HWY_INLINE Bf16Row RowAt(const Bf16Neurons& neurons, int64_t i, int part) {
  return {neurons.Row(i, part)};
}
HWY_INLINE Bf12Row RowAt(const Bf12Neurons& neurons, int64_t i, int part) {
  return {neurons.Row(i, part), neurons.Placeholder(i, part)};
}

// Two chains a sum where rows alone are too few to hide the latency.
template <int kRows>
constexpr int kChains = kRows <= 2 ? 2 : 1;

template <int kRows>
using RowSums = FloatVector[kRows][kChains<kRows>];

// sums += the products of a step of one weight row with kRows rows of x (widened).
template <class Row, int kRows, class Fetcher>
HWY_INLINE void MultiplyStep(const Row& row, int64_t i, int64_t width, const float* HWY_RESTRICT x,
                             Fetcher& fetcher, RowSums<kRows>& sums) {
  const Floats d;
  fetcher.template Fetch<Row::kStepBytes>();
#pragma GCC unroll 16
  for (int64_t offset = 0; offset < Row::kStep; offset += kBlock) {
    const Widened weights = row.Load(i, offset);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const float* at = x + r * width + i + offset;
      FloatVector& odd = sums[r][kChains<kRows> - 1];
      sums[r][0] = hn::MulAdd(weights.even, hn::Load(d, at), sums[r][0]);
      odd = hn::MulAdd(weights.odd, hn::Load(d, at + kLanes), odd);
    }
  }
}

template <int kRows>
HWY_INLINE void StoreSums(RowSums<kRows>& sums, float* target) {
  const Floats d;
  for (int r = 0; r < kRows; ++r) {
    for (int c = 1; c < kChains<kRows>; ++c) sums[r][0] = hn::Add(sums[r][0], sums[r][c]);
    target[r] = hn::GetLane(hn::SumOfLanes(d, sums[r][0]));
  }
}

// gate[r], up[r] = the products of a neuron's two rows with kRows rows of x. Step by step in turn:
// decoding both at once takes more registers than there are.
template <int kRows, class Row, class Fetcher>
HWY_INLINE void MultiplyNeuron(const Row& gate_row, const Row& up_row, int64_t width,
                               const float* HWY_RESTRICT x, Fetcher& fetcher, float* gate,
                               float* up) {
  const Floats d;
  RowSums<kRows> gate_sums;
  RowSums<kRows> up_sums;
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kChains<kRows>; ++c) gate_sums[r][c] = up_sums[r][c] = hn::Zero(d);
  }
  for (int64_t i = 0; i < width; i += Row::kStep) {
    MultiplyStep<Row, kRows, Fetcher>(gate_row, i, width, x, fetcher, gate_sums);
    MultiplyStep<Row, kRows, Fetcher>(up_row, i, width, x, fetcher, up_sums);
  }
  StoreSums<kRows>(gate_sums, gate);
  StoreSums<kRows>(up_sums, up);
}

// The same with up to four rows.
template <class Row, class Fetcher>
HWY_INLINE void MultiplyFour(const Row& gate_row, const Row& up_row, int64_t width, const float* x,
                             int rows, Fetcher& fetcher, float* gate, float* up) {
  switch (rows) {
    case 1:
      return MultiplyNeuron<1>(gate_row, up_row, width, x, fetcher, gate, up);
    case 2:
      return MultiplyNeuron<2>(gate_row, up_row, width, x, fetcher, gate, up);
    case 3:
      return MultiplyNeuron<3>(gate_row, up_row, width, x, fetcher, gate, up);
    default:
      return MultiplyNeuron<4>(gate_row, up_row, width, x, fetcher, gate, up);
  }
}

// All rows, four at a time: after the first four the neuron's weights come from the L1 cache.
template <class Row>
HWY_INLINE void MultiplyRows(const Row& gate_row, const Row& up_row, int64_t width, const float* x,
                             int rows, WeightFetcher& fetcher, float* gate, float* up) {
  MultiplyFour(gate_row, up_row, width, x, std::min(rows, 4), fetcher, gate, up);
  NothingToFetch nothing;
  for (int r = 4; r < rows; r += 4) {
    MultiplyFour(gate_row, up_row, width, x + r * width, std::min(rows - r, 4), nothing, gate + r,
                 up + r);
  }
}

// y[r] += sum over kNeurons of act[n * rows + r] * their down rows.
template <class Row, int kNeurons>
HWY_INLINE void AddDownRows(const Row* down, int64_t width, const float* HWY_RESTRICT act, int rows,
                            WeightFetcher& fetcher, float* const* y) {
  const Floats d;
  for (int64_t i = 0; i < width; i += Row::kStep) {
    fetcher.Fetch<kNeurons * Row::kStepBytes>();
#pragma GCC unroll 16
    for (int64_t offset = 0; offset < Row::kStep; offset += kBlock) {
      Widened weights[kNeurons];
#pragma GCC unroll 4
      for (int n = 0; n < kNeurons; ++n) weights[n] = down[n].Load(i, offset);
      for (int r = 0; r < rows; ++r) {
        float* HWY_RESTRICT target = y[r] + i + offset;
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
}

// y += the part of neurons [first, first + kNeurons).
template <class Neurons, int kNeurons>
HWY_INLINE void AddNeurons(const Neurons& neurons, int64_t first, const FewRows& rows) {
  using Row = decltype(RowAt(neurons, first, 0));
  WeightFetcher fetcher(neurons.Next(first, kNeurons));
  float gate[kNeuronsAtOnce * kPortableFewRows];
  float up[kNeuronsAtOnce * kPortableFewRows];
  BFloat16 rounded[kNeuronsAtOnce * kPortableFewRows];
  float act[kNeuronsAtOnce * kPortableFewRows];
  Row down[kNeurons];
  const int num = rows.num;
  const float* x = rows.scratch;
  for (int n = 0; n < kNeurons; ++n) {
    float* const sums[2] = {gate + n * num, up + n * num};
    MultiplyRows(RowAt(neurons, first + n, 0), RowAt(neurons, first + n, 1), rows.width, x, num,
                 fetcher, sums[0], sums[1]);
    neurons.ForEachEscape(first + n, [&](int part, int64_t column, float delta) {
      if (part == 2) return;
      for (int r = 0; r < num; ++r) {
        sums[part][r] += delta * x[r * rows.width + WidenedIndex(column)];
      }
    });
    down[n] = RowAt(neurons, first + n, 2);
  }
  ActivateSwiGlu(gate, up, kNeurons * num, rounded);
  for (int i = 0; i < kNeurons * num; ++i) {
    act[i] = ToFloat(rounded[i]);
    if (rows.weights != nullptr) act[i] *= rows.weights[i % num];
  }
  AddDownRows<Row, kNeurons>(down, rows.width, act, num, fetcher, rows.y);
  for (int n = 0; n < kNeurons; ++n) {
    neurons.ForEachEscape(first + n, [&](int part, int64_t column, float delta) {
      if (part != 2) return;
      for (int r = 0; r < num; ++r) {
        rows.y[r][WidenedIndex(column)] += delta * act[n * num + r];
      }
    });
  }
}

template <class Neurons>
HWY_INLINE void AddAllNeurons(const Neurons& neurons, const FewRows& rows) {
  const int64_t count = neurons.count();
  int64_t n = 0;
  for (; n + kNeuronsAtOnce <= count; n += kNeuronsAtOnce) {
    AddNeurons<Neurons, kNeuronsAtOnce>(neurons, n, rows);
  }
  for (; n < count; ++n) AddNeurons<Neurons, 1>(neurons, n, rows);
}

void ComputeFewRows(const ExpertNeurons& neurons, const FewRows& rows) {
  const Floats d;
  for (int r = 0; r < rows.num && !rows.prepared; ++r) {
    for (int64_t i = 0; i < rows.width; i += kBlock) {
      const Widened values = Widen(hn::LoadU(Halves(), rows.x[r] + i));
      hn::Store(values.even, d, rows.scratch + r * rows.width + i);
      hn::Store(values.odd, d, rows.scratch + r * rows.width + i + kLanes);
    }
  }
  if (neurons.format.kind() == ExpertFormatKind::kBF12) {
    AddAllNeurons(Bf12Neurons(neurons), rows);
  } else {
    AddAllNeurons(Bf16Neurons(neurons), rows);
  }
}

void InterleaveHalves(float* sums, int64_t count) {
  const Floats d;
  for (float* block = sums; block < sums + count; block += kBlock) {
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

HWY_EXPORT(ComputeFewRows);
HWY_EXPORT(InterleaveHalves);

void FewRowsPortable(const ExpertNeurons& neurons, const FewRows& rows) {
  HWY_DYNAMIC_DISPATCH(ComputeFewRows)(neurons, rows);
}

void OrderSumsPortable(float* sums, int64_t count) {
  HWY_DYNAMIC_DISPATCH(InterleaveHalves)(sums, count);
}

}  // namespace moed::backend
#endif
