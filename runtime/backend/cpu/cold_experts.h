// The CPU's part of a layer's cold experts (cold_mailbox.h): weighted sums of experts, or pieces of
// them, straight from their blobs. Runs of pieces are shared out among the threads as these get
// free, long ones first; a piece's weights are read once for all tokens that chose it. Each thread
// adds into sums of its own, so their order, and the last bits of the result, may differ from run
// to run. One call at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/backend/cold_mailbox.h"
#include "runtime/backend/cpu/experts_kernels.h"
#include "runtime/backend/cpu/experts_scratch.h"
#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

class ColdExperts {
 public:
  // `pool` must outlive this.
  ColdExperts(ThreadPool& pool, const ExpertFormat& format);

  // mailbox.sums[r] = sum over the request's items and their pairs of row r of
  // weight * expert(mailbox.x[r]), for r < rows. `experts`: the layer's blobs.
  void Run(const std::byte* experts, const ColdMailbox& mailbox);

 private:
  struct Piece {
    const ColdItem* item;
    int64_t first;
    int64_t count;
  };
  // One thread's memory: a kernel's scratch and output [limit, width] each, sums [rows, width].
  struct Worker {
    float* scratch;
    float* output;
    float* sums;
  };

  Worker WorkerAt(int worker) const;
  void ListPieces(const ColdMailbox& mailbox);
  void ListRuns();
  void RunPiece(const std::byte* experts, const ColdMailbox& mailbox, const Piece& piece,
                int worker);
  void AddUp(const ColdMailbox& mailbox, int64_t row, int64_t column, int64_t columns) const;

  ThreadPool& pool_;
  const ExpertFormat format_;
  const ExpertKernels& kernels_;
  std::vector<Piece> pieces_;
  std::vector<std::pair<int64_t, int64_t>> runs_;  // of pieces, [begin, end)
  Scratch<float> memory_;
  int64_t worker_floats_ = 0;        // of each worker in memory_
  std::vector<uint8_t> has_worked_;  // [threads] in this call: its sums hold something
};

}  // namespace moed::backend
