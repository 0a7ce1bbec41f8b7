#include "runtime/backend/cpu/experts_avx512.h"

#if defined(__x86_64__)

#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/cpu/experts_rows_avx512.h"
#include "runtime/backend/cpu/weight_fetcher.h"

// GCC 12's headers make undefined vectors by reading them, and warn where they are inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace moed::backend {
namespace {

// Neurons whose down rows are added in one pass over y.
constexpr int kNeuronsAtOnce = 4;

MOED_AVX512_BF16 __m512bh AsBf16(__m512i values) { return reinterpret_cast<__m512bh>(values); }

// Chains that a row's sums are divided into, groups of columns in turn: few rows alone would wait
// for the instruction's result, which takes five times as long as the next one's begin.
constexpr int ChainsOf(int rows) { return rows == 1 ? 4 : rows <= 4 ? 2 : 1; }

// gate[r], up[r] = the products of a neuron's two rows with kRows rows of x.
template <int kRows, class Row>
MOED_AVX512_BF16 void MultiplyNeuron(const Row& gate_row, const Row& up_row, const FewRows& rows,
                                     WeightFetcher* fetcher, float* gate, float* up) {
  constexpr int kChains = ChainsOf(kRows);
  __m512 gate_sums[kChains][kRows];
  __m512 up_sums[kChains][kRows];
  for (int c = 0; c < kChains; ++c) {
    for (int r = 0; r < kRows; ++r) gate_sums[c][r] = up_sums[c][r] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < rows.width; i += kSpan) {
    const int groups = GroupsAt(i, rows.width);
    const typename Row::Span gate_span = gate_row.Load(i);
    const typename Row::Span up_span = up_row.Load(i);
#pragma GCC unroll 4
    for (int group = 0; group < kSpanGroups; ++group) {
      if (group >= groups) break;
      if (group % 2 == 0) fetcher->Fetch<Row::kSpanBytes>();
      const __m512bh g = AsBf16(gate_row.Decode(gate_span, group));
      const __m512bh u = AsBf16(up_row.Decode(up_span, group));
      const int c = group % kChains;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512bh x = AsBf16(_mm512_loadu_si512(rows.x[r] + i + group * kBlock));
        gate_sums[c][r] = _mm512_dpbf16_ps(gate_sums[c][r], g, x);
        up_sums[c][r] = _mm512_dpbf16_ps(up_sums[c][r], u, x);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 1; c < kChains; ++c) {
      gate_sums[0][r] = _mm512_add_ps(gate_sums[0][r], gate_sums[c][r]);
      up_sums[0][r] = _mm512_add_ps(up_sums[0][r], up_sums[c][r]);
    }
    gate[r] = gate_row.Scale() * _mm512_reduce_add_ps(gate_sums[0][r]);
    up[r] = up_row.Scale() * _mm512_reduce_add_ps(up_sums[0][r]);
  }
}

// y[r] += sum over kNeurons of act[n * kRows + r] * their down rows, unscaled. Within 32 values y
// holds those at even places, then those at odd ones: so a vector of bf16 widens without shuffles.
template <int kNeurons, int kRows, class Row>
MOED_AVX512_BF16 void AddDownRows(const Row* down, const float* act, const FewRows& rows,
                                  WeightFetcher* fetcher) {
  const __m512i upper_half = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t i = 0; i < rows.width; i += kSpan) {
    const int groups = GroupsAt(i, rows.width);
    typename Row::Span spans[kNeurons];
    for (int n = 0; n < kNeurons; ++n) spans[n] = down[n].Load(i);
#pragma GCC unroll 4
    for (int group = 0; group < kSpanGroups; ++group) {
      if (group >= groups) break;
      fetcher->Fetch<kNeurons * Row::kSpanBytes / kSpanGroups>();
      __m512 even[kNeurons];
      __m512 odd[kNeurons];
#pragma GCC unroll 4
      for (int n = 0; n < kNeurons; ++n) {
        const __m512i both = down[n].Decode(spans[n], group);
        even[n] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        odd[n] = _mm512_castsi512_ps(_mm512_and_si512(both, upper_half));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        float* target = rows.y[r] + i + group * kBlock;
        __m512 even_sum = _mm512_loadu_ps(target);
        __m512 odd_sum = _mm512_loadu_ps(target + 16);
#pragma GCC unroll 4
        for (int n = 0; n < kNeurons; ++n) {
          const __m512 factor = _mm512_set1_ps(act[n * kRows + r]);
          even_sum = _mm512_fmadd_ps(factor, even[n], even_sum);
          odd_sum = _mm512_fmadd_ps(factor, odd[n], odd_sum);
        }
        _mm512_storeu_ps(target, even_sum);
        _mm512_storeu_ps(target + 16, odd_sum);
      }
    }
  }
}

