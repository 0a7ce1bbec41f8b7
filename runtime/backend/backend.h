// A device and the operations a decoder needs on it. runtime/model calls nothing else; `cpu/` and
// `cuda/` implement it, `no_cuda/` stands in for the latter when it is not built.
//
// Ops are issued in order by one thread (the engine's) and may run asynchronously; results are
// visible to the host after Synchronize(). On the CPU every op has finished when it returns.
// Numerics (docs/DESIGN.md): residual, norms, router, softmax and every accumulation are float32;
// only the inputs of weight products are bf16.
// Shapes: T tokens of this step, H hidden, V vocabulary, E experts of a layer, k experts a token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/buffer.h"
#include "runtime/backend/device_experts.h"
#include "runtime/backend/expert_format.h"
#include "runtime/backend/row_sampler.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

enum class MemoryKind : uint8_t {
  kDevice,  // where the ops compute: RAM on the CPU, VRAM on CUDA
  kHost,    // host RAM that the device can reach fast: plain on the CPU, pinned on CUDA
};

// A dense weight W [out, in] made ready for Linear by PrepareLinear; y = x W^T + bias.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  virtual int64_t out_features() const = 0;
  virtual int64_t in_features() const = 0;
};

inline constexpr int kMaxLinearProducts = 3;

// One of several products of the same rows.
struct LinearProduct {
  const LinearWeight* weight = nullptr;
  Tensor out;  // [T, out] f32
};

// How a router turns logits [T, E] into k experts and their weights.
struct RouterSpec {
  enum class Scoring : uint8_t { kSoftmax, kSigmoid };
  Scoring scoring = Scoring::kSoftmax;
  bool softmax_after_topk = false;  // gpt-oss, Granite: softmax over the chosen k alone
  bool normalize_topk = false;      // divide by the sum of the chosen weights
  float normalize_epsilon = 0.0f;   // added to that sum (DeepSeek-V3: 1e-20)
  float scale = 1.0f;               // routed_scaling_factor
  int num_experts = 0;              // E
  int top_k = 0;                    // k
};

// A layer's router from the residual on: everything that Route takes and gives, and what comes
// before.
struct RouterStep {
  RouterSpec spec;
  Tensor x;            // [T, H] f32
  Tensor norm_weight;  // [H] f32
  float norm_epsilon = 0.0f;
  Tensor router;      // [E, H] f32
  Tensor normed;      // [T, H] bf16, out: the experts' input
  Tensor normed_f32;  // [T, H] f32, out: the router's input
  Tensor logits;      // [T, E] f32, out
  Tensor ids;         // [T, k] i32, out
  Tensor weights;     // [T, k] f32, out
};

// Rotary embedding of one model: the first `rotary_dims` of each head are rotated.
struct RopeSpec {
  int rotary_dims = 0;         // R
  bool interleaved = false;    // pairs (2j, 2j+1) instead of (j, j + R/2)
  Tensor inverse_frequencies;  // [R/2] f32, host memory, scaled by the RoPE variant already
  float attention_factor = 1;  // multiplies cos and sin (yarn)
};

// What happens to q and k between their projections and the cache.
struct QkPrepare {
  // RMSNorm weights, f32: [D] per head, [heads * D] over the whole projection, or empty.
  Tensor q_norm;
  Tensor k_norm;
  bool norm_per_head = true;
  float norm_epsilon = 1e-6f;
  float clip_qkv = 0.0f;  // clamps q, k, v to [-c, c] if > 0 (OLMoE), after the norm as published
  RopeSpec rope;
};

// The paged KV cache of one layer: `blocks` blocks of `block_tokens` tokens.
// keys, values: [blocks, block_tokens, kv_heads * D] bf16 in size; in which order a block holds its
// tokens and heads is the backend's own.
struct KvLayer {
  Tensor keys;
  Tensor values;
  int block_tokens = 0;
};

// One sequence's rows of this step: tokens [first_row, first_row + num_tokens) of the batch, at
// positions context_start, context_start + 1, ...; its KV lies in `kv_blocks` in order.
struct AttentionSegment {
  int first_row = 0;
  int num_tokens = 0;
  int context_start = 0;
  std::span<const int32_t> kv_blocks;
};

