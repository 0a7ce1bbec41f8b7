// The dot products of one bf16 row with the rows of a weight that a warp takes, whose bytes come
// through its ring of shared memory piece by piece, by bulk copies ahead of use: Hopper and later.
// One stream after another uses the same ring, and may begin to copy long before what its rows are
// multiplied with is known.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "runtime/backend/cuda/primitives/async_copy.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {

#if __CUDA_ARCH__ >= 900

// Slots that a warp fills and reads in turn; lane i starts the copies into slot i.
template <int kSlots, uint32_t kSlotBytes>
class RowRing {
 public:
  static_assert(kSlots <= 32 && kSlotBytes % 512 == 0);

  // `memory`: kSlots * kSlotBytes of shared memory; `barriers`: kSlots of them.
  __device__ RowRing(std::byte* memory, uint64_t* barriers, int lane)
      : memory_(memory), barriers_(barriers), lane_(lane) {
    if (lane_ == 0) InitCopyBarriers(barriers_, kSlots);
    __syncwarp();
  }

  // Copy number `sequence`, by lane sequence % kSlots.
  __device__ void Fetch(int sequence, const std::byte* source, uint32_t bytes) const {
    const uint32_t barrier = SharedAddress(&barriers_[sequence % kSlots]);
    ExpectBytes(barrier, bytes);
    CopyBulkOnce(SharedAddress(Slot(sequence)), source, bytes, barrier);
  }
  // Waits for copy `sequence`, one of the kSlots oldest not yet used.
  __device__ void Wait(int sequence) const {
    WaitForBytes(SharedAddress(&barriers_[sequence % kSlots]), sequence / kSlots & 1);
  }
  __device__ const std::byte* Slot(int sequence) const {
    return memory_ + size_t(sequence % kSlots) * kSlotBytes;
  }
  __device__ int lane() const { return lane_; }

 private:
  std::byte* memory_;
  uint64_t* barriers_;
  int lane_;
};

// RowOf(i): the address of the warp's row i, `row_values` bf16, a multiple of 8. Rows are taken
// four at a time, so that their latencies overlap; the last of all may be fewer.
template <int kSlots, uint32_t kSlotBytes, class RowOf>
class RowStream {
 public:
  using Ring = RowRing<kSlots, kSlotBytes>;
  static constexpr int kRows = 4;
  static_assert(kSlots >= kRows && kSlots <= 32);

  // `first_sequence`: how many copies the ring's streams before this one made. Starts the first
  // `copies`, at most kSlots, once every lane has read those.
  __device__ RowStream(Ring& ring, int first_sequence, int rows, int row_values,
                       const RowOf& row_of, int copies)
      : ring_(ring),
        row_of_(row_of),
        first_(first_sequence),
        next_(first_sequence),
        rows_(rows),
        rows_left_(rows),
        pieces_((row_values * 2 + kSlotBytes - 1) / kSlotBytes),
        last_bytes_(row_values * 2 - (pieces_ - 1) * kSlotBytes),
        copies_(rows * pieces_),
        mine_(ring.lane()) {
    __syncwarp();
    Locate();
    StartCopies(copies);
  }

  // Starts all copies that the ring has room for. Before the first call of Next.
  __device__ void FillRing() { StartCopies(kSlots); }

  // The products of the next four rows with `x`, in shared memory: lane i gets row i's, if there
  // are so many left.
  __device__ float Next(const __nv_bfloat16* x) {
    const int lane = ring_.lane();
    const int rows = min(kRows, rows_left_);
    rows_left_ -= rows;
    const auto* input = reinterpret_cast<const uint4*>(x) + lane;
    float sums[kRows][4] = {};
#pragma unroll 1
    for (int piece = 0; piece < pieces_; ++piece) {
      // Of a group the pieces at one column come together, each lane waits for one.
      if (lane < rows) ring_.Wait(next_ + lane);
      __syncwarp();
      MultiplyPiece(rows, (piece + 1 < pieces_ ? kSlotBytes : last_bytes_) / 16, input, sums);
      input += kSlotBytes / 16;
      __syncwarp();
      next_ += rows;
      StartCopies(next_ - first_ + kSlots);
    }
    return Finish(sums);
  }

  // How many copies this and the streams before made, once all rows were multiplied.
  __device__ int end_sequence() const { return first_ + copies_; }

 private:
  // Lane i starts copies i, i + 32 and so on; it knows where its next one comes from.
  __device__ void StartCopies(int end) {
    if (mine_ >= min(end, copies_)) return;
    ring_.Fetch(first_ + mine_, source_, bytes_);
    mine_ += 32;
    Locate();
  }
  // Copies come in the order of use: four rows' first pieces, their second ones, and so on.
  __device__ void Locate() {
    if (mine_ >= copies_) return;
    const int group = mine_ / (kRows * pieces_);
    const int within = mine_ - group * kRows * pieces_;
    const int rows = min(kRows, rows_ - group * kRows);
    const int piece = within / rows;
    const int row = group * kRows + within - piece * rows;
    source_ = row_of_(row) + size_t(piece) * kSlotBytes;
    bytes_ = piece + 1 < pieces_ ? kSlotBytes : last_bytes_;
  }

  // Eight groups of four lanes are the rows of one half of an operand and the columns of the other
  // operand: element (g, g) of the product is the sum over group g. Two rows are the two halves.
  __device__ void MultiplyPiece(int rows, int chunks, const uint4* input,
                                float (&sums)[kRows][4]) const {
    const int lane = ring_.lane();
    const uint4* weights[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      weights[r] = reinterpret_cast<const uint4*>(ring_.Slot(next_ + min(r, rows - 1))) + lane;
    }
#pragma unroll
    for (int i = 0; i < int(kSlotBytes) / 16; i += 32) {
      // All lanes multiply, or none may; what lies beyond the row could be anything.
      uint4 w[kRows] = {};
      uint4 x = make_uint4(0, 0, 0, 0);
      if (i + lane < chunks) {
        x = input[i];
#pragma unroll
        for (int r = 0; r < kRows; ++r) w[r] = weights[r][i];
      }
#pragma unroll
      for (int r = 0; r < kRows; r += 2) {
        MmaK16(sums[r], w[r].x, w[r + 1].x, w[r].y, w[r + 1].y, x.x, x.y);
        MmaK16(sums[r + 1], w[r].z, w[r + 1].z, w[r].w, w[r + 1].w, x.z, x.w);
      }
    }
  }

  __device__ float Finish(const float (&sums)[kRows][4]) const {
    const int lane = ring_.lane();
    const int group = lane / 4;
    const bool diagonal = lane % 4 == group / 2;
    float mine = 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float* first = sums[r / 2 * 2] + r % 2 * 2;
      const float* second = sums[r / 2 * 2 + 1] + r % 2 * 2;
      const float part = group % 2 == 0 ? first[0] + second[0] : first[1] + second[1];
      const float sum = WarpSum(diagonal ? part : 0.0f);
      if (lane == r) mine = sum;
    }
    return mine;
  }

  Ring& ring_;
  RowOf row_of_;
  int first_;
  int next_;
  int rows_;
  int rows_left_;
  int pieces_;  // of a row
  uint32_t last_bytes_;
  int copies_;
  // The lane's next copy.
  int mine_;
  const std::byte* source_;
  uint32_t bytes_;
};

#endif

}  // namespace moed::backend
