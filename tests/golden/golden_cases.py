"""The checkpoints of the golden tests: tiny, random, and each a way in which real ones differ."""

import transformers

COMMON = dict(
    vocab_size=256,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.02,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=None,
)


def rope(rope_type="default", theta=10000.0, **more):
    return dict(rope_type=rope_type, rope_theta=theta, **more)


def qwen3(**changes):
    defaults = dict(COMMON, head_dim=16, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True,
                    moe_intermediate_size=16, intermediate_size=48, rope_parameters=rope(theta=1e6))
    return transformers.Qwen3MoeConfig(**{**defaults, **changes})


def qwen2(**changes):
    defaults = dict(COMMON, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16,
                    shared_expert_intermediate_size=40, intermediate_size=48,
                    rope_parameters=rope(theta=1e6))
    return transformers.Qwen2MoeConfig(**{**defaults, **changes})


def mixtral(**changes):
    defaults = dict(COMMON, num_local_experts=4, num_experts_per_tok=2, intermediate_size=32,
                    rope_parameters=rope(theta=1e6))
    return transformers.MixtralConfig(**{**defaults, **changes})


def olmoe(**changes):
    defaults = dict(COMMON, num_experts=12, num_experts_per_tok=3, intermediate_size=16,
                    num_key_value_heads=4, rope_parameters=rope())
    return transformers.OlmoeConfig(**{**defaults, **changes})


# name -> (config, how it is saved). Options of saving:
#   dtype       of the weights, "bfloat16" unless given
#   shard_kb    files of at most that many kilobytes, with an index
#   fused       experts as gate_up_proj [E, 2I, H] and down_proj [E, H, I]
#   old_config  config.json in the spelling of transformers 4
CASES = {
    # head_dim * heads is not the hidden size; four query heads share one key head.
    "qwen3_moe": (qwen3(head_dim=24, num_key_value_heads=1), {}),
    "qwen3_moe_sharded_untied": (qwen3(tie_word_embeddings=False), dict(shard_kb=60)),
    "qwen3_moe_tied_f16": (qwen3(tie_word_embeddings=True, norm_topk_prob=False),
                           dict(dtype="float16")),
    # Layers 0 and 2 are dense: one by the step, one by name.
    "qwen3_moe_dense_layers": (qwen3(num_hidden_layers=5, decoder_sparse_step=2,
                                     mlp_only_layers=[3], attention_bias=True), {}),
    "qwen3_moe_yarn_old_config": (qwen3(num_experts=16, num_experts_per_tok=4,
                                        rope_parameters=rope("yarn", 1e4, factor=4.0,
                                                             original_max_position_embeddings=64)),
                                  dict(old_config=True)),
    "qwen3_moe_sliding_window": (qwen3(use_sliding_window=True, sliding_window=20), {}),
    "qwen2_moe": (qwen2(), {}),
    "qwen2_moe_linear_fused": (qwen2(num_key_value_heads=4, qkv_bias=False,
                                     rope_parameters=rope("linear", 1e4, factor=4.0)),
                               dict(fused=True)),
    "mixtral": (mixtral(), {}),
    "mixtral_llama3_f32": (mixtral(num_key_value_heads=1, head_dim=16,
                                   rope_parameters=rope("llama3", 1e4, factor=8.0,
                                                        low_freq_factor=1.0, high_freq_factor=4.0,
                                                        original_max_position_embeddings=64)),
                           dict(dtype="float32")),
    "olmoe": (olmoe(), {}),
    "olmoe_clip_sharded": (olmoe(clip_qkv=1.5, num_key_value_heads=2, norm_topk_prob=True),
                           dict(shard_kb=100, old_config=True)),
}