struct AttentionSpec {
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;        // D
  float scale = 0.0f;      // D^-1/2 unless the family says otherwise
  int sliding_window = 0;  // keys visible to a query, itself included; 0: all
};

// The attention half of a layer: NormLinearGroup, PrepareAndAttend and Linear.
struct AttentionHalf {
  Tensor norm_weight;  // [H] f32
  float norm_epsilon = 1e-6f;
  std::span<const LinearProduct> qkv;  // of queries, keys and values, and where they go
  QkPrepare prepare;
  AttentionSpec spec;
  KvLayer cache;
  const LinearWeight* output = nullptr;
  Tensor residual;  // [T, H] f32: what is normed, and what the output is added to
};

// One expert's work in a step: weights, and the (token, rank) pairs that chose it. Row r of the
// output belongs to token rows[r] / k, rank rows[r] % k.
struct ExpertWork {
  const std::byte* blob = nullptr;
  std::span<const int32_t> rows;
};

// The device's own memory.
struct DeviceMemory {
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu (AVX-512, 16 threads)" or "NVIDIA H200".
  virtual std::string Description() const = 0;

  // Nullopt if the device computes in host memory.
  virtual std::optional<DeviceMemory> Memory() = 0;

  // RESOURCE_EXHAUSTED, naming bytes and `what`, if the memory cannot be had; FAILED_PRECONDITION
  // if host memory is there, but may not be pinned for the device.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryKind kind, std::string_view what) = 0;
  virtual absl::Status CopyFromHost(std::span<const std::byte> source, std::byte* destination) = 0;
  // Names all that was issued so far, for Upload to wait for; 0 names nothing.
  virtual uint64_t Issued() = 0;
  // The same as CopyFromHost from any thread, beside the ops, once those that `after` names are
  // finished.
  virtual absl::Status Upload(std::span<const std::byte> source, std::byte* destination,
                              uint64_t after) = 0;
  virtual absl::Status CopyToHost(const std::byte* source, std::span<std::byte> destination) = 0;

  // Waits for everything issued. Returns the first device error, then and for ever (sticky).
  virtual absl::Status Synchronize() = 0;

  // Whether Experts and CreateDeviceExperts have kernels for experts of this kind.
  virtual bool SupportsExpertFormat(ExpertFormatKind kind) const = 0;

  // Experts that the device finds by itself. `options` as described there; the memory it names must
  // outlive the result, and so must this backend. UNIMPLEMENTED for a shape or format that the
  // device's kernels cannot take.
  virtual absl::StatusOr<std::unique_ptr<DeviceExperts>> CreateDeviceExperts(
      const DeviceExpertsOptions& options) = 0;

  // A sampler of rows of logits in the device's memory. UNIMPLEMENTED: they must be sampled on the
  // host; RESOURCE_EXHAUSTED: memory.
  virtual absl::StatusOr<std::unique_ptr<RowSampler>> CreateRowSampler(
      const RowSamplerOptions& options) = 0;

  // Takes a copy of `weight` [out, in] (bf16, host memory) and `bias` [out] f32 (or empty).
  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(const Tensor& weight,
                                                                      const Tensor& bias) = 0;

  // Names the step that the following ops belong to, before the first of them: a device uploads
  // what its kernels need of the batch, once. The spans must live until the step's last op.
  virtual void BeginStep(std::span<const int32_t> token_ids,
                         std::span<const AttentionSegment> segments) = 0;

  // Issues the ops of a step through `issue`, or repeats what it issued for the same `key` before,
  // without calling it: it must then issue the same ops on the same memory. What differs from step
  // to step lies in that memory and in the arguments of BeginStep, which comes first.
  virtual void RunRecorded(uint64_t key, absl::FunctionRef<void()> issue) = 0;

  // table [V, H] bf16, token_ids [T] i32 (host) -> out [T, H] f32.
  virtual void Embed(const Tensor& table, std::span<const int32_t> token_ids,
                     const Tensor& out) = 0;

