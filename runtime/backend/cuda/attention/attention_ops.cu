#include "runtime/backend/cuda/attention/attention_ops.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/backend/cuda/attention/decode_attention.h"
#include "runtime/backend/cuda/attention/prompt_attention.h"
#include "runtime/backend/cuda/dense/dense_weight.h"
#include "runtime/backend/cuda/device/cuda_status.h"

namespace moed::backend {

absl::Status CudaAttention::Prepare(const QkPrepare& prepare, const AttentionSpec& spec,
                                    const Tensor& q, const Tensor& k, const Tensor& v,
                                    const KvLayer& cache) {
  absl::StatusOr<PrepareQkvArguments> arguments = PrepareArguments(prepare, spec, cache);
  if (!arguments.ok()) return arguments.status();
  arguments->q = q.As<float>();
  arguments->k = k.As<float>();
  arguments->v = v.As<float>();
  arguments->tokens = static_cast<int>(q.dim(0));
  LaunchPrepareQkv(*arguments, stream_);
  return absl::OkStatus();
}

absl::Status CudaAttention::Attend(const AttentionSpec& spec, const Tensor& q, const KvLayer& cache,
                                   const Tensor& out) {
  absl::StatusOr<AttentionArguments> arguments = SplitArguments(spec, q, cache, out);
  if (!arguments.ok()) return arguments.status();
  arguments->q = q.As<float>();
  const StepLayout& layout = steps_.layout();
  arguments->prompts_apart = PromptAttentionSupports(spec.head_dim) && layout.has_prompts;
  if (arguments->prompts_apart) {
    const bool warpgroups =
        warpgroups_ && WarpgroupAttentionSupports(spec.head_dim, cache.block_tokens);
    absl::Status status = CudaStatus(warpgroups ? LaunchWarpgroupAttention(*arguments, stream_)
                                                : LaunchPromptAttention(*arguments, stream_),
                                     "launching a prompt's attention");
    if (!status.ok() || !layout.has_others) return status;
  }
  if (LaunchAttention(*arguments, stream_)) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("the CUDA backend has no attention for head_dim ", spec.head_dim,
                   "; it takes multiples of 8 up to 256. Serve the model with --device cpu"));
}

absl::Status CudaAttention::PrepareAndAttend(const QkPrepare& prepare, const AttentionSpec& spec,
                                             const Tensor& q, const Tensor& k, const Tensor& v,
                                             const KvLayer& cache, const Tensor& out) {
  absl::StatusOr<PrepareQkvArguments> prepared = PrepareArguments(prepare, spec, cache);
  if (!prepared.ok()) return prepared.status();
  const auto tokens = static_cast<int>(q.dim(0));
  if (!steps_.layout().single_tokens || !DecodeAttentionSupports(*prepared, tokens)) {
    absl::Status status = Prepare(prepare, spec, q, k, v, cache);
    return status.ok() ? Attend(spec, q, cache, out) : status;
  }
  prepared->q = q.As<float>();
  prepared->k = k.As<float>();
  prepared->v = v.As<float>();
  const absl::StatusOr<AttentionArguments> attention = SplitArguments(spec, q, cache, out);
  if (!attention.ok()) return attention.status();
  return CudaStatus(LaunchDecodeAttention({*prepared, *attention}, stream_),
                    "launching the attention of a step");
}

bool CudaAttention::Fuses(const AttentionHalf& half) {
  if (half.residual.dim(0) != 1) return false;
  const FusedAttentionShape shape = ShapeOf(half);
  const auto [entry, inserted] = fusible_.try_emplace(shape);
  if (inserted) entry->second = FusedAttentionSupports(shape);
  return entry->second;
}

absl::Status CudaAttention::RunFused(const AttentionHalf& half) {
  const FusedAttentionShape shape = ShapeOf(half);
  const absl::StatusOr<PrepareQkvArguments> prepare =
      PrepareArguments(half.prepare, half.spec, half.cache);
  if (!prepare.ok()) return prepare.status();
  FusedAttentionArguments arguments;
  arguments.prepare = *prepare;
  arguments.qkv = ArgumentsOf(half.qkv, half.residual, /*accumulate=*/false);
  arguments.qkv.residual = half.residual.As<float>();
  arguments.qkv.norm_weight = half.norm_weight.As<float>();
  arguments.qkv.norm_epsilon = half.norm_epsilon;
  const LinearProduct output = {half.output, half.residual};
  arguments.output = ArgumentsOf({&output, 1}, half.residual, /*accumulate=*/true).parts[0];
  arguments.attention = ArgumentsFor(half.spec, half.cache);
  arguments.attention.tokens = 1;
  arguments.attention.splits = FusedAttentionSplits(shape, steps_.max_context());
  const absl::StatusOr<std::byte*> exchange = FusedExchange(shape);
  if (!exchange.ok()) return exchange.status();
  arguments.exchange = *exchange;
  return CudaStatus(LaunchFusedAttention(arguments, shape, stream_),
                    "launching the attention of a token");
}

