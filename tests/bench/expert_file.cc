#include "tests/bench/expert_file.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/backend/dtype.h"

namespace moed::model {
namespace {

// The header of a safetensors file, and how many bytes of values follow it.
struct Layout {
  std::string header;
  int64_t bytes = 0;

  void Add(const std::string& name, const std::string& dims, int64_t values) {
    absl::StrAppend(&header, header.empty() ? "{" : ",", "\"model.", name,
                    R"(":{"dtype":"BF16","shape":)", dims, R"(,"data_offsets":[)", bytes, ",",
                    bytes + 2 * values, "]}");
    bytes += 2 * values;
  }
};

void AddDense(const ExpertShape& shape, Layout* layout) {
  const int64_t h = shape.hidden;
  const std::string row = absl::StrCat("[", h, "]");
  layout->Add("embed_tokens.weight", absl::StrCat("[1,", h, "]"), h);
  layout->Add("norm.weight", row, h);
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
    layout->Add(absl::StrCat("layers.0.", norm, ".weight"), row, h);
  }
  for (const char* projection : {"q", "k", "v"}) {
    layout->Add(absl::StrCat("layers.0.self_attn.", projection, "_proj.weight"),
                absl::StrCat("[2,", h, "]"), 2 * h);
  }
  layout->Add("layers.0.self_attn.o_proj.weight", absl::StrCat("[", h, ",2]"), 2 * h);
  for (const char* norm : {"q", "k"}) {
    layout->Add(absl::StrCat("layers.0.self_attn.", norm, "_norm.weight"), "[2]", 2);
  }
  layout->Add("layers.0.mlp.gate.weight", absl::StrCat("[", shape.experts, ",", h, "]"),
              shape.experts * h);
}

void AddExperts(const ExpertShape& shape, Layout* layout) {
  const int64_t h = shape.hidden;
  const int64_t i = shape.intermediate;
  for (int expert = 0; expert < shape.experts; ++expert) {
    for (const char* part : {"gate", "up", "down"}) {
      const bool is_down = part[0] == 'd';
      layout->Add(absl::StrCat("layers.0.mlp.experts.", expert, ".", part, "_proj.weight"),
                  absl::StrCat("[", is_down ? h : i, ",", is_down ? i : h, "]"), h * i);
    }
  }
}

// A megabyte of normal weights.
std::vector<backend::BFloat16> NormalValues() {
  std::vector<backend::BFloat16> values(1 << 19);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  for (backend::BFloat16& value : values) value = backend::ToBFloat16(normal(random));
  return values;
}

}  // namespace

ExpertFile::ExpertFile(const ExpertShape& shape)
    : path_(std::filesystem::temp_directory_path() / absl::StrCat("moed_expert_file_", getpid())) {
  std::filesystem::create_directories(path_);
  WriteConfig(shape);
  WriteTensors(shape);
}

ExpertFile::~ExpertFile() { std::filesystem::remove_all(path_); }

void ExpertFile::WriteConfig(const ExpertShape& shape) const {
  std::ofstream(path_ / "config.json") << absl::StrFormat(
      R"({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": %d, "vocab_size": 1,
          "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 2,
          "max_position_embeddings": 16, "num_experts": %d, "num_experts_per_tok": 1,
          "moe_intermediate_size": %d, "tie_word_embeddings": true})",
      shape.hidden, shape.experts, shape.intermediate);
}

void ExpertFile::WriteTensors(const ExpertShape& shape) const {
  Layout layout;
  AddDense(shape, &layout);
  AddExperts(shape, &layout);
  layout.header += "}";
  std::ofstream file(path_ / "model.safetensors", std::ios::binary);
  const uint64_t header_bytes = layout.header.size();
  file.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  file << layout.header;
  const std::vector<backend::BFloat16> block = NormalValues();
  const auto block_bytes = static_cast<int64_t>(block.size() * sizeof(block[0]));
  for (int64_t written = 0; written < layout.bytes; written += block_bytes) {
    file.write(reinterpret_cast<const char*>(block.data()),
               std::min(block_bytes, layout.bytes - written));
  }
}

}  // namespace moed::model
