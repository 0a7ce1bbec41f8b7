#include "runtime/backend/cpu/experts_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/cpu/panel.h"

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
// Neurons whose down rows are added in one pass over y.
constexpr int kNeuronsAtOnce = 4;
// Depth of a product taken at once: two panels stay in the L1 cache while the rows pass.
constexpr int64_t kDepthBlock = 256;

MOED_AVX512_BF16 __m512bh Load(const BFloat16* values) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(values));
}

// Fetches the line `ahead` values further into the L2 cache.
MOED_AVX512_BF16 void PrefetchLine(const BFloat16* values, int64_t ahead) {
  __builtin_prefetch(values + ahead, /*rw=*/0, /*locality=*/2);
}

// gate[r], up[r] = the products of a neuron's two rows with kRows rows of x.
template <int kRows>
MOED_AVX512_BF16 void MultiplyNeuron(const BFloat16* gate_row, const BFloat16* up_row,
                                     int64_t width, int64_t ahead, const BFloat16* const* x,
                                     float* gate, float* up) {
  __m512 gate_sums[kRows];
  __m512 up_sums[kRows];
  for (int r = 0; r < kRows; ++r) gate_sums[r] = up_sums[r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += kBlock) {
    PrefetchLine(gate_row + i, ahead);
    PrefetchLine(up_row + i, ahead);
    const __m512bh g = Load(gate_row + i);
    const __m512bh u = Load(up_row + i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh values = Load(x[r] + i);
      gate_sums[r] = _mm512_dpbf16_ps(gate_sums[r], g, values);
      up_sums[r] = _mm512_dpbf16_ps(up_sums[r], u, values);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    gate[r] = _mm512_reduce_add_ps(gate_sums[r]);
    up[r] = _mm512_reduce_add_ps(up_sums[r]);
  }
}

// y[r] += sum over kNeurons of act[n * kRows + r] * their down rows. Within 32 values y holds those
// at even places, then those at odd ones: so a vector of bf16 widens without shuffles.
template <int kNeurons, int kRows>
MOED_AVX512_BF16 void AddDownRows(const BFloat16* down, int64_t stride, int64_t width,
                                  int64_t ahead, const float* act, float* y) {
  const __m512i upper_half = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t i = 0; i < width; i += kBlock) {
    __m512 even[kNeurons];
    __m512 odd[kNeurons];
#pragma GCC unroll 4
    for (int n = 0; n < kNeurons; ++n) {
      PrefetchLine(down + n * stride + i, ahead);
      const __m512i both = _mm512_loadu_si512(down + n * stride + i);
      even[n] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
      odd[n] = _mm512_castsi512_ps(_mm512_and_si512(both, upper_half));
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      float* target = y + r * width + i;
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

// y += the part of neurons [first, first + kNeurons).
template <int kNeurons, int kRows>
MOED_AVX512_BF16 void AddNeurons(const NeuronRows& neurons, int64_t first, const BFloat16* const* x,
                                 float* y) {
  float gate[kNeurons * kRows];
  float up[kNeurons * kRows];
  BFloat16 rounded[kNeurons * kRows];
  float act[kNeurons * kRows];
  const int64_t ahead = kNeuronsAtOnce * neurons.stride;
  for (int n = 0; n < kNeurons; ++n) {
    const int64_t offset = (first + n) * neurons.stride;
    MultiplyNeuron<kRows>(neurons.gate + offset, neurons.up + offset, neurons.width, ahead, x,
                          gate + n * kRows, up + n * kRows);
  }
  ActivateSwiGlu(gate, up, kNeurons * kRows, rounded);
  for (int i = 0; i < kNeurons * kRows; ++i) act[i] = ToFloat(rounded[i]);
  AddDownRows<kNeurons, kRows>(neurons.down + first * neurons.stride, neurons.stride, neurons.width,
                               ahead, act, y);
}

// From even and odd places to the natural order, 32 values at a time.
MOED_AVX512_BF16 void InterleaveHalves(float* y, int64_t count) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (float* block = y; block < y + count; block += kBlock) {
    const __m512 even = _mm512_loadu_ps(block);
    const __m512 odd = _mm512_loadu_ps(block + 16);
    _mm512_storeu_ps(block, _mm512_permutex2var_ps(even, low, odd));
    _mm512_storeu_ps(block + 16, _mm512_permutex2var_ps(even, high, odd));
  }
}

template <int kRows>
MOED_AVX512_BF16_ENTRY void FewRows(const NeuronRows& neurons, const BFloat16* const* x, float* y) {
  std::memset(y, 0, kRows * neurons.width * sizeof(float));
  int64_t n = 0;
  for (; n + kNeuronsAtOnce <= neurons.count; n += kNeuronsAtOnce) {
    AddNeurons<kNeuronsAtOnce, kRows>(neurons, n, x, y);
  }
  for (; n < neurons.count; ++n) AddNeurons<1, kRows>(neurons, n, x, y);
  InterleaveHalves(y, kRows * neurons.width);
}

// C of kRows rows and kPanels panels over depth [begin, end).
template <int kRows, int kPanels>
MOED_AVX512_BF16 void MultiplyTile(const PanelMultiply& p, int64_t row, int64_t panel,
                                   int64_t begin, int64_t end) {
  const BFloat16* a = p.a + row * p.a_stride;
  const BFloat16* b = p.panels + panel * p.panel_stride;
  float* c = p.c + row * p.c_stride + panel * kPanelColumns;
  const bool load = p.accumulate || begin > 0;
  __m512 sums[kRows][kPanels];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int n = 0; n < kPanels; ++n) {
      const float* at = c + r * p.c_stride + n * kPanelColumns;
      sums[r][n] = load ? _mm512_loadu_ps(at) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = begin; k < end; k += 2) {
    __m512bh weights[kPanels];
#pragma GCC unroll 2
    for (int n = 0; n < kPanels; ++n) weights[n] = Load(b + n * p.panel_stride + k * kPanelColumns);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int pair;
      std::memcpy(&pair, a + r * p.a_stride + k, sizeof(pair));
      const __m512bh values = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 2
      for (int n = 0; n < kPanels; ++n) {
        sums[r][n] = _mm512_dpbf16_ps(sums[r][n], values, weights[n]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int n = 0; n < kPanels; ++n) {
      _mm512_storeu_ps(c + r * p.c_stride + n * kPanelColumns, sums[r][n]);
    }
  }
}

template <int kPanels>
MOED_AVX512_BF16_ENTRY void MultiplyPanels(const PanelMultiply& p, int64_t panel, int64_t begin,
                                           int64_t end) {
  int64_t r = 0;
  for (; r + 12 <= p.rows; r += 12) MultiplyTile<12, kPanels>(p, r, panel, begin, end);
  for (; r + 4 <= p.rows; r += 4) MultiplyTile<4, kPanels>(p, r, panel, begin, end);
  for (; r < p.rows; ++r) MultiplyTile<1, kPanels>(p, r, panel, begin, end);
}

}  // namespace

void FewRowsAvx512(const NeuronRows& neurons, const BFloat16* const* x, int rows, float*,
                   float* y) {
  using Function = void (*)(const NeuronRows&, const BFloat16* const*, float*);
  static constexpr Function kFunctions[kAvx512FewRows] = {FewRows<1>, FewRows<2>, FewRows<3>,
                                                          FewRows<4>, FewRows<5>, FewRows<6>,
                                                          FewRows<7>, FewRows<8>};
  kFunctions[rows - 1](neurons, x, y);
}

void MultiplyAvx512(const PanelMultiply& p) {
  for (int64_t k = 0; k < p.depth; k += kDepthBlock) {
    const int64_t end = std::min(k + kDepthBlock, p.depth);
    int64_t n = 0;
    for (; n + 2 <= p.num_panels; n += 2) MultiplyPanels<2>(p, n, k, end);
    for (; n < p.num_panels; ++n) MultiplyPanels<1>(p, n, k, end);
  }
}

}  // namespace moed::backend

#else

namespace moed::backend {

// Never called: cpu_features.h reports no AVX-512 here.
void FewRowsAvx512(const NeuronRows&, const BFloat16* const*, int, float*, float*) {}
void MultiplyAvx512(const PanelMultiply&) {}

}  // namespace moed::backend

#endif
