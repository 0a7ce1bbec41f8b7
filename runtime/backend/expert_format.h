// How one expert lies in memory: its blob. An expert is a list of neurons,
//   y = sum_i act(g_i . x) * (u_i . x) * d_i        (SwiGLU; g, u rows and d columns of length H)
// stored neuron-major: [g_i | u_i | d_i] for i = 0..I-1, so that it can be cut anywhere along i
// into pieces that add up, moved in one copy and computed in one pass. Everything above
// runtime/backend sees only blob_bytes(); the layout is known here and in the kernels. Immutable;
// any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "runtime/backend/dtype.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

// kBF12 holds the same bits in three quarters of the bytes (bf12.h).
enum class ExpertFormatKind : uint8_t { kBF16, kBF12 };

enum class ExpertPart : uint8_t { kGate, kUp, kDown };

std::string_view ExpertFormatName(ExpertFormatKind kind);

// Neurons of a bf12 tile.
constexpr int64_t kBf12TileNeurons = 32;

class ExpertFormat {
 public:
  // `tile_escapes` is for bf12 alone: what a tile's list has room for (Bf12TileEscapeCapacity).
  ExpertFormat(ExpertFormatKind kind, int64_t hidden, int64_t intermediate, int tile_escapes = 0);

  ExpertFormatKind kind() const { return kind_; }
  int64_t hidden() const { return hidden_; }              // H
  int64_t intermediate() const { return intermediate_; }  // I, the neurons

  // Values of a stored row: H rounded up to a multiple of 32 (bf12: 128), so that every row starts
  // at a multiple of 64 bytes and no kernel needs a tail. What is beyond H is zero in bf16, any
  // finite value in bf12.
  int64_t row_values() const { return row_values_; }
  // Bytes of one neuron: gate row, up row, down column, and in bf12 its header.
  size_t neuron_bytes() const { return neuron_bytes_; }
  // Where neuron i begins in the blob: at i * neuron_bytes() in bf16.
  size_t neuron_offset(int64_t i) const {
    const auto neuron = static_cast<size_t>(i);
    return neuron / kBf12TileNeurons * tile_bytes_ + neuron % kBf12TileNeurons * neuron_bytes_;
  }

  // bf12: room in a tile's list of escapes, and where the list begins behind the tile's neurons.
  int tile_escapes() const { return tile_escapes_; }
  size_t tile_list_offset() const { return kBf12TileNeurons * neuron_bytes_; }
  // Bytes of such a list, a multiple of 128; 0 in bf16.
  size_t tile_list_bytes() const { return tile_bytes_ - tile_list_offset(); }

  // Bytes of one expert, a multiple of 256, so that blobs laid end to end stay aligned for bulk
  // copies.
  size_t blob_bytes() const;
  // blob_bytes() over what the same expert takes in bf16.
  double stored_ratio() const;

  // Lays out `gate` [I, H], `up` [I, H] and `down` [H, I] (bf16, f16 or f32, host memory) as a
  // bf16 blob; f16 and f32 are rounded. `blob` holds blob_bytes(). bf12 is made from bf16 by
  // EncodeBf12 (bf12.h).
  void Encode(const Tensor& gate, const Tensor& up, const Tensor& down,
              std::span<std::byte> blob) const;

  // Lays out a piece of it: rows [n, H] of gate or up from neuron `first_row` on, or [n, I] of down
  // from row `first_row` of its H on. All rows of the three parts, in any order, make what Encode
  // makes; pieces of down should begin at multiples of 32.
  void EncodeRows(ExpertPart part, int64_t first_row, const Tensor& rows,
                  std::span<std::byte> blob) const;

 private:
  ExpertFormatKind kind_;
  int64_t hidden_;
  int64_t intermediate_;
  int tile_escapes_;
  // Made once, since kernels ask for every neuron.
  int64_t row_values_;
  size_t neuron_bytes_;
  size_t tile_bytes_;  // of kBf12TileNeurons neurons, with their list
};

}  // namespace moed::backend
