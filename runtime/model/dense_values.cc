#include "runtime/model/dense_values.h"

namespace moed::model {

using backend::BFloat16;
using backend::DType;
using backend::Tensor;

namespace {

float ElementAt(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype()) {
    case DType::kBF16:
      return backend::ToFloat(tensor.As<BFloat16>()[i]);
    case DType::kF16:
      return backend::HalfToFloat(tensor.As<uint16_t>()[i]);
    default:
      return tensor.As<float>()[i];
  }
}

}  // namespace

void AppendFloats(const Tensor& tensor, std::vector<float>* values) {
  values->reserve(values->size() + tensor.num_elements());
  for (int64_t i = 0; i < tensor.num_elements(); ++i) values->push_back(ElementAt(tensor, i));
}

void AppendBFloat16s(const Tensor& tensor, std::vector<BFloat16>* values) {
  values->reserve(values->size() + tensor.num_elements());
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    values->push_back(tensor.dtype() == DType::kBF16 ? tensor.As<BFloat16>()[i]
                                                     : backend::ToBFloat16(ElementAt(tensor, i)));
  }
}

}  // namespace moed::model