absl::StatusOr<PrepareQkvArguments> CudaAttention::PrepareArguments(const QkPrepare& prepare,
                                                                    const AttentionSpec& spec,
                                                                    const KvLayer& cache) {
  const absl::StatusOr<const float*> frequencies =
      DeviceFrequencies(prepare.rope.inverse_frequencies);
  if (!frequencies.ok()) return frequencies.status();
  PrepareQkvArguments arguments;
  arguments.step = steps_.view();
  arguments.q_norm = prepare.q_norm.As<float>();
  arguments.k_norm = prepare.k_norm.As<float>();
  arguments.inverse_frequencies = *frequencies;
  arguments.keys = cache.keys.As<__nv_bfloat16>();
  arguments.values = cache.values.As<__nv_bfloat16>();
  arguments.query_heads = spec.query_heads;
  arguments.kv_heads = spec.kv_heads;
  arguments.head_dim = spec.head_dim;
  arguments.rotary_dims = prepare.rope.rotary_dims;
  arguments.block_tokens = cache.block_tokens;
  arguments.norm_per_head = prepare.norm_per_head;
  arguments.interleaved = prepare.rope.interleaved;
  arguments.norm_epsilon = prepare.norm_epsilon;
  arguments.clip = prepare.clip_qkv;
  arguments.attention_factor = prepare.rope.attention_factor;
  return arguments;
}

AttentionArguments CudaAttention::ArgumentsFor(const AttentionSpec& spec,
                                               const KvLayer& cache) const {
  AttentionArguments arguments;
  arguments.step = steps_.view();
  arguments.keys = cache.keys.As<__nv_bfloat16>();
  arguments.values = cache.values.As<__nv_bfloat16>();
  arguments.arrived = arrived_;
  arguments.query_heads = spec.query_heads;
  arguments.kv_heads = spec.kv_heads;
  arguments.head_dim = spec.head_dim;
  arguments.block_tokens = cache.block_tokens;
  arguments.sliding_window = spec.sliding_window;
  arguments.scale = spec.scale;
  return arguments;
}

absl::StatusOr<AttentionArguments> CudaAttention::SplitArguments(const AttentionSpec& spec,
                                                                 const Tensor& q,
                                                                 const KvLayer& cache,
                                                                 const Tensor& out) {
  AttentionArguments arguments = ArgumentsFor(spec, cache);
  arguments.out = out.As<__nv_bfloat16>();
  arguments.tokens = static_cast<int>(q.dim(0));
  arguments.splits = AttentionSplits(arguments.tokens, spec.query_heads, spec.kv_heads,
                                     steps_.max_context(), multiprocessors_);
  const absl::StatusOr<float*> scratch = Scratch(
      AttentionScratchBytes(arguments.tokens, spec.query_heads, spec.head_dim, arguments.splits));
  if (!scratch.ok()) return scratch.status();
  arguments.scratch = *scratch;
  return arguments;
}

FusedAttentionShape CudaAttention::ShapeOf(const AttentionHalf& half) const {
  return {.hidden = static_cast<int>(half.residual.dim(1)),
          .query_heads = half.spec.query_heads,
          .kv_heads = half.spec.kv_heads,
          .head_dim = half.spec.head_dim,
          .multiprocessors = multiprocessors_};
}

absl::StatusOr<const float*> CudaAttention::DeviceFrequencies(const Tensor& host) {
  const auto [entry, inserted] = frequencies_.try_emplace(host.data(), WorkspaceMemory::kDevice);
  const auto bytes = static_cast<size_t>(host.num_bytes());
  const absl::StatusOr<std::byte*> device = entry->second.Reserve(bytes);
  if (!device.ok()) return device.status();
  if (inserted) {
    absl::Status status =
        CudaStatus(cudaMemcpyAsync(*device, host.data(), bytes, cudaMemcpyHostToDevice, stream_),
                   "copying rotary frequencies");
    status.Update(CudaStatus(cudaStreamSynchronize(stream_), "copying rotary frequencies"));
    if (!status.ok()) return status;
  }
  return reinterpret_cast<const float*>(*device);
}

absl::StatusOr<std::byte*> CudaAttention::FusedExchange(const FusedAttentionShape& shape) {
  const auto [entry, inserted] = exchanges_.try_emplace(shape, WorkspaceMemory::kDevice);
  const size_t bytes = FusedAttentionExchangeBytes(shape);
  absl::StatusOr<std::byte*> memory = entry->second.Reserve(bytes);
  if (!memory.ok() || !inserted) return memory;
  absl::Status status = CudaStatus(cudaMemsetAsync(*memory, 0, bytes, stream_),
                                   "clearing what blocks of attention exchange");
  if (!status.ok()) return status;
  return memory;
}

absl::StatusOr<float*> CudaAttention::Scratch(size_t bytes) {
  const absl::StatusOr<std::byte*> scratch = scratch_.Reserve(std::max<size_t>(256, bytes));
  if (!scratch.ok()) return scratch.status();
  return reinterpret_cast<float*>(*scratch);
}

}  // namespace moed::backend
