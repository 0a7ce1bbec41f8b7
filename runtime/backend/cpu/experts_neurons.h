// The neurons of a piece in either format, as the kernels for few rows see them: where the rows
// lie, and escapes as what a product with the stored row is off by.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backend/bf12.h"
#include "runtime/backend/cpu/experts_kernels.h"

namespace moed::backend {

class Bf16Neurons {
 public:
  explicit Bf16Neurons(const ExpertNeurons& neurons)
      : first_(neurons.blob + neurons.format.neuron_offset(neurons.first)),
        count_(neurons.count),
        row_bytes_(neurons.format.row_values() * sizeof(BFloat16)),
        next_(neurons.next) {}

  int64_t count() const { return count_; }
  const std::byte* Row(int64_t i, int part) const { return first_ + (3 * i + part) * row_bytes_; }
  // What is computed after neurons [i, i + at_once).
  const std::byte* Next(int64_t i, int64_t at_once) const {
    return next_ != nullptr && i + at_once >= count_ ? next_ : Row(i + at_once, 0);
  }

  // function(int part, int64_t column, float delta)
  template <class Function>
  void ForEachEscape(int64_t, const Function&) const {}

 private:
  const std::byte* first_;
  int64_t count_;
  int64_t row_bytes_;
  const std::byte* next_;
};

class Bf12Neurons {
 public:
  explicit Bf12Neurons(const ExpertNeurons& neurons) : neurons_(neurons) {}

  int64_t count() const { return neurons_.count; }
  const std::byte* Row(int64_t i, int part) const {
    return At(i) + sizeof(Bf12Header) + part * neurons_.format.row_values() / 2 * 3;
  }
  int Base(int64_t i, int part) const { return Header(i).bases[part]; }
  BFloat16 Placeholder(int64_t i, int part) const { return Bf12Placeholder(Header(i).bases[part]); }
  // Whether the bases of neurons [i, i + count) all are in [least, most].
  bool BasesWithin(int64_t i, int64_t count, int least, int most) const {
    bool within = true;
    for (int64_t n = i; n < i + count; ++n) {
      for (const uint8_t base : Header(n).bases) within &= base >= least && base <= most;
    }
    return within;
  }
  // What is computed after neurons [i, i + at_once).
  const std::byte* Next(int64_t i, int64_t at_once) const {
    return neurons_.next != nullptr && i + at_once >= count() ? neurons_.next : At(i + at_once);
  }

  template <class Function>
  void ForEachEscape(int64_t i, const Function& function) const {
    const Bf12Header& header = Header(i);
    if (header.num_escapes == 0) return;
    const int64_t width = neurons_.format.row_values();
    const int64_t in_tile = (neurons_.first + i) % kBf12TileNeurons;
    const auto* list = reinterpret_cast<const Bf12TileEscape*>(At(i - in_tile) +
                                                               neurons_.format.tile_list_offset());
    ForEachBf12Escape(header, list, static_cast<int>(in_tile), [&](const Bf12Escape& escape) {
      const int part = static_cast<int>(escape.position / width);
      const float stored = ToFloat(Bf12Placeholder(header.bases[part]));
      function(part, escape.position % width, ToFloat(escape.bits) - stored);
    });
  }

 private:
  const std::byte* At(int64_t i) const {
    return neurons_.blob + neurons_.format.neuron_offset(neurons_.first + i);
  }
  const Bf12Header& Header(int64_t i) const { return *reinterpret_cast<const Bf12Header*>(At(i)); }

  const ExpertNeurons& neurons_;
};

}  // namespace moed::backend
