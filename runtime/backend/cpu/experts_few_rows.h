// Experts that few tokens chose: limited by reading their weights. Each expert is cut along its
// neurons into pieces whose number depends on its shape and rows alone; a thread that is free takes
// the next piece and reads it once for all rows. The pieces' partial outputs are then added in
// order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/experts_kernels.h"
#include "runtime/backend/cpu/experts_scratch.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

class FewRowsExperts {
 public:
  FewRowsExperts(ThreadPool& pool, const ExpertKernels& kernels);

  // Every item has 1 to kernels.few_rows_limit rows.
  void Run(const ExpertsCall& call, std::span<const ExpertWork> items);

 private:
  // Neurons [first, first + count) of an expert; their part of its output is [rows, width].
  struct Piece {
    const ExpertWork* item;
    int64_t first;
    int64_t count;
    int64_t partial;  // where it lies in partials_
  };
  // One output row: `count` partials, `stride` floats apart.
  struct Sum {
    float* out;
    int64_t partial;
    int64_t stride;
    int64_t count;
  };

  int64_t AddPieces(const ExpertsCall& call, const ExpertWork& item, int64_t partial);
  void RunPieces(const ExpertsCall& call, int64_t num_floats);

  ThreadPool& pool_;
  const ExpertKernels& kernels_;
  std::vector<Piece> pieces_;
  std::vector<Sum> sums_;
  Scratch<float> partials_;
  Scratch<float> kernel_scratch_;
};

}  // namespace moed::backend
