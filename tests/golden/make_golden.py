#!/usr/bin/env python3
"""Makes the golden data: tiny random checkpoints, and what transformers says about them in float32.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0
    tests/golden/make_golden.py            # all cases, and the demo model
    tests/golden/make_golden.py olmoe demo # only these

A case is a folder here: a checkpoint (config.json, *.safetensors) and golden.safetensors with, for
each prompt i:
    i.token_ids      I32 [n]           the prompt and its greedy continuation
    i.prompt_tokens  I32 []            how many of them are the prompt
    i.first_logits   I32 []            position of the first row of logits
    i.logits         F32 [m, V]        of positions first_logits ... n - 1, teacher-forced
    i.router_gaps    F32 [layers, n]   of MoE layers: k-th largest router logit less the next one
`demo` holds the last file alone: its checkpoint is models/demo.
"""

import gc
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

from golden_cases import CASES

HERE = pathlib.Path(__file__).parent
DEMO = HERE.parent.parent / "models" / "demo"
PROMPT_TOKENS = (1, 6, 17, 33, 90)
NEW_TOKENS = 12
LOGIT_ROWS = 16
CANDIDATES = 48


def randomize(model, seed):
    """Scales that give logits and routers a spread of about 2, so that ties are rare, and the rest
    a gain of 1: more would amplify the rounding of activations beyond what trained models do."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                gain = 2.0 if "gate.weight" in name or "lm_head" in name else 1.0
                parameter.copy_(gain * noise / parameter.shape[-1] ** 0.5)
    if model.config.tie_word_embeddings:
        model.tie_weights()


def fuse_experts(tensors):
    """Gate and up of all experts of a layer in one tensor, as transformers holds them in memory."""
    layers = sorted({name.split(".experts.")[0] for name in tensors if ".experts." in name})
    for layer in layers:
        parts = {"gate_proj": [], "up_proj": [], "down_proj": []}
        while f"{layer}.experts.{len(parts['gate_proj'])}.gate_proj.weight" in tensors:
            expert = len(parts["gate_proj"])
            for part, stack in parts.items():
                stack.append(tensors.pop(f"{layer}.experts.{expert}.{part}.weight"))
        gate_up = torch.cat([torch.stack(parts["gate_proj"]), torch.stack(parts["up_proj"])], dim=1)
        tensors[f"{layer}.experts.gate_up_proj"] = gate_up
        tensors[f"{layer}.experts.down_proj"] = torch.stack(parts["down_proj"])
    return tensors


def spell_as_transformers_4(config):
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else dict(rope, type=kind)
    config["torch_dtype"] = config.pop("dtype")
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    return config


def save_checkpoint(name, config, options, seed):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, seed)
    model.to(getattr(torch, options.get("dtype", "bfloat16")))
    shard = f"{options.get('shard_kb', 5000)}KB"
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if options.get("fused"):
        file = folder / "model.safetensors"
        save_file(fuse_experts(load_file(file)), file, metadata={"format": "pt"})
    if options.get("old_config"):
        file = folder / "config.json"
        old = spell_as_transformers_4(json.loads(file.read_text()))
        file.write_text(json.dumps(old, indent=2) + "\n")
    return folder


def watch_routers(model, store):
    """Appends the gap at rank k of every router call [tokens] to `store`, in order of layers."""
    top_k = model.config.num_experts_per_tok

    def hook(_module, inputs, _outputs, weight):
        logits = inputs[0].reshape(-1, weight.shape[1]).float() @ weight.float().T
        best = logits.sort(dim=-1, descending=True).values
        store.append(best[:, top_k - 1] - best[:, top_k])

    for layer in model.model.layers:
        gate = getattr(layer.mlp, "gate", None)
        if gate is not None:
            gate.register_forward_hook(lambda m, i, o: hook(m, i, o, m.weight))


@torch.no_grad()
def follow(model, gaps, prompt):
    """Greedy continuation of `prompt`, then logits and router gaps of the whole, teacher-forced."""
    ids = torch.tensor([prompt])
    for _ in range(NEW_TOKENS):
        logits = model(ids, use_cache=False).logits[0, -1]
        ids = torch.cat([ids, logits.argmax().reshape(1, 1)], dim=1)
    gaps.clear()
    logits = model(ids, use_cache=False).logits[0].float()
    return ids[0], logits, torch.stack(gaps)


def decisiveness(logits, gaps, prompt_tokens):
    """The nearest tie of a sequence: of its greedy choices and of its routing, relative."""
    best = logits[prompt_tokens - 1:-1].topk(2).values
    return min((best[:, 0] - best[:, 1]).min() / logits.std(), gaps.min()).item()


def choose(model, gaps, tokens, vocabulary, generator, candidates):
    """Of some random prompts the one farthest from any tie, so that a greedy token is a fact."""
    best = None
    for _ in range(candidates):
        prompt = torch.randint(1, vocabulary, (tokens,), generator=generator).tolist()
        found = follow(model, gaps, prompt)
        score = decisiveness(found[1], found[2], tokens)
        if best is None or score > best[0]:
            best = (score, found)
    return best


def record(folder, checkpoint, prompts=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32,
                                                              attn_implementation="eager")
    model.eval()
    gaps, out, scores = [], {}, []
    watch_routers(model, gaps)
    generator = torch.Generator().manual_seed(len(folder.name))
    for i, tokens in enumerate(prompts or PROMPT_TOKENS):
        if prompts:
            ids, logits, routing = follow(model, gaps, tokens)
            tokens = len(tokens)
            scores.append(decisiveness(logits, routing, tokens))
        else:
            score, (ids, logits, routing) = choose(model, gaps, tokens, model.config.vocab_size,
                                                   generator, CANDIDATES)
            scores.append(score)
        first = max(0, len(ids) - LOGIT_ROWS)
        out[f"{i}.token_ids"] = ids.to(torch.int32)
        out[f"{i}.prompt_tokens"] = torch.tensor(tokens, dtype=torch.int32)
        out[f"{i}.first_logits"] = torch.tensor(first, dtype=torch.int32)
        out[f"{i}.logits"] = logits[first:].contiguous()
        out[f"{i}.router_gaps"] = routing.contiguous()
    folder.mkdir(exist_ok=True)
    save_file(out, folder / "golden.safetensors")
    print(f"{folder.name:28}", "nearest ties", " ".join(f"{s:.4f}" for s in scores))


DEMO_TEXTS = (
    "The quick brown fox",
    "It was the best of times, it was the worst of",
    "for (int i = 0; i < n; i++) {\n    ",
    "12 + 30 = 42, 7 + 8 = ",
)


def demo_prompts():
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(DEMO / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False) for text in DEMO_TEXTS]


def main():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    wanted = sys.argv[1:] or [*CASES, "demo"]
    for seed, (name, (config, options)) in enumerate(CASES.items()):
        if name in wanted:
            folder = save_checkpoint(name, config, options, 100 + seed)
            record(folder, folder)
            gc.collect()
    if "demo" in wanted:
        record(HERE / "demo", DEMO, demo_prompts())


if __name__ == "__main__":
    main()
