#include "runtime/backend/cpu/few_queries.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/few_queries.cc"
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
using FloatVector = hn::Vec<Floats>;

constexpr int64_t kLanes = hn::MaxLanes(Floats());

struct SplitVectors {
  FloatVector even;
  FloatVector odd;
};

// Values [2 * word, 2 * word + 2 * lanes) of a bf16 row.
HWY_INLINE SplitVectors LoadSplit(const BFloat16* row, int64_t word) {
  const Floats d;
  const Words dw;
  const auto both = hn::LoadU(dw, reinterpret_cast<const uint32_t*>(row) + word);
  return {hn::BitCast(d, hn::ShiftLeft<16>(both)),
          hn::BitCast(d, hn::And(both, hn::Set(dw, 0xffff0000u)))};
}

template <int kQueries>
HWY_INLINE void ScoreKeys(const float* HWY_RESTRICT queries, std::span<const BFloat16* const> keys,
                          int64_t head_dim, float* HWY_RESTRICT scores, int64_t scores_stride) {
  const Floats d;
  const int64_t words = head_dim / 2;
  for (size_t j = 0; j < keys.size(); ++j) {
    FloatVector even_sums[kQueries];
    FloatVector odd_sums[kQueries];
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) even_sums[i] = odd_sums[i] = hn::Zero(d);
    for (int64_t word = 0; word < words; word += kLanes) {
      const SplitVectors key = LoadSplit(keys[j], word);
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) {
        const float* query = queries + i * head_dim + word;
        even_sums[i] = hn::MulAdd(hn::LoadU(d, query), key.even, even_sums[i]);
        odd_sums[i] = hn::MulAdd(hn::LoadU(d, query + words), key.odd, odd_sums[i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      scores[i * scores_stride + static_cast<int64_t>(j)] =
          hn::GetLane(hn::SumOfLanes(d, hn::Add(even_sums[i], odd_sums[i])));
    }
  }
}

// Words of a row whose sums are kept in registers over all values.
template <int kQueries, int kVectors>
HWY_INLINE void AddWeightedWords(const float* HWY_RESTRICT weights, int64_t weights_stride,
                                 std::span<const BFloat16* const> values, int64_t word,
                                 int64_t words, float* HWY_RESTRICT sums, int64_t sums_stride) {
  const Floats d;
  FloatVector even[kQueries][kVectors];
  FloatVector odd[kQueries][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      even[i][v] = hn::LoadU(d, sums + i * sums_stride + word + v * kLanes);
      odd[i][v] = hn::LoadU(d, sums + i * sums_stride + words + word + v * kLanes);
    }
  }
  for (size_t j = 0; j < values.size(); ++j) {
    SplitVectors value[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) value[v] = LoadSplit(values[j], word + v * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      const FloatVector weight = hn::Set(d, weights[i * weights_stride + static_cast<int64_t>(j)]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        even[i][v] = hn::MulAdd(weight, value[v].even, even[i][v]);
        odd[i][v] = hn::MulAdd(weight, value[v].odd, odd[i][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(even[i][v], d, sums + i * sums_stride + word + v * kLanes);
      hn::StoreU(odd[i][v], d, sums + i * sums_stride + words + word + v * kLanes);
    }
  }
}

template <int kQueries>
HWY_INLINE void AddWeighted(const float* weights, int64_t weights_stride,
                            std::span<const BFloat16* const> values, int64_t head_dim, float* sums,
                            int64_t sums_stride) {
  constexpr int kVectors = kQueries == 1 ? 4 : kQueries == 2 ? 2 : 1;
  const int64_t words = head_dim / 2;
  int64_t word = 0;
  for (; word + kVectors * kLanes <= words; word += kVectors * kLanes) {
    AddWeightedWords<kQueries, kVectors>(weights, weights_stride, values, word, words, sums,
                                         sums_stride);
  }
  for (; word < words; word += kLanes) {
    AddWeightedWords<kQueries, 1>(weights, weights_stride, values, word, words, sums, sums_stride);
  }
}

void ScoreFewQueries(const float* queries, int64_t num_queries,
                     std::span<const BFloat16* const> keys, int64_t head_dim, float* scores,
                     int64_t scores_stride) {
  switch (num_queries) {
    case 1:
      return ScoreKeys<1>(queries, keys, head_dim, scores, scores_stride);
    case 2:
      return ScoreKeys<2>(queries, keys, head_dim, scores, scores_stride);
    case 3:
      return ScoreKeys<3>(queries, keys, head_dim, scores, scores_stride);
    default:
      return ScoreKeys<4>(queries, keys, head_dim, scores, scores_stride);
  }
}

void AddWeightedFewQueries(const float* weights, int64_t weights_stride, int64_t num_queries,
                           std::span<const BFloat16* const> values, int64_t head_dim, float* sums,
                           int64_t sums_stride) {
  switch (num_queries) {
    case 1:
      return AddWeighted<1>(weights, weights_stride, values, head_dim, sums, sums_stride);
    case 2:
      return AddWeighted<2>(weights, weights_stride, values, head_dim, sums, sums_stride);
    case 3:
      return AddWeighted<3>(weights, weights_stride, values, head_dim, sums, sums_stride);
    default:
      return AddWeighted<4>(weights, weights_stride, values, head_dim, sums, sums_stride);
  }
}

int64_t WordsPerVector() { return kLanes; }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(ScoreFewQueries);
HWY_EXPORT(AddWeightedFewQueries);
HWY_EXPORT(WordsPerVector);

bool FewQueriesFit(int64_t head_dim) {
  return head_dim % (2 * HWY_DYNAMIC_DISPATCH(WordsPerVector)()) == 0;
}

void ScoreFewQueries(const float* queries, int64_t num_queries,
                     std::span<const BFloat16* const> keys, int64_t head_dim, float* scores,
                     int64_t scores_stride) {
  HWY_DYNAMIC_DISPATCH(ScoreFewQueries)
  (queries, num_queries, keys, head_dim, scores, scores_stride);
}

void AddWeightedFewQueries(const float* weights, int64_t weights_stride, int64_t num_queries,
                           std::span<const BFloat16* const> values, int64_t head_dim, float* sums,
                           int64_t sums_stride) {
  HWY_DYNAMIC_DISPATCH(AddWeightedFewQueries)
  (weights, weights_stride, num_queries, values, head_dim, sums, sums_stride);
}

}  // namespace moed::backend
#endif
