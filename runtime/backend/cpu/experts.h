// The Experts op on the CPU (backend.h states shapes). Experts with few rows go through
// experts_few_rows, the others through experts_many_rows; both cut an expert so that its output
// depends neither on the other experts of the call nor on the number of threads. Owned by
// CpuBackend; one call at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/experts_few_rows.h"
#include "runtime/backend/cpu/experts_kernels.h"
#include "runtime/backend/cpu/experts_many_rows.h"
#include "runtime/backend/cpu/experts_scratch.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

class ExpertsOp {
 public:
  // `pool` and `kernels` outlive this.
  explicit ExpertsOp(ThreadPool& pool, const ExpertKernels& kernels = BestExpertKernels());

  // For each work item, out[row] = expert(x[row / top_k]) for its rows. x [T, H] bf16, out
  // [T * top_k, H] f32.
  void Run(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k, const Tensor& x,
           const Tensor& out);

 private:
  const BFloat16* PadRows(const Tensor& x, int64_t width);

  ThreadPool& pool_;
  const ExpertKernels& kernels_;
  FewRowsExperts few_rows_;
  ManyRowsExperts many_rows_;
  std::vector<ExpertWork> few_;  // of the running call
  std::vector<ExpertWork> many_;
  Scratch<BFloat16> padded_x_;
};

}  // namespace moed::backend
