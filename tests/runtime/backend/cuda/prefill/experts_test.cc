// A layer's experts over the rows that prompts give them, in both formats, against the CPU
// backend's.
#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"
#include "tests/runtime/backend/cuda/both_backends_test.h"

namespace moed::backend {
namespace {

using Shapes = std::vector<std::pair<int, int>>;

class CudaExpertsTest : public BothBackendsTest {
 protected:
  // Two experts or more of every shape, with as many rows as each of `rows_of` says.
  void ExpectSameExperts(ExpertFormatKind kind, const Shapes& shapes,
                         const std::vector<std::vector<int>>& rows_of);
};

void CudaExpertsTest::ExpectSameExperts(ExpertFormatKind kind, const Shapes& shapes,
                                        const std::vector<std::vector<int>>& rows_of) {
  for (const auto& [hidden, intermediate] : shapes) {
    const ExpertFormat bf16(ExpertFormatKind::kBF16, hidden, intermediate);
    const bool encodes = kind == ExpertFormatKind::kBF12;
    const ExpertFormat format(kind, hidden, intermediate,
                              encodes ? Bf12TileEscapeCapacity(200) : 0);
    for (const std::vector<int>& counts : rows_of) {
      const int tokens = (std::accumulate(counts.begin(), counts.end(), 0) + 1) / 2;
      ExpectSame(
          [&, hidden = hidden, intermediate = intermediate](Backend& backend,
                                                            DeviceTensors& memory) {
            std::vector<std::vector<int32_t>> rows;
            std::vector<Buffer> blobs;
            std::vector<ExpertWork> work;
            int32_t next = 0;
            for (size_t e = 0; e < counts.size(); ++e) {
              rows.emplace_back();
              for (int i = 0; i < counts[e]; ++i) rows.back().push_back(next++);
              auto gate = RandomBFloat16s(hidden * intermediate, 10 * e, 0.2f);
              auto up = RandomBFloat16s(hidden * intermediate, 10 * e + 1, 0.2f);
              auto down = RandomBFloat16s(hidden * intermediate, 10 * e + 2, 0.2f);
              blobs.push_back(
                  backend.Allocate(format.blob_bytes(), MemoryKind::kHost, "a blob").value());
              std::vector<std::byte> plain(bf16.blob_bytes());
              bf16.Encode(Tensor(gate.data(), DType::kBF16, {intermediate, hidden}),
                          Tensor(up.data(), DType::kBF16, {intermediate, hidden}),
                          Tensor(down.data(), DType::kBF16, {hidden, intermediate}), plain);
              const std::span<std::byte> blob(blobs.back().data(), format.blob_bytes());
              if (encodes) {
                EXPECT_TRUE(EncodeBf12(bf16, plain, format, blob));
              } else {
                std::copy(plain.begin(), plain.end(), blob.begin());
              }
            }
            for (size_t e = 0; e < counts.size(); ++e) work.push_back({blobs[e].data(), rows[e]});
            const Tensor x =
                memory.Put(RandomBFloat16s(tokens * hidden, 5), DType::kBF16, {tokens, hidden});
            const Tensor out = memory.Make(DType::kF32, {2 * tokens, hidden});
            backend.Experts(format, work, /*top_k=*/2, x, out);
            return memory.Get<float>(out);
          },
          5e-3);
    }
  }
}

// Few rows an expert and many, shapes of whole tiles and others, slices beyond 2048 columns.
TEST_F(CudaExpertsTest, ExpertsAtEveryRowCountAndShape) {
  for (const auto kind : {ExpertFormatKind::kBF16, ExpertFormatKind::kBF12}) {
    ExpectSameExperts(kind, {{64, 24}, {256, 64}, {2048, 40}, {2880, 48}, {36, 10}},
                      {{1}, {3, 5}, {10, 20}, {50, 7}, {150, 30}});
  }
}

// Around the sizes of the products' tiles.
TEST_F(CudaExpertsTest, ExpertsWhoseRowsFillNoTile) {
  for (const auto kind : {ExpertFormatKind::kBF16, ExpertFormatKind::kBF12}) {
    ExpectSameExperts(kind, {{2880, 64}, {320, 720}, {200, 104}},
                      {{24, 1, 63, 64, 65}, {96, 97, 128, 129}, {160, 161, 300}});
  }
}

}  // namespace
}  // namespace moed::backend
