#include "runtime/backend/cpu/softmax_tile.h"

#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/softmax_tile.cc"
#include "hwy/foreach_target.h"
// Highway's own headers come after foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moed::backend {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using FloatVector = hn::Vec<Floats>;

constexpr int64_t kLanes = hn::MaxLanes(Floats());

// Scores [i, i + lanes), -infinity where the row may not look.
HWY_INLINE FloatVector MaskedScores(const float* scores, VisibleKeys visible, int64_t i) {
  const Floats d;
  const FloatVector key = hn::Iota(d, static_cast<float>(i));
  const auto inside = hn::And(hn::Ge(key, hn::Set(d, static_cast<float>(visible.begin))),
                              hn::Lt(key, hn::Set(d, static_cast<float>(visible.end))));
  return hn::IfThenElse(inside, hn::LoadU(d, scores + i),
                        hn::Set(d, -std::numeric_limits<float>::infinity()));
}

HWY_INLINE void ScaleRow(float factor, int64_t width, float* row) {
  const Floats d;
  const FloatVector by = hn::Set(d, factor);
  for (int64_t i = 0; i < width; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, row + i), by), d, row + i);
  }
}

void SoftmaxTileRow(const float* scores, VisibleKeys visible, RunningSoftmax* running,
                    float* weights, int64_t weights_stride, float* accumulated, int64_t width) {
  const Floats d;
  HWY_ALIGN float row[kTileKeys];
  FloatVector maxima = hn::Set(d, running->maximum);
  for (int64_t i = 0; i < kTileKeys; i += kLanes) {
    const FloatVector masked = MaskedScores(scores, visible, i);
    hn::Store(masked, d, row + i);
    maxima = hn::Max(maxima, masked);
  }
  const float maximum = hn::GetLane(hn::MaxOfLanes(d, maxima));
  const FloatVector shift = hn::Set(d, maximum);
  FloatVector sums = hn::Zero(d);
  for (int64_t i = 0; i < kTileKeys; i += kLanes) {
    const FloatVector exponentials = hn::Exp(d, hn::Sub(hn::Load(d, row + i), shift));
    sums = hn::Add(sums, exponentials);
    hn::Store(exponentials, d, row + i);
  }
  for (int64_t j = 0; j < kTileKeys; ++j) weights[j * weights_stride] = row[j];
  const float tile_sum = hn::GetLane(hn::SumOfLanes(d, sums));
  if (maximum == running->maximum) {
    running->sum += tile_sum;
    return;
  }
  const float factor =
      hn::GetLane(hn::Exp(d, hn::Sub(hn::Set(d, running->maximum), hn::Set(d, maximum))));
  running->maximum = maximum;
  running->sum = running->sum * factor + tile_sum;
  ScaleRow(factor, width, accumulated);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(SoftmaxTileRow);

void SoftmaxTileRow(const float* scores, VisibleKeys visible, RunningSoftmax* running,
                    float* weights, int64_t weights_stride, float* accumulated, int64_t width) {
  HWY_DYNAMIC_DISPATCH(SoftmaxTileRow)
  (scores, visible, running, weights, weights_stride, accumulated, width);
}

}  // namespace moed::backend
#endif
