#!/usr/bin/env python3
"""Makes the tokenizers and the expected ids in this folder with Hugging Face's Python packages.

Needs: pip install tokenizers==0.22.2 transformers jinja2 (as the Rust crate; 0.23 no longer
skips normalized special tokens when decoding). Run it from anywhere; it writes beside itself:
<kind>/tokenizer.json, <kind>/tokenizer_config.json, cases.json.
"""

import json
import pathlib
import random

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)
from transformers import PreTrainedTokenizerFast

import templates

HERE = pathlib.Path(__file__).resolve().parent
DEMO = HERE.parents[3] / "models" / "demo"

CORPUS = [
    "The router sends each token to a few experts, and the experts that nobody asks for stay cold.",
    "I'll say it's 12345 tokens; we've seen 67 of them, they're short, and he'd know.",
    "<user> asks: what is a mixture of experts? The assistant answers in one line.\n\nThat's it.\n",
    "    indented code = {'a': [1, 2, 3], \"b\": None}  # a comment\n\tif x != y: return x",
    "Ein kurzer Satz mit Umlauten: Größe, Wärme, Öl und ein Straßenname.",
    "Una frase más corta, ¿verdad? Sí, señor.",
    "Быстрая лисица и ленивая собака. 路由器选择专家。専門家を選ぶ。전문가를 고른다.",
    "naïve café e\u0301te\u0301 \u212b \ufb01n 🙂🙃 👩‍💻 mixed",
] * 4

LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
           r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


def split(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def train(tokenizer, vocab_size, **options):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS, trainer)


def byte_level(pattern, ignore_merges):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = split(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, 420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def llama3():
    """Byte-level BPE with three-digit groups, ignore_merges and a BOS template."""
    tokenizer = byte_level(LLAMA_3, ignore_merges=True)
    tokenizer.add_special_tokens([
        "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    ])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair=None, special_tokens=[("<|begin_of_text|>", bos)])
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot_id|>"}}


def qwen():
    """Byte-level BPE after NFC, with added tokens that are not special."""
    tokenizer = byte_level(QWEN, ignore_merges=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False)
                          for text in ("<think>", "</think>", "<tool_call>", "</tool_call>")])
    return tokenizer, {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def sentencepiece(prepend_by_pre_tokenizer):
    """BPE with byte fallback; spaces become U+2581, and the one at the start is stripped."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prepend_by_pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    # Pieces must not span words, or the sentences above become single tokens.
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    train(trained, 640, special_tokens=special, limit_alphabet=60)
    model = json.loads(trained.to_str())["model"]
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"], state["model"]["merges"] = model["vocab"], model["merges"]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    normalized = not prepend_by_pre_tokenizer  # either kind occurs for control tokens
    tokenizer.add_special_tokens([AddedToken(text, normalized=normalized, special=True)
                                  for text in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def wordpiece():
    """A decoder that no fast path knows."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[MASK]"],
                                        show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True)])
    return tokenizer, {"unk_token": "[UNK]", "mask_token": "[MASK]"}


def metaspace():
    """Unigram with the Metaspace decoder, and added tokens with every option."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=260, unk_token="<unk>", show_progress=False,
                                      special_tokens=["<unk>", "</s>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<sep>", lstrip=True, rstrip=True, special=True)])
    tokenizer.add_tokens([AddedToken("token", single_word=True, normalized=True),
                          AddedToken("the expert", normalized=True)])
    return tokenizer, {"unk_token": "<unk>", "eos_token": "</s>", "sep_token": "<sep>"}


KINDS = {"llama3": llama3, "qwen": qwen, "wordpiece": wordpiece, "metaspace": metaspace,
         "prepend": lambda: sentencepiece(False), "first": lambda: sentencepiece(True)}

TEXTS = [
    "", " ", "  ", "\n", " \n\n  x", "Hello world", " Hello", "Hello  world ", "it's 1234567 o'clock",
    "I'LL we'VE", "tabs\tand\r\nlines\n", "Größe 路由器 전문가 e\u0301 \u212b", "🙂👩‍💻 \u200d \ufffd \x00\x7f",
    "the token tokens the expert", "a < b || c > d", "\U000f0000 private \ue000",
    "<think>\nhm\n</think>\n\nyes <tool_call>{}</tool_call>",
]
CONTROL = {"llama3": "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
           "qwen": "<|im_start|>user\nHi<|im_end|>\n<|im_<|im_end|>", "wordpiece": "fill  [MASK] in",
           "prepend": "<s> [a] b</s> c<s>", "first": "<s> [a] b</s> c<s>",
           "metaspace": "left  <sep>  right<sep></s>", "demo": "<|im_start|>a<|im_end|><|endoftext|>"}


def random_text(rng):
    parts = " ".join(CORPUS[:8]).split(" ") + ["\n", "  ", "\t", "'s", "99", "é", "语", "🙂", "<", "|>"]
    return "".join(rng.choice(parts) + rng.choice(["", " ", " "]) for _ in range(rng.randint(1, 12)))


def text_cases(kind, tokenizer):
    rng = random.Random(kind)
    control = CONTROL[kind]
    texts = TEXTS + [control, f"say {control} twice {control}"]
    texts += [random_text(rng) for _ in range(20)]
    cases = []
    for text in texts:
        case = {"text": text}
        for name, special, plain in (("ids", False, False), ("with_special", True, False),
                                     ("plain", False, True)):
            tokenizer.encode_special_tokens = plain
            case[name] = tokenizer.encode(text, add_special_tokens=special).ids
        tokenizer.encode_special_tokens = False
        case["decoded"] = tokenizer.decode(case["with_special"], skip_special_tokens=False)
        case["decoded_skipping"] = tokenizer.decode(case["with_special"], skip_special_tokens=True)
        cases.append(case)
    return cases


def chat_cases(kind, directory, config):
    special = {name: token if isinstance(token, (str, type(None))) else token["content"]
               for name, token in config.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **special)
    cases = []
    for name, template in templates.TEMPLATES.items():
        for messages in templates.CONVERSATIONS:
            for prompt in (False, True):
                case = {"template": name, "messages": messages, "add_generation_prompt": prompt}
                case["text"] = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=prompt)
                case["ids"] = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
                cases.append(case)
    return cases


def main():
    result = {"text": {}, "chat": {}, "templates": templates.TEMPLATES}
    for kind, make in KINDS.items():
        tokenizer, config = make()
        directory = HERE / kind
        directory.mkdir(exist_ok=True)
        (directory / "tokenizer.json").write_text(
            json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")))
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        result["text"][kind] = text_cases(kind, Tokenizer.from_file(str(directory / "tokenizer.json")))
        if kind in ("llama3", "qwen", "prepend", "first"):
            result["chat"][kind] = chat_cases(kind, directory, config)
    result["text"]["demo"] = text_cases("demo", Tokenizer.from_file(str(DEMO / "tokenizer.json")))
    (HERE / "cases.json").write_text(
        json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
