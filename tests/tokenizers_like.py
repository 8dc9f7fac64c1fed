"""Tokenizers like the published ones: byte-level BPE of the `tokenizers` library.

Rules, special tokens and file layout are those of the published ones. The vocabulary is small and
trained on modules of the standard library. SmolLM2's own is turned into the same format.
"""

import ast
import inspect
import json
import os
import random
import textwrap

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = {
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
}


def publish(kind, folder, size=3000):
    """tokenizer.json and config.json in a folder -> tokenizers.Tokenizer. kind: qwen or llama."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    tok = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama"))
    if kind == "qwen":
        tok.normalizer = normalizers.NFC()
    rule = pre_tokenizers.Split(
        tokenizers.Regex(QWEN if kind == "qwen" else LLAMA), "isolated", False
    )
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [rule, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tok.train_from_iterator(
        [inspect.getsource(m) for m in (ast, inspect, random, textwrap)]
        + [" #\n    # a\n        # b\n"] * 50,
        trainer,
    )
    tok.add_special_tokens(SPECIAL[kind])
    if kind == "llama":
        tok.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin_of_text|> $A",
                    pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                    special_tokens=[("<|begin_of_text|>", tok.token_to_id("<|begin_of_text|>"))],
                ),
            ]
        )
    said = json.loads(tok.to_str())
    if (
        kind == "llama"
    ):  # as its file was made: each way to split a token into two others is a merge
        vocab = said["model"]["vocab"]
        said["model"]["merges"] = [
            list(pair)
            for token in sorted(vocab, key=vocab.get)
            for pair in sorted(
                (
                    (token[:i], token[i:])
                    for i in range(1, len(token))
                    if token[:i] in vocab and token[i:] in vocab
                ),
                key=lambda p: (vocab[p[0]], vocab[p[1]]),
            )
        ]
    os.makedirs(folder, exist_ok=True)
    json.dump(said, open(os.path.join(folder, "tokenizer.json"), "w"))
    json.dump(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[kind][kind == "llama"]},
        open(os.path.join(folder, "tokenizer_config.json"), "w"),
    )
    n = tok.get_vocab_size()
    config = dict(
        model_type="qwen2" if kind == "qwen" else "llama",
        vocab_size=n + 29,
        eos_token_id=tok.token_to_id(SPECIAL[kind][1]),
    )  # padded, as Qwen's is
    json.dump(
        {
            **config,
            **dict(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=48,
                rms_norm_eps=1e-6,
                max_position_embeddings=4096,
                rope_theta=1e6,
                tie_word_embeddings=True,
            ),
        },
        open(os.path.join(folder, "config.json"), "w"),
    )
    return tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
