#include "runtime/backend/cpu/experts_activation.h"

#include <algorithm>

#include "runtime/backend/cpu/experts_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/experts_activation.cc"
#include "hwy/foreach_target.h"
// Highway's own headers come after foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moed::backend {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

template <class D, class V = hn::Vec<D>>
HWY_INLINE V SwiGlu(D d, V gate, V up) {
  // Beyond 88 exp() leaves the floats, and silu is 0 to the last bit that matters. NaN passes Min.
  const V exponential = hn::Exp(d, hn::Min(hn::Set(d, 88.0f), hn::Neg(gate)));
  return hn::Mul(hn::Div(gate, hn::Add(hn::Set(d, 1.0f), exponential)), up);
}

// product[i] = silu(gate[i]) * up[i]
void Multiply(const float* HWY_RESTRICT gate, const float* HWY_RESTRICT up, int64_t count,
              float* HWY_RESTRICT product) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  int64_t i = 0;
  for (; i + static_cast<int64_t>(hn::Lanes(d)) <= count; i += hn::Lanes(d)) {
    hn::StoreU(SwiGlu(d, hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, product + i);
  }
  for (; i < count; ++i) {
    hn::StoreU(SwiGlu(d1, hn::LoadU(d1, gate + i), hn::LoadU(d1, up + i)), d1, product + i);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(Multiply);

void ActivateSwiGlu(const float* gate, const float* up, int64_t count, BFloat16* act) {
  constexpr int64_t kChunk = 256;
  float product[kChunk];
  for (int64_t i = 0; i < count; i += kChunk) {
    const int64_t size = std::min(kChunk, count - i);
    HWY_DYNAMIC_DISPATCH(Multiply)(gate + i, up + i, size, product);
    FloatsToBFloat16(product, size, act + i);
  }
}

}  // namespace moed::backend
#endif