// y += the part of neurons [first, first + kNeurons).
template <int kNeurons, int kRows, class Neurons>
MOED_AVX512_BF16 void AddNeurons(const Neurons& neurons, int64_t first, const FewRows& rows) {
  WeightFetcher fetcher(neurons.Next(first, kNeurons));
  float gate[kNeurons * kRows];
  float up[kNeurons * kRows];
  BFloat16 rounded[kNeurons * kRows];
  float act[kNeurons * kRows];
  decltype(RowAt(neurons, first, 0)) down[kNeurons];
  for (int n = 0; n < kNeurons; ++n) {
    float* const sums[2] = {gate + n * kRows, up + n * kRows};
    MultiplyNeuron<kRows>(RowAt(neurons, first + n, 0), RowAt(neurons, first + n, 1), rows,
                          &fetcher, sums[0], sums[1]);
    neurons.ForEachEscape(first + n, [&](int part, int64_t column, float delta) {
      if (part == 2) return;
      for (int r = 0; r < kRows; ++r) sums[part][r] += delta * ToFloat(rows.x[r][column]);
    });
    down[n] = RowAt(neurons, first + n, 2);
  }
  ActivateSwiGlu(gate, up, kNeurons * kRows, rounded);
  for (int i = 0; i < kNeurons * kRows; ++i) {
    act[i] = ToFloat(rounded[i]);
    if (rows.weights != nullptr) act[i] *= rows.weights[i % kRows];
  }
  float factors[kNeurons * kRows];
  for (int i = 0; i < kNeurons * kRows; ++i) factors[i] = act[i] * down[i / kRows].Scale();
  AddDownRows<kNeurons, kRows>(down, factors, rows, &fetcher);
  for (int n = 0; n < kNeurons; ++n) {
    neurons.ForEachEscape(first + n, [&](int part, int64_t column, float delta) {
      if (part != 2) return;
      for (int r = 0; r < kRows; ++r) rows.y[r][SumIndex(column)] += delta * act[n * kRows + r];
    });
  }
}

template <int kNeurons, int kRows>
MOED_AVX512_BF16 void AddAnyNeurons(const Bf16Neurons& neurons, int64_t first,
                                    const FewRows& rows) {
  AddNeurons<kNeurons, kRows>(neurons, first, rows);
}
template <int kNeurons, int kRows>
MOED_AVX512_BF16 void AddAnyNeurons(const Bf12Neurons& neurons, int64_t first,
                                    const FewRows& rows) {
  if (neurons.BasesWithin(first, kNeurons, ScaledBf12Row::kLeastBase, ScaledBf12Row::kMostBase)) {
    AddNeurons<kNeurons, kRows>(ScaledNeurons{neurons}, first, rows);
  } else {
    AddNeurons<kNeurons, kRows>(neurons, first, rows);
  }
}

template <int kRows, class Neurons>
MOED_AVX512_BF16_ENTRY void AddAllNeurons(const Neurons& neurons, const FewRows& rows) {
  int64_t n = 0;
  for (; n + kNeuronsAtOnce <= neurons.count(); n += kNeuronsAtOnce) {
    AddAnyNeurons<kNeuronsAtOnce, kRows>(neurons, n, rows);
  }
  for (; n < neurons.count(); ++n) AddAnyNeurons<1, kRows>(neurons, n, rows);
}

template <class Neurons>
void ComputeFewRows(const Neurons& neurons, const FewRows& rows) {
  using Function = void (*)(const Neurons&, const FewRows&);
  static constexpr Function kFunctions[kAvx512FewRows] = {
      AddAllNeurons<1, Neurons>, AddAllNeurons<2, Neurons>, AddAllNeurons<3, Neurons>,
      AddAllNeurons<4, Neurons>, AddAllNeurons<5, Neurons>, AddAllNeurons<6, Neurons>,
      AddAllNeurons<7, Neurons>, AddAllNeurons<8, Neurons>};
  kFunctions[rows.num - 1](neurons, rows);
}

// From even and odd places to the order of the columns, 32 values at a time.
MOED_AVX512_BF16_ENTRY void InterleaveHalves(float* sums, int64_t count) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (float* block = sums; block < sums + count; block += kBlock) {
    const __m512 even = _mm512_loadu_ps(block);
    const __m512 odd = _mm512_loadu_ps(block + 16);
    _mm512_storeu_ps(block, _mm512_permutex2var_ps(even, low, odd));
    _mm512_storeu_ps(block + 16, _mm512_permutex2var_ps(even, high, odd));
  }
}

}  // namespace

void OrderSumsAvx512(float* sums, int64_t count) { InterleaveHalves(sums, count); }

void FewRowsAvx512(const ExpertNeurons& neurons, const FewRows& rows) {
  if (neurons.format.kind() == ExpertFormatKind::kBF12) {
    ComputeFewRows(Bf12Neurons(neurons), rows);
  } else {
    ComputeFewRows(Bf16Neurons(neurons), rows);
  }
}

}  // namespace moed::backend

#else

namespace moed::backend {

// Never called: cpu_features.h reports no AVX-512 here.
void FewRowsAvx512(const ExpertNeurons&, const FewRows&) {}
void OrderSumsAvx512(float*, int64_t) {}

}  // namespace moed::backend

#endif
