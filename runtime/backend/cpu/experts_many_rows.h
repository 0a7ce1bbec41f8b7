// Experts that many tokens chose: limited by arithmetic. Three passes, each shared out among the
// threads in blocks: the rows of x are packed into panels; gate and up rows times panels, then the
// activation, give [rows, I] in bf16; that times the packed down rows gives the output. A block's
// bits do not depend on how the work is cut.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/experts_kernels.h"
#include "runtime/backend/cpu/experts_scratch.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

class ManyRowsExperts {
 public:
  ManyRowsExperts(ThreadPool& pool, const ExpertKernels& kernels);

  // Every item has at least one row.
  void Run(const ExpertsCall& call, std::span<const ExpertWork> items);

 private:
  // Rows of one expert in the running wave.
  struct Segment {
    const std::byte* blob;
    std::span<const int32_t> rows;
    int64_t first_panel;  // in panels_; its rows' activations begin at row 16 * first_panel
  };
  // Rows [row, row + rows) of a segment, against neurons or columns from `begin` on.
  struct Block {
    const Segment* segment;
    int64_t row;
    int64_t rows;
    int64_t begin;
    int64_t count;
  };

  void RunWave(const ExpertsCall& call);
  void CutBlocks(int64_t block_rows, int64_t extent, int64_t block_extent);
  void Pack(const ExpertsCall& call, const Block& block);
  void MultiplyPart(const ExpertsCall& call, const Block& block, ExpertPart part, BFloat16* scratch,
                    float* sums);
  void GateUp(const ExpertsCall& call, const Block& block, int worker);
  void Down(const ExpertsCall& call, const Block& block, int worker);

  ThreadPool& pool_;
  const ExpertKernels& kernels_;
  std::vector<Segment> segments_;
  std::vector<Block> blocks_;
  Scratch<BFloat16> panels_;              // [panels][width / 2][16][2]
  Scratch<BFloat16> activations_;         // [16 * panels][padded I]
  std::vector<Scratch<float>> products_;  // one a worker, as the next
  std::vector<Scratch<BFloat16>> values_;
};

}  // namespace moed::backend
