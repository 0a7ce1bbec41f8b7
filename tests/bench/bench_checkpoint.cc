#include "tests/bench/bench_checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <random>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/convert_checkpoint.h"

namespace moed::model {

int Layers() {
  const char* layers = std::getenv("MOED_BENCH_LAYERS");
  return layers == nullptr ? 4 : std::max(1, std::atoi(layers));
}

BenchCheckpoint::BenchCheckpoint(bool with_weights)
    : path_(std::filesystem::temp_directory_path() /
            absl::StrCat("moed_model_bench_", getpid(), with_weights ? "_full" : "")) {
  std::filesystem::create_directories(path_);
  std::ofstream(path_ / "config.json") << absl::StrFormat(
      R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
          "hidden_size": %d, "vocab_size": %d, "num_hidden_layers": %d,
          "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128,
          "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_experts": %d,
          "num_experts_per_tok": 8, "norm_topk_prob": false, "moe_intermediate_size": %d})",
      kHidden, kVocabulary, Layers(), kExperts, kIntermediate);
  if (with_weights) WriteWeights();
}

BenchCheckpoint::~BenchCheckpoint() { std::filesystem::remove_all(path_); }

void BenchCheckpoint::Add(const std::string& name, const std::vector<int64_t>& shape) {
  int64_t values = 1;
  std::string dims;
  for (int64_t extent : shape) {
    values *= extent;
    absl::StrAppend(&dims, dims.empty() ? "" : ",", extent);
  }
  absl::StrAppend(&header_, header_.empty() ? "{" : ",", "\"", name,
                  R"(":{"dtype":"BF16","shape":[)", dims, R"(],"data_offsets":[)", offset_, ",",
                  offset_ + 2 * values, "]}");
  offset_ += 2 * values;
}

void BenchCheckpoint::AddLayer(int layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
    Add(absl::StrCat(prefix, norm, ".weight"), {kHidden});
  }
  for (const char* projection : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
    Add(absl::StrCat(prefix, "self_attn.", projection, ".weight"), {kHidden, kHidden});
  }
  Add(prefix + "self_attn.q_norm.weight", {128});
  Add(prefix + "self_attn.k_norm.weight", {128});
  Add(prefix + "mlp.gate.weight", {kExperts, kHidden});
  for (int expert = 0; expert < kExperts; ++expert) {
    const std::string name = absl::StrCat(prefix, "mlp.experts.", expert, ".");
    Add(name + "gate_proj.weight", {kIntermediate, kHidden});
    Add(name + "up_proj.weight", {kIntermediate, kHidden});
    Add(name + "down_proj.weight", {kHidden, kIntermediate});
  }
}

void BenchCheckpoint::WriteWeights() {
  Add("model.embed_tokens.weight", {kVocabulary, kHidden});
  Add("model.norm.weight", {kHidden});
  Add("lm_head.weight", {kVocabulary, kHidden});
  for (int layer = 0; layer < Layers(); ++layer) AddLayer(layer);
  header_ += "}";
  header_.resize((header_.size() + 7) / 8 * 8, ' ');
  std::ofstream file(path_ / "model.safetensors", std::ios::binary);
  const uint64_t header_bytes = header_.size();
  file.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  file << header_;
  // Noise of about 0.03, the same few megabytes again and again.
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.03f);
  std::vector<backend::BFloat16> noise(1 << 21);
  for (auto& value : noise) value = backend::ToBFloat16(normal(random));
  for (int64_t left = offset_; left > 0;) {
    const int64_t bytes = std::min<int64_t>(left, 2 * static_cast<int64_t>(noise.size()) - 62);
    file.write(reinterpret_cast<const char*>(noise.data()), bytes);
    left -= bytes;
  }
}

ConvertedCheckpoint::ConvertedCheckpoint(const BenchCheckpoint& source)
    : directory_(source.directory() + "_bf12") {
  const auto checkpoint = OpenCheckpoint({.directory = source.directory()});
  ABSL_RAW_CHECK(checkpoint.ok(), "the bench's own checkpoint must open");
  const auto start = std::chrono::steady_clock::now();
  const auto result = ConvertCheckpoint(**checkpoint, {.destination = directory_});
  ABSL_RAW_CHECK(result.ok(), result.status().ToString().c_str());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  bytes_per_second_ = static_cast<double>(result->bf16_bytes) / seconds.count();
}

ConvertedCheckpoint::~ConvertedCheckpoint() { std::filesystem::remove_all(directory_); }

}  // namespace moed::model
