#include "runtime/backend/cpu/experts_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <bit>

#include "runtime/backend/cpu/bf12_blocks.h"
#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/cpu/experts_neurons.h"
#include "runtime/backend/cpu/weight_fetcher.h"

// GCC 12's headers make undefined vectors by reading them, and warn where they are inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// Compiled for its own target; the rest of the program runs where these instructions do not exist.
#define MOED_AVX512_BF16 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"), always_inline)) inline
#define MOED_AVX512_BF16_ENTRY \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace moed::backend {
namespace {

// bf16 values of a vector, which is a cache line.
constexpr int64_t kBlock = 32;
static_assert(kOrderedSums % kBlock == 0);
// Neurons whose down rows are added in one pass over y.
constexpr int kNeuronsAtOnce = 4;

MOED_AVX512_BF16 __m512bh AsBf16(__m512i values) { return reinterpret_cast<__m512bh>(values); }

// A row of either format. Load(i, group) gives 32 values from i + 32 * group on, i a multiple of
// kStep, group a constant after unrolling; they are to be multiplied by Scale(), a power of two.
struct Bf16Row {
  static constexpr int64_t kStep = kBlock;
  static constexpr int64_t kStepBytes = 2 * kStep;
  const std::byte* values;

  static constexpr float Scale() { return 1.0f; }
  MOED_AVX512_BF16 __m512i Load(int64_t i, int64_t) const {
    return _mm512_loadu_si512(values + 2 * i);
  }
};

struct Bf12Row {
  static constexpr int64_t kStep = kBf12BlockValues;
  static constexpr int64_t kStepBytes = kBf12BlockBytes;
  const std::byte* blocks;
  BFloat16 base;  // the exponent, where it stands in a bf16

  static constexpr float Scale() { return 1.0f; }
  MOED_AVX512_BF16 __m512i Load(int64_t i, int64_t group) const {
    const std::byte* block = blocks + i / 2 * 3;
    const __m512i bytes = _mm512_loadu_si512(block + group / 2 * 64);
    const __m512i nibbles = _mm512_loadu_si512(block + 128);
    const bool high = group % 2 == 1;
    const __m512i mantissa = high ? _mm512_srli_epi16(bytes, 8) : bytes;
    const __m512i sign = high ? bytes : _mm512_slli_epi16(bytes, 8);
    // Bits 0-6 from the mantissa, 7-10 from the nibble; then the base; then bit 15 from the sign.
    constexpr int kSelect = 0xca;  // a ? b : c
    constexpr int kOrAnd = 0xf8;   // a | (b & c)
    const __m512i magnitude = _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x007f), mantissa,
                                                        MoveNibble(group, nibbles), kSelect);
    const __m512i based = _mm512_add_epi16(_mm512_and_si512(magnitude, _mm512_set1_epi16(0x07ff)),
                                           _mm512_set1_epi16(static_cast<int16_t>(base)));
    return _mm512_ternarylogic_epi32(based, sign, _mm512_set1_epi16(static_cast<int16_t>(0x8000)),
                                     kOrAnd);
  }
  // Nibble `group` of each word to where the exponent stands in a bf16.
  MOED_AVX512_BF16 static __m512i MoveNibble(int64_t group, __m512i words) {
    if (group == 0) return _mm512_slli_epi16(words, 7);
    if (group == 1) return _mm512_slli_epi16(words, 3);
    if (group == 2) return _mm512_srli_epi16(words, 1);
    return _mm512_srli_epi16(words, 5);
  }
};

// With another base for the row's own, whose last four bits are zero so that nothing need be added,
// in two thirds of the instructions. The same result to the last bit, since the sums are floats.
struct ScaledBf12Row {
  static constexpr int64_t kStep = kBf12BlockValues;
  static constexpr int64_t kStepBytes = kBf12BlockBytes;
  static constexpr int kBase = 112;
  // Of bases that may be replaced: far from where scaled sums and factors could overflow or lose
  // bits, which no row of a trained model comes near.
  static constexpr int kLeastBase = kBase - 60;
  static constexpr int kMostBase = kBase + 60;
  const std::byte* blocks;
  int base;

