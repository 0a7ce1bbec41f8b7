// The inner products of the Experts op, once for each instruction set. They know neither experts'
// blobs nor threads: experts_few_rows and experts_many_rows cut the work and call them. Immutable;
// any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backend/dtype.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

// Neurons [first, first + count) of an expert.
struct ExpertNeurons {
  const ExpertFormat& format;
  const std::byte* blob = nullptr;
  int64_t first = 0;
  int64_t count = 0;
  // What the thread computes after these, fetched while it computes the last of them; null: what
  // lies behind.
  const std::byte* next = nullptr;
};

// The rows of x that chose an expert, and the sums that its neurons' part of their output is added
// to. `scratch` holds [few_rows_limit, width]; it and each y[r] are aligned to vectors.
struct FewRows {
  const BFloat16* const* x = nullptr;  // x[r] points at `width` values
  const float* weights = nullptr;      // [num] factors of the output; null: 1
  int num = 0;
  int64_t width = 0;  // format.row_values()
  float* scratch = nullptr;
  float* const* y = nullptr;  // y[r] points at `width` sums, in the order of the kernels' table
  bool prepared = false;      // scratch is as the last call, for the same x, left it
};

// C = A B or C += A B with bf16 factors and float32 sums. An element of C is one chain of sums over
// the depth in rising order: its bits depend neither on how many rows and panels a call has nor on
// where they stand.
struct PanelMultiply {
  const BFloat16* a = nullptr;  // [rows, depth], a_stride values from row to row
  int64_t a_stride = 0;
  int64_t rows = 0;
  int64_t depth = 0;                 // a multiple of 32
  const BFloat16* panels = nullptr;  // B [depth, num_panels * 16], laid out as in panel.h
  int64_t panel_stride = 0;          // values from panel to panel
  int64_t num_panels = 0;
  float* c = nullptr;  // [rows, num_panels * 16], c_stride floats from row to row
  int64_t c_stride = 0;
  bool accumulate = false;
};

// The most rows that any table's `few_rows` takes.
constexpr int kMaxFewRows = 16;
// Neurons of a tile of the kernels that multiply in tiles.
constexpr int64_t kAmxTileNeurons = 16;
// Sums change places only within so many.
constexpr int64_t kOrderedSums = 32;

struct ExpertKernels {
  const char* name;
  // Experts with at most so many rows go through `few_rows`, others through `multiply`.
  int few_rows_limit;
  // From so many rows on `few_rows` is fastest with whole multiples of kAmxTileNeurons.
  int tile_rows;
  // y[r][h] += weights[r] * sum over neurons i of act[r][i] * down[i][h], act from the gate and up
  // rows as in experts_activation.h. Reads the weights once, in either format.
  void (*few_rows)(const ExpertNeurons& neurons, const FewRows& rows);
  // Brings `count` of the sums that few_rows left, from a multiple of kOrderedSums on, into the
  // order of their columns. `count` is a multiple of kOrderedSums, too.
  void (*order_sums)(float* sums, int64_t count);
  void (*multiply)(const PanelMultiply& product);
};

// Runs everywhere, in Highway's best target of this CPU.
const ExpertKernels& PortableExpertKernels();
// Null where CPU or kernel lack the instructions (cpu_features.h).
const ExpertKernels* Avx512Bf16ExpertKernels();
const ExpertKernels* AmxExpertKernels();

// The fastest of the above.
const ExpertKernels& BestExpertKernels();

}  // namespace moed::backend