  // x [T, H] f32, weight [H] f32 -> out [T, H] bf16, and unrounded into out_f32 if not empty.
  // out = x * rsqrt(mean(x^2) + epsilon) * weight.
  virtual void RmsNorm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& out,
                       const Tensor& out_f32) = 0;

  // x [T, in] bf16 -> out [T, out] f32; added to what is there if `accumulate`.
  virtual void Linear(const LinearWeight& weight, const Tensor& x, const Tensor& out,
                      bool accumulate) = 0;

  // Linear without accumulation for each of `products`, at most kMaxLinearProducts.
  virtual void LinearGroup(std::span<const LinearProduct> products, const Tensor& x) = 0;

  // RmsNorm of x, for which `normed` is room, then LinearGroup of that.
  virtual void NormLinearGroup(const Tensor& x, const Tensor& norm_weight, float epsilon,
                               const Tensor& normed, std::span<const LinearProduct> products) = 0;

  // Same product with float32 on both sides (the router): weight [out, in] f32, x [T, in] f32.
  virtual void LinearF32(const Tensor& weight, const Tensor& x, const Tensor& out) = 0;

  // gate_up [T, 2 * I] f32 (gate then up) -> out [T, I] bf16: silu(gate) * up.
  virtual void SwiGlu(const Tensor& gate_up, const Tensor& out) = 0;

  // Norms, clips and rotates q [T, hq * D] and k [T, hkv * D] f32 in place, then writes k and v
  // [T, hkv * D] f32 into the cache at each segment's positions.
  virtual void PrepareQkv(const QkPrepare& prepare, const AttentionSpec& spec,
                          std::span<const AttentionSegment> segments, const Tensor& q,
                          const Tensor& k, const Tensor& v, const KvLayer& cache) = 0;

  // Causal grouped-query attention over the paged cache. q [T, hq * D] f32 -> out [T, hq * D] bf16.
  virtual void Attention(const AttentionSpec& spec, std::span<const AttentionSegment> segments,
                         const Tensor& q, const KvLayer& cache, const Tensor& out) = 0;

  // PrepareQkv, then Attention. q, k and v need not be left as prepared.
  virtual void PrepareAndAttend(const QkPrepare& prepare, const AttentionSpec& spec,
                                std::span<const AttentionSegment> segments, const Tensor& q,
                                const Tensor& k, const Tensor& v, const KvLayer& cache,
                                const Tensor& out) {
    PrepareQkv(prepare, spec, segments, q, k, v, cache);
    Attention(spec, segments, q, cache, out);
  }

  // All of the ops of the half at once, where the backend can do that for such a step; false, with
  // nothing issued, where they must be issued one by one. What lies in between need not be left
  // anywhere.
  virtual bool FusedAttention(const AttentionHalf&) { return false; }

  // logits [T, E] f32 -> ids [T, k] i32 in falling order of logit (equal ones: lower id first; NaN
  // last), distinct and in [0, E) whatever the logits; weights [T, k] f32, which pass NaN on.
  virtual void Route(const RouterSpec& spec, const Tensor& logits, const Tensor& ids,
                     const Tensor& weights) = 0;

  // RmsNorm, LinearF32 and Route in one.
  virtual void NormRoute(const RouterStep& step) = 0;

  // For each work item, out[row] = expert(x[row / k]) for its rows. x [T, H] bf16, out [T * k, H]
  // f32. An expert's output does not depend on which other experts are in `work`.
  virtual void Experts(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k,
                       const Tensor& x, const Tensor& out) = 0;

  // residual[t] += sum over ranks r, in order, of weights[t, r] * expert_out[t * k + r].
  // expert_out [T * k, H] f32, weights [T, k] f32, residual [T, H] f32.
  virtual void CombineExperts(const Tensor& expert_out, const Tensor& weights,
                              const Tensor& residual) = 0;

  // residual [T, H] += sigmoid(gate_logits [T, 1]) * shared [T, H]; without a gate if it is empty.
  virtual void AddShared(const Tensor& shared, const Tensor& gate_logits,
                         const Tensor& residual) = 0;

  // out[i] = x[rows[i]]; x [T, H] f32.
  virtual void GatherRows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) = 0;
};

}  // namespace moed::backend
