// Scans over one row of logits [V]: its maximum, its exponentials, its largest entries. V reaches
// 200 000 and a row is scanned for every token generated, so the loops are written in lanes that a
// compiler vectorizes, and nothing sorts a whole row. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moed::model {

struct ScoredToken {
  int32_t id = 0;
  float score = 0;
};

// Higher score first; ties: lower id first.
inline bool RanksBefore(const ScoredToken& a, const ScoredToken& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

struct RowMaximum {
  float value = 0;
  int32_t id = 0;     // the lowest id that has it
  bool valid = true;  // false: the row holds a NaN or +infinity, or nothing above -infinity
};
RowMaximum FindMaximum(std::span<const float> row);

// out[i] = exp((row[i] - maximum) * inverse_temperature), relative error below 1e-6, 0 where that
// falls below 1e-37. Returns the sum. `out` may be `row`.
double Exponentials(std::span<const float> row, float maximum, float inverse_temperature,
                    std::span<float> out);

// The sum alone, at temperature 1.
double SumOfExponentials(std::span<const float> row, float maximum);

// The `count` highest of the row in the order of RanksBefore (all, if the row is shorter).
void SelectHighest(std::span<const float> row, int count, std::vector<ScoredToken>* highest);

// The lowest-ranked token of the smallest set of highest weights whose sum reaches
// `fraction` * total: the nucleus of top-p sampling. weights [V], none negative, adding up to
// total > 0.
ScoredToken NucleusBoundary(std::span<const float> weights, double total, double fraction);

}  // namespace moed::model
