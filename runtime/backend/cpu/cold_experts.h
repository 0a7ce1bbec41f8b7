// The CPU's part of a layer's cold experts (cold_mailbox.h): weighted sums of experts, or pieces of
// them, straight from their blobs. A thread first takes the pieces whose weights it has fetched
// (cold_fetch.h); the others are shared out among the threads as these get free. A thread knows its
// next piece ahead, so that the piece's first weights are on their way while it computes the one
// before. A piece's weights are read once for all tokens that chose it. Each thread adds into sums
// of its own, so their order, and the last bits of the result, may differ from run to run. One call
// at a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "runtime/backend/cold_mailbox.h"
#include "runtime/backend/cpu/cold_fetch.h"
#include "runtime/backend/cpu/experts_kernels.h"
#include "runtime/backend/cpu/experts_scratch.h"
#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/device_experts.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

class ColdExperts {
 public:
  // `pool` must outlive this.
  ColdExperts(ThreadPool& pool, const ExpertFormat& format);

  // mailbox.sums[r] = sum over the request's items and their pairs of row r of
  // weight * expert(mailbox.x[r]), for r < rows. `experts`: the layer's blobs. What threads have
  // fetched of them they compute first. Calls `answer` once, by any thread, when all sums are
  // there; then the threads fetch ahead, until `stop`, and it returns what they computed.
  ColdNeurons Run(const std::byte* experts, const ColdMailbox& mailbox, ColdFetch& fetch,
                  absl::FunctionRef<void()> answer, absl::FunctionRef<bool()> stop);

 private:
  struct Call {
    const std::byte* experts;
    const ColdMailbox& mailbox;
    // Of the request, of which a thread that comes late must not read: after the answer it changes.
    std::span<const ColdItem> items;
    int64_t rows;
    int64_t piece_neurons;
    int64_t num_pieces;
    uint64_t number;
    ColdFetch& fetch;
    absl::FunctionRef<void()> answer;
  };
  struct Piece {
    const ColdItem* item = nullptr;  // null: there is none
    int64_t first = 0;
    int64_t count = 0;
    bool fetched = false;  // ahead
  };
  class PieceTaker;
  // One thread's memory: a kernel's scratch [limit, width], sums [rows, width].
  struct Worker {
    float* scratch;
    float* sums;
    const ColdItem* prepared = nullptr;  // whose x the scratch is of
  };

  Worker WorkerAt(int worker) const;
  void Reserve(const Call& call);
  void RunAndAdd(const Call& call, int worker);
  int64_t RunPieces(const Call& call, int worker);
  void WaitForPieces(const Call& call) const;
  const std::byte* WeightsOf(const Call& call, const Piece& piece) const;
  void RunPiece(const Call& call, const Piece& piece, const std::byte* next, Worker* memory);
  void AddUp(const Call& call, int64_t row, int64_t column, int64_t columns) const;

  ThreadPool& pool_;
  const ExpertFormat format_;
  const ExpertKernels& kernels_;
  Scratch<float> memory_;
  int64_t worker_floats_ = 0;        // of each worker in memory_
  std::vector<uint8_t> has_worked_;  // [threads] in this call: its sums hold something
  std::vector<ColdItem> items_;      // of this call
  // Each piece's: the number of the last call in which a thread took it.
  std::vector<std::atomic<uint64_t>> claims_;
  uint64_t calls_ = 0;
  alignas(64) std::atomic<int64_t> next_piece_{0};
  alignas(64) std::atomic<int64_t> pieces_done_{0};
  alignas(64) std::atomic<int64_t> next_sum_{0};
  alignas(64) std::atomic<int64_t> sums_done_{0};
  std::atomic<int64_t> neurons_fetched_{0};  // of the pieces done
};

}  // namespace moed::backend
