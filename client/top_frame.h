// The picture that moedctl top draws: totals, then a line for each layer. Pure.
#pragma once

#include <string>

#include "client/expert_rates.h"
#include "proto/moed/v1/experts.pb.h"

namespace moed::client {

struct TopLayout {
  int columns = 100;
  int rows = 0;  // 0: all layers, however many
  bool color = false;
};

// Lines that end in '\n', none wider than the layout, no more than its rows. Layers that do not fit
// are counted in the last line.
std::string TopFrame(const v1::ExpertStats& now, const ExpertRates& rates, const TopLayout& layout);

}  // namespace moed::client
