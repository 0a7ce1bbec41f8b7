// Decode steps of a whole model on the GPU against the limit that memory sets, at several shares of
// experts in VRAM: the sum over layers of dense bytes / V + max(hot expert bytes / V, cold expert
// bytes / B), plus lm_head bytes / V, all in stored bytes. V is the rate at which a kernel reads
// VRAM; B what cold experts can come at: the link's, or on the hybrid cold path what link and CPU
// read at the same time. All rates are measured in the same run; hot and cold bytes are counted,
// not assumed. Then prefill of one chunk at the same shares. Random weights and tokens. Each line
// ends with the VRAM that dense weights, slots and KV cache take and that is in use in all.
//
// With MOED_BENCH_NO_LOOK_AHEAD set the CPU guesses nothing ahead.
//
// In one run: bf16 over the link, and each other combination of format and cold path that was asked
// for, at equal VRAM bytes, each line with its time over that of the first one. Formats take turns
// within a cold path, since memory's rates drift while a run goes on: their models must fit at
// once.
//
// usage: cuda_decode_bench [layers, default 12; 0: all] [context, default 512] [residencies in
// percent of the bf16 bytes, as 50,25, or all] [batches, or all] [formats, as bf16,bf12] [cold
// paths, as link,cpu,hybrid] [shape: qwen3-30b-a3b, olmoe, mixtral-8x7b, deepseek-v3]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_split.h"
#include "runtime/model/cold_path_choice.h"
#include "tests/bench/decode_model.h"
#include "tests/bench/decode_report.h"
#include "tests/bench/decode_shapes.h"
#include "tests/bench/memory_rates.h"

namespace moed {
namespace {

constexpr int kPrefillTokens = 4096;

struct Arguments {
  std::string shape;
  int layers = 0;
  int context = 0;
  std::vector<int> residencies;  // percent
  std::vector<int> batches;
  std::vector<std::string> formats;
  std::vector<std::string> cold_paths;
};

// "50,25" as {50, 25}; "all", or nothing, as `all`.
std::vector<int> NumbersOf(const char* argument, std::vector<int> all) {
  if (argument == nullptr || std::string(argument) == "all") return all;
  std::vector<int> numbers;
  for (const absl::string_view number : absl::StrSplit(argument, ',')) {
    numbers.push_back(std::atoi(std::string(number).c_str()));
  }
  return numbers;
}

Arguments ParseArguments(int argc, char** argv) {
  const auto argument = [&](int i, const char* fallback) { return i < argc ? argv[i] : fallback; };
  return {.shape = argument(7, kDefaultShape),
          .layers = std::atoi(argument(1, "12")),
          .context = std::atoi(argument(2, "512")),
          .residencies = NumbersOf(argument(3, nullptr), {100, 75, 50, 25, 0}),
          .batches = NumbersOf(argument(4, nullptr), {1, 8, 32, 64}),
          .formats = absl::StrSplit(argument(5, "bf16"), ','),
          .cold_paths = absl::StrSplit(argument(6, "link"), ',')};
}

backend::ColdPath PathOf(const std::string& name) {
  for (const auto path :
       {backend::ColdPath::kLink, backend::ColdPath::kCpu, backend::ColdPath::kHybrid}) {
    if (model::ColdPathName(path) == name) return path;
  }
  ABSL_RAW_LOG(FATAL, "cold paths are link, cpu and hybrid");
  return backend::ColdPath::kLink;
}

int LargestOf(const std::vector<int>& numbers) {
  return *std::max_element(numbers.begin(), numbers.end());
}

// Three half-lives of what ranks experts, if that takes no longer than a second: before, slots fill
// and experts change places more often than in a server that has run for a while.
void WarmUp(DecodeModel& model, int batch) {
  constexpr int kLeastSteps = 6;
  constexpr int kMostSteps = 96;
  constexpr double kMostSeconds = 1;
  double seconds = 0;
  for (int i = 0; i < kLeastSteps || (i < kMostSteps && seconds < kMostSeconds); ++i) {
    seconds += model.DecodeStep(batch);
  }
}

DecodeRun MeasureDecode(DecodeModel& model, double residency, int batch) {
  constexpr int kSteps = 25;
  WarmUp(model, batch);
  DecodeRun run = {.residency = residency,
                   .batch = batch,
                   .steps = kSteps,
                   .before = model.Stats(),
                   .after = {},
                   .neurons_before = model.Neurons(),
                   .neurons_after = {},
                   .cold_rates = {}};
  std::vector<double> seconds;
  for (int i = 0; i < kSteps; ++i) seconds.push_back(model.DecodeStep(batch));
  run.after = model.Stats();
  run.neurons_after = model.Neurons();
  run.cold_rates = model.Rates();
  std::nth_element(seconds.begin(), seconds.begin() + kSteps / 2, seconds.end());
  run.seconds = seconds[kSteps / 2];
  return run;
}

double MeasurePrefill(DecodeModel& model) {
  double best = 1e9;
  for (int i = 0; i < 3; ++i) best = std::min(best, model.Prefill());
  return best;
}

std::unique_ptr<DecodeModel> MakeModel(const Arguments& arguments, const model::ModelConfig& config,
                                       const std::string& format, const std::string& cold_path) {
  return std::make_unique<DecodeModel>(
      DecodeModelOptions{.config = config,
                         .context = arguments.context,
                         .largest_batch = LargestOf(arguments.batches),
                         .prefill_tokens = kPrefillTokens,
                         .largest_residency = LargestOf(arguments.residencies) / 100.0,
                         .bf12 = format == "bf12",
                         .cold_path = PathOf(cold_path)});
}

void RunColdPath(const Arguments& arguments, const model::ModelConfig& config,
                 const std::string& cold_path, DecodeReport& report) {
  std::vector<std::unique_ptr<DecodeModel>> models;
  for (const std::string& format : arguments.formats) {
    models.push_back(MakeModel(arguments, config, format, cold_path));
  }
  const auto in_turn = [&](const auto& measure) {
    for (size_t i = 0; i < models.size(); ++i) {
      measure(DecodeReport::Combination{arguments.formats[i], cold_path}, *models[i]);
    }
  };
  for (const int percent : arguments.residencies) {
    const double residency = percent / 100.0;
    const MemoryRates rates = MeasureMemoryRates(models.front()->backend());
    for (auto& model : models) model->SetResidency(residency);
    for (const int batch : arguments.batches) {
      in_turn([&](const DecodeReport::Combination& combination, DecodeModel& model) {
        report.PrintDecode(combination, MeasureDecode(model, residency, batch), rates, model);
      });
    }
    in_turn([&](const DecodeReport::Combination& combination, DecodeModel& model) {
      report.PrintPrefill(combination, residency, kPrefillTokens, MeasurePrefill(model), model);
    });
  }
}

void Run(const Arguments& arguments) {
  const auto config = ConfigOfShape(arguments.shape, arguments.layers);
  ABSL_RAW_CHECK(config.ok(), config.status().ToString().c_str());
  std::printf("%d layers, context %d, shape of %s\n", config->num_layers(), arguments.context,
              arguments.shape.c_str());
  DecodeReport report;
  for (const std::string& cold_path : arguments.cold_paths) {
    RunColdPath(arguments, *config, cold_path, report);
  }
}

}  // namespace
}  // namespace moed

int main(int argc, char** argv) { moed::Run(moed::ParseArguments(argc, argv)); }
