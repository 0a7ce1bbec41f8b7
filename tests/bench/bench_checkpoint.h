// The model that model_bench runs: OLMoE-1B-7B's dimensions in a config of family qwen3_moe, fewer
// layers, random weights; as a folder that lives as long as its object.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace moed::model {

inline constexpr int64_t kHidden = 2048;
inline constexpr int64_t kIntermediate = 1024;
inline constexpr int kExperts = 64;
inline constexpr int kVocabulary = 50304;

// Of the environment's MOED_BENCH_LAYERS, or 4.
int Layers();

// config.json and, if asked, all weights as bf16 noise.
class BenchCheckpoint {
 public:
  explicit BenchCheckpoint(bool with_weights);
  ~BenchCheckpoint();

  std::string directory() const { return path_.string(); }

 private:
  // To the header: behind the tensors before.
  void Add(const std::string& name, const std::vector<int64_t>& shape);
  void AddLayer(int layer);
  void WriteWeights();

  std::filesystem::path path_;
  std::string header_;
  int64_t offset_ = 0;
};

// The same in bf12, beside the one it was made from.
class ConvertedCheckpoint {
 public:
  explicit ConvertedCheckpoint(const BenchCheckpoint& source);
  ~ConvertedCheckpoint();

  const std::string& directory() const { return directory_; }
  // At which it was made, of bf16.
  double bytes_per_second() const { return bytes_per_second_; }

 private:
  std::string directory_;
  double bytes_per_second_ = 0;
};

}  // namespace moed::model
