// The ops of backend.h that move or combine rows, as kernels; shapes are stated there.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace moed::backend {

void LaunchEmbed(const __nv_bfloat16* table, const int32_t* token_ids, int tokens, int hidden,
                 float* out, cudaStream_t stream);
// `out_f32` may be null.
void LaunchRmsNorm(const float* x, const float* weight, float epsilon, int tokens, int hidden,
                   __nv_bfloat16* out, float* out_f32, cudaStream_t stream);
void LaunchSwiGlu(const float* gate_up, int tokens, int intermediate, __nv_bfloat16* out,
                  cudaStream_t stream);
void LaunchCombineExperts(const float* expert_out, const float* weights, int tokens, int top_k,
                          int hidden, float* residual, cudaStream_t stream);
// `gate_logits` may be null.
void LaunchAddShared(const float* shared, const float* gate_logits, int tokens, int hidden,
                     float* residual, cudaStream_t stream);
void LaunchGatherRows(const float* x, const int32_t* rows, int count, int hidden, float* out,
                      cudaStream_t stream);

}  // namespace moed::backend
