// A single token's experts, chosen from the router's logits, and divided where the CPU takes part,
// by each block of an expert kernel for itself, which costs less than a launch and the list that it
// would leave. One block leaves the choice in the trace, and the one that comes last changes the
// table. What is the CPU's is token_mail.cuh's.
#pragma once

#include "runtime/backend/cuda/experts/neuron_tasks.cuh"
#include "runtime/backend/cuda/plan/cold_path.h"
#include "runtime/backend/cuda/plan/cold_post.cuh"
#include "runtime/backend/cuda/plan/expert_place.cuh"
#include "runtime/backend/cuda/plan/token_division.cuh"
#include "runtime/backend/cuda/primitives/last_block.cuh"
#include "runtime/backend/cuda/routing/route_token.cuh"

namespace moed::backend {

// By kThreads of a block; in shared memory.
template <int kThreads>
struct ChosenExperts {
  static constexpr int kPerThread = (kMostChoiceExperts + kThreads - 1) / kThreads;
  static_assert(kPerThread <= 2);

  // A thread's experts, every kThreads-th.
  struct Ahead {
    ExpertTableEntry entries[kPerThread];
    bool has_token = false;

    // The router may still run.
    __device__ void Load(const TokenChoice& choice) {
      has_token = choice.plan.positions[0] >= 0;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const int e = i * kThreads + threadIdx.x;
        if (e < choice.spec.num_experts) entries[i] = choice.plan.layer.entries[e];
      }
    }
  };

  alignas(16) uint32_t orders[kMostChoiceExperts];  // of the logits
  // By rank.
  int32_t expert[kMaxNeuronTasks];
  float logit[kMaxNeuronTasks];
  struct {
    int32_t slot;
    uint32_t generation;
    uint32_t fill_allowed;
  } entry[kMaxNeuronTasks];
  struct {
    ExpertUseKind kind;
    int32_t slot;
    uint32_t generation;
    int32_t cpu_neurons;
    int32_t former;  // of a slot that it fills
  } use[kMaxNeuronTasks];
  int task[kMaxNeuronTasks];  // negative: none
  int item[kMaxNeuronTasks];  // of the CPU's; negative: none
  bool any_nan;
  NeuronTiles tiles;
  bool any_fillable;
  int offers_left;  // with any_fillable

  // All of a task but its weight. `x`: [1, hidden].
  __device__ NeuronTiles Choose(const TokenChoice& choice, const Ahead& ahead,
                                const __nv_bfloat16* x, NeuronTasks* out) {
    const ColdState* const state = choice.mail.state;
    const uint32_t link_share = state == nullptr ? kAllOverLink : state->step.link_share;
    const int num_offered = *choice.plan.layer.num_offered;
    Rank(choice, ahead);
    __syncthreads();
    if (threadIdx.x < 32) {
      Place(choice.plan, ahead.has_token, link_share, num_offered, out);
    } else if (Records() && MayMail(choice)) {
      CopyIntoMailbox(choice.mail.mailbox, x, 1, threadIdx.x - 32, kThreads - 32);
    }
    __syncthreads();
    return tiles;
  }

  // The weights, for which reads of experts need not wait. A barrier must follow. Returns that of
  // rank threadIdx.x.
  __device__ float Weigh(const TokenChoice& choice, NeuronTasks* out) const {
    if (threadIdx.x >= 32) return 0.0f;
    const int lane = threadIdx.x;
    const float weight = WeightOf(choice.spec);
    if (lane >= choice.spec.top_k) return 0.0f;
    if (task[lane] >= 0) out->weight[task[lane]] = weight;
    if (Records()) {
      choice.ids[lane] = expert[lane];
      choice.weights[lane] = weight;
    }
    return weight;
  }

  // Leaves what was chosen in the trace and the table. All threads of all blocks call it.
  __device__ void Record(const TokenChoice& choice) const {
    const PlanExpertsArguments& plan = choice.plan;
    if (Records()) {
#pragma unroll 1
      for (int e = threadIdx.x; e < plan.layer.num_experts; e += kThreads) {
        ExpertUse found;
#pragma unroll 1
        for (int r = 0; r < plan.top_k; ++r) {
          if (expert[r] == e) found = UseOf(r);
        }
        plan.layer.uses[e] = found;
      }
    }
    // All others have read the table then.
    if (!any_fillable || !LastBlock(choice.arrived, gridDim.x)) return;
    if (const int r = threadIdx.x; r < plan.top_k) {
      MarkUse(plan, expert[r], entry[r].fill_allowed, UseOf(r), use[r].former);
    }
    if (threadIdx.x == 0) *plan.layer.num_offered = offers_left;
  }

 private:
  __device__ static bool Records() { return blockIdx.x == gridDim.x - 1; }
  __device__ ExpertUse UseOf(int rank) const {
    return {use[rank].kind, use[rank].slot, use[rank].generation, use[rank].cpu_neurons};
  }

