// Decides how prefill shares the runner with decodes, from the times that steps have taken: whether
// a prefill joins their step or becomes a pass (model::StepRunner), and how long a pass may run
// between two of their steps. Decodes then wait for each other's tokens at most three times as long
// as alone, and one layer of the pass; the pass gets two thirds of the time or more. Nothing is
// assumed of a device, and every measurement corrects the next decision. Engine thread only.
#pragma once

#include <array>
#include <cstdint>

namespace moed::engine {

class PassPacer {
 public:
  // A step of `decodes` sequences that decode and of `prefill_tokens` others took so long.
  void ObserveStep(int decodes, int64_t prefill_tokens, double seconds);
  // A pass took so long, steps between its slices not counted.
  void ObservePass(int64_t tokens, double seconds) { ObservePrefill(tokens, seconds); }

  // How many tokens of prefill may join a step of decodes.
  int64_t MaxJoinedTokens() const;
  // A slice of a pass has run for so long: may it run another layer before decodes go on?
  bool MayGoOn(double slice_seconds) const { return slice_seconds < kSliceOfDecode * decode_; }

 private:
  // Of the time of a decode step, so that a slice and the step make at most three of it.
  static constexpr double kSliceOfDecode = 2;
  // Sizes of prefill from 2^i to below 2^(i + 1) tokens.
  static constexpr int kSizes = 24;

  void ObservePrefill(int64_t tokens, double seconds);

  double decode_ = 0;  // seconds of a step of decodes alone; 0: not known
  std::array<double, kSizes> token_seconds_ = {};  // of prefill by size; 0: not known
};

}  // namespace moed::engine
