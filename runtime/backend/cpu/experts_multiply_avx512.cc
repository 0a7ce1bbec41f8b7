#include "runtime/backend/cpu/experts_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "runtime/backend/cpu/panel.h"

// Compiled for its own target; the rest of the program runs where these instructions do not exist.
#define MOED_AVX512_BF16 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"), always_inline)) inline
#define MOED_AVX512_BF16_ENTRY \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace moed::backend {
namespace {

// Depth of a product taken at once: two panels stay in the L1 cache while the rows pass.
constexpr int64_t kDepthBlock = 256;

MOED_AVX512_BF16 __m512bh AsBf16(__m512i values) { return reinterpret_cast<__m512bh>(values); }

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
    for (int n = 0; n < kPanels; ++n)
      weights[n] = AsBf16(_mm512_loadu_si512(b + n * p.panel_stride + k * kPanelColumns));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int pair;
      std::memcpy(&pair, a + r * p.a_stride + k, sizeof(pair));
      const __m512bh values = AsBf16(_mm512_set1_epi32(pair));
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
void MultiplyAvx512(const PanelMultiply&) {}

}  // namespace moed::backend

#endif