  // Whether the CPU may have a part; not where it may still be reading what it did not answer.
  __device__ bool MayMail(const TokenChoice& choice) const {
    if (choice.mail.state == nullptr || MailFailed(*choice.mail.state)) return false;
    bool any_cold = false;
#pragma unroll 1
    for (int r = 0; r < choice.plan.top_k; ++r) any_cold = any_cold || entry[r].slot < 0;
    return any_cold;
  }

  // Each expert's rank is the number of those before it.
  __device__ void Rank(const TokenChoice& choice, const Ahead& ahead) {
    const int experts = choice.spec.num_experts;
    float logits[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int e = i * kThreads + threadIdx.x;
      logits[i] = e < experts ? choice.logits[e] : 0.0f;
    }
    bool nan = false;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int e = i * kThreads + threadIdx.x;
      if (e < kMostChoiceExperts) orders[e] = e < experts ? OrderOf(RankValue(logits[i])) : 0;
      nan = nan || isnan(logits[i]);
    }
    nan = __syncthreads_or(nan);
    if (threadIdx.x == 0) any_nan = nan;
#pragma unroll 1
    for (int i = 0; i < kPerThread; ++i) {
      const int e = i * kThreads + threadIdx.x;
      if (e >= experts) break;
      const uint32_t mine = orders[e];
      int rank = 0;
#pragma unroll 4
      for (int j = 0; j < experts; j += 4) {  // beyond the last: 0, which is before none
        const uint4 others = *reinterpret_cast<const uint4*>(orders + j);
        rank += others.x > mine - (j < e);  // no order of a logit is 0
        rank += others.y > mine - (j + 1 < e);
        rank += others.z > mine - (j + 2 < e);
        rank += others.w > mine - (j + 3 < e);
      }
      if (rank >= choice.spec.top_k) continue;
      expert[rank] = e;
      logit[rank] = i == 0 ? logits[0] : logits[kPerThread - 1];
      const ExpertTableEntry& found = i == 0 ? ahead.entries[0] : ahead.entries[kPerThread - 1];
      entry[rank] = {found.slot, found.generation, found.fill_allowed};
    }
  }

  // By a warp, lane r the expert of rank r: as RouteToken.
  __device__ float WeightOf(const RouterSpec& spec) const {
    const int lane = threadIdx.x;
    const bool sigmoid = spec.scoring == RouterSpec::Scoring::kSigmoid;
    const float maximum = logit[0];
    float score = 0.0f;
    if (lane < spec.top_k) {
      score = sigmoid ? 1.0f / (1.0f + __expf(-logit[lane])) : __expf(logit[lane] - maximum);
    }
    const float chosen_sum = WarpSum(score);
    float denominator = 1.0f;
    if (!sigmoid) {
      denominator = chosen_sum;
      if (!spec.softmax_after_topk) {
        float sum = any_nan ? NAN : 0.0f;
#pragma unroll 1
        for (int e = lane; e < spec.num_experts; e += 32) {
          sum += __expf(ValueOf(orders[e]) - maximum);
        }
        denominator = WarpSum(sum);
      }
    }
    float scale = spec.scale / denominator;
    if (spec.normalize_topk) scale /= chosen_sum / denominator + spec.normalize_epsilon;
    return score * scale;
  }

  __device__ void Place(const PlanExpertsArguments& plan, bool has_token, uint32_t link_share,
                        int num_offered, NeuronTasks* out) {
    const int lane = threadIdx.x;
    const bool chosen = lane < plan.top_k && has_token;
    const ExpertTableEntry found = {entry[lane].slot, entry[lane].generation,
                                    entry[lane].fill_allowed};
    const TokenDivision division(chosen, found, plan.tiles_per_expert, link_share,
                                 plan.layer.offered, num_offered);
    if (lane == 0) {
      tiles = {division.num_hits() * plan.tiles_per_expert, division.link_tiles,
               int(gridDim.x) - (division.for_cpu != 0 ? 1 : 0)};
      any_fillable = division.fillable != 0;
      offers_left = num_offered - division.filled;
    }
    item[lane] = division.item();
    task[lane] = -1;
    use[lane] = {ExpertUseKind::kUnused, -1, 0, 0, -1};
    if (!chosen) return;
    const ExpertSource source = SourceOfExpert(plan, found, expert[lane], division.offer);
    use[lane] = {source.use.kind, source.use.slot, source.use.generation,
                 (plan.tiles_per_expert - division.tiles) * kTileNeurons, source.former};
    if (division.task() < 0) return;
    const int i = division.task() + (division.hit() ? 0 : division.num_hits());
    task[lane] = i;
    out->blob[i] = source.blob;
    out->fill[i] = source.fill;
  }
};
static_assert(kMaxNeuronTasks == 32);

}  // namespace moed::backend
