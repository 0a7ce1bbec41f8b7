// Random matrices that own their values, for comparing ops with references in double precision.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "runtime/backend/dtype.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

// [rows, columns] of float32; zeros unless Random.
class FloatMatrix {
 public:
  FloatMatrix(int64_t rows, int64_t columns)
      : rows_(rows), columns_(columns), values_(rows * columns, 0.0f) {}

  static FloatMatrix Random(int64_t rows, int64_t columns, uint32_t seed) {
    FloatMatrix matrix(rows, columns);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& value : matrix.values_) value = normal(random);
    return matrix;
  }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  float& at(int64_t row, int64_t column) { return values_[row * columns_ + column]; }
  float at(int64_t row, int64_t column) const { return values_[row * columns_ + column]; }
  std::vector<float>& values() { return values_; }
  const std::vector<float>& values() const { return values_; }
  Tensor tensor() { return Tensor(values_.data(), DType::kF32, {rows_, columns_}); }
  Tensor vector() { return Tensor(values_.data(), DType::kF32, {rows_ * columns_}); }

 private:
  int64_t rows_;
  int64_t columns_;
  std::vector<float> values_;
};

// [rows, columns] of bf16.
class BFloat16Matrix {
 public:
  BFloat16Matrix(int64_t rows, int64_t columns)
      : rows_(rows), columns_(columns), values_(rows * columns, 0) {}

  static BFloat16Matrix Random(int64_t rows, int64_t columns, uint32_t seed) {
    BFloat16Matrix matrix(rows, columns);
    const FloatMatrix floats = FloatMatrix::Random(rows, columns, seed);
    for (int64_t i = 0; i < rows * columns; ++i) {
      matrix.values_[i] = ToBFloat16(floats.values()[i]);
    }
    return matrix;
  }

  float at(int64_t row, int64_t column) const { return ToFloat(values_[row * columns_ + column]); }
  std::vector<BFloat16>& values() { return values_; }
  const std::vector<BFloat16>& values() const { return values_; }
  Tensor tensor() { return Tensor(values_.data(), DType::kBF16, {rows_, columns_}); }

 private:
  int64_t rows_;
  int64_t columns_;
  std::vector<BFloat16> values_;
};

}  // namespace moed::backend