  float Scale() const { return std::bit_cast<float>((base - kBase + 127) << 23); }
  MOED_AVX512_BF16 __m512i Load(int64_t i, int64_t group) const {
    const std::byte* block = blocks + i / 2 * 3;
    const __m512i bytes = _mm512_loadu_si512(block + group / 2 * 64);
    const __m512i nibbles = _mm512_loadu_si512(block + 128);
    // A word's byte twice, so that its sign and its mantissa both stand where they shall.
    const __m512i twice = _mm512_shuffle_epi8(bytes, group % 2 == 1 ? Odd() : Even());
    constexpr int kSelect = 0xca;  // a ? b : c
    constexpr int kAndOr = 0xea;   // (a & b) | c
    const __m512i all =
        _mm512_ternarylogic_epi32(_mm512_set1_epi16(static_cast<int16_t>(0x807f)), twice,
                                  Bf12Row::MoveNibble(group, nibbles), kSelect);
    return _mm512_ternarylogic_epi32(all, _mm512_set1_epi16(static_cast<int16_t>(0x87ff)),
                                     _mm512_set1_epi16(kBase << 7), kAndOr);
  }
  MOED_AVX512_BF16 static __m512i Even() {
    return _mm512_set4_epi32(0x0e0e0c0c, 0x0a0a0808, 0x06060404, 0x02020000);
  }
  MOED_AVX512_BF16 static __m512i Odd() {
    return _mm512_set4_epi32(0x0f0f0d0d, 0x0b0b0909, 0x07070505, 0x03030101);
  }
};

// Neurons whose rows may all be scaled.
struct ScaledNeurons {
  const Bf12Neurons& neurons;

  const std::byte* Next(int64_t i, int64_t at_once) const { return neurons.Next(i, at_once); }
  template <class Function>
  void ForEachEscape(int64_t i, const Function& function) const {
    neurons.ForEachEscape(i, function);
  }
};

MOED_AVX512_BF16 Bf16Row RowAt(const Bf16Neurons& neurons, int64_t i, int part) {
  return {neurons.Row(i, part)};
}
MOED_AVX512_BF16 Bf12Row RowAt(const Bf12Neurons& neurons, int64_t i, int part) {
  return {neurons.Row(i, part), neurons.Placeholder(i, part)};
}
MOED_AVX512_BF16 ScaledBf12Row RowAt(const ScaledNeurons& scaled, int64_t i, int part) {
  return {scaled.neurons.Row(i, part), scaled.neurons.Base(i, part)};
}

// gate[r], up[r] = the products of a neuron's two rows with kRows rows of x.
template <int kRows, class Row>
MOED_AVX512_BF16 void MultiplyNeuron(const Row& gate_row, const Row& up_row, const FewRows& rows,
                                     WeightFetcher* fetcher, float* gate, float* up) {
  __m512 gate_sums[kRows];
  __m512 up_sums[kRows];
  for (int r = 0; r < kRows; ++r) gate_sums[r] = up_sums[r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < rows.width; i += Row::kStep) {
    fetcher->Fetch<2 * Row::kStepBytes>();
#pragma GCC unroll 4
    for (int64_t group = 0; group < Row::kStep / kBlock; ++group) {
      const __m512bh g = AsBf16(gate_row.Load(i, group));
      const __m512bh u = AsBf16(up_row.Load(i, group));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512bh x = AsBf16(_mm512_loadu_si512(rows.x[r] + i + group * kBlock));
        gate_sums[r] = _mm512_dpbf16_ps(gate_sums[r], g, x);
        up_sums[r] = _mm512_dpbf16_ps(up_sums[r], u, x);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    gate[r] = gate_row.Scale() * _mm512_reduce_add_ps(gate_sums[r]);
    up[r] = up_row.Scale() * _mm512_reduce_add_ps(up_sums[r]);
  }
}

// y[r] += sum over kNeurons of act[n * kRows + r] * their down rows, unscaled. Within 32 values y
// holds those at even places, then those at odd ones: so a vector of bf16 widens without shuffles.
template <int kNeurons, int kRows, class Row>
MOED_AVX512_BF16 void AddDownRows(const Row* down, const float* act, const FewRows& rows,
                                  WeightFetcher* fetcher) {
  const __m512i upper_half = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t i = 0; i < rows.width; i += Row::kStep) {
    fetcher->Fetch<kNeurons * Row::kStepBytes>();
#pragma GCC unroll 4
    for (int64_t group = 0; group < Row::kStep / kBlock; ++group) {
      __m512 even[kNeurons];
      __m512 odd[kNeurons];
#pragma GCC unroll 4
      for (int n = 0; n < kNeurons; ++n) {
        const __m512i both = down[n].Load(i, group);
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
      const int64_t index = column / kBlock * kBlock + column % 2 * 16 + column % kBlock / 2;
      for (int r = 0; r < kRows; ++r) rows.y[r][index] += delta * act[n * kRows + r];
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
