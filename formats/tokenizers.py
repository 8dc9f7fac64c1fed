"""Tokenizers: byte-level BPE, trained here, or read from a GGUF file or a folder in Hugging Face's format; and which tokens begin and end a thought.

All of them are tiktoken encodings: a regular expression splits a text into pieces, and within a piece pairs of tokens are merged, the earliest of the
vocabulary first. Texts are never normalised but where the tokenizer's own file says so; special tokens in a text are ordinary text.
"""

import base64
import dataclasses
import hashlib
import json
import os
import unicodedata

import numpy as np
import tiktoken

from config import UserError
from formats.gguf import open_gguf

# GPT-2's pattern without English contractions, and with single digits: ` ?` joins one blank to the word, digit or punctuation after
# it, a newline joins the blanks after it except the last.   Example: "if a:\n    b = 12" -> if| a|:|\n   | b| =| 1|2
PATTERN = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclasses.dataclass
class Tokenizer:
    enc: tiktoken.Encoding
    eos: int  # id of the end-of-text token
    thought_ids: list  # tokens whose text, leading blanks dropped, begins with '#' (and holds no newline): one of them starts a thought
    stop_ids: list  # tokens that contain '\n' or '\r', but for closing ones, and eos: they end a thought, and are not part of it
    nbytes: (
        np.ndarray
    )  # (V,) length of each token in bytes; 0 for special tokens. V is the size of the embedding
    closing_ids: list = dataclasses.field(
        default_factory=list
    )  # punctuation that one '\n' has joined: a thought's last token
    bos: list = dataclasses.field(
        default_factory=list
    )  # [the token that every text begins with], or []
    normal: str = ""  # Unicode's normal form that texts are brought into: "", NFC, ...
    joins_before: bool = (
        False  # does a newline join the punctuation before it (else the indentation after it)?
    )
    marks: dict = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )  # cache of `mark`

    def encode(self, text):
        """Ids of text, without bos. Special tokens in it are ordinary text. Bytes that the vocabulary lacks are dropped (see gguf_tokenizer)."""
        if self.normal:
            text = unicodedata.normalize(self.normal, text)
        ids = self.enc.encode_ordinary(text)
        return (
            ids
            if self.enc.n_vocab == len(self.nbytes)
            else [i for i in ids if i < len(self.nbytes)]
        )

    def decode(self, ids):
        """Text of ids. Special tokens are rendered as '', broken UTF-8 as U+FFFD."""
        return self.enc.decode_bytes([i for i in ids if self.nbytes[i]]).decode(
            "utf-8", errors="replace"
        )

    def start(self, text):
        """What a model is given to go on from a text that ends where a line ends, its newline not included -> (ids, how the completion begins).

        Example: "def f():" -> (def| f|():, "") where a newline joins what follows; (def| f|():\\n, "\\n") where it joins what precedes.
        """
        head = "\n" if self.joins_before and not text.endswith("\n") else ""
        return self.bos + self.encode(text + head), head

    @property
    def end_ids(self):
        """Tokens that end what a model writes, and are no part of it."""
        return [self.eos]

    @property
    def vocab_size(self):
        """Size of the embedding."""
        return len(self.nbytes)


def identity(tok):
    """What tells tokenizers apart, as JSON values.

    These are lengths of tokens, special ids, and the ids of a page of signs.
    """
    signs = "".join(map(chr, range(9, 1000)))
    code = "def f(x):\n    return  x + 1234\n\n\tif y: don't\r\n" + " " * 40
    lengths = np.asarray(tok.nbytes, np.int64).tobytes()
    return [
        tok.eos,
        tok.thought_ids,
        tok.stop_ids,
        tok.encode(signs + code),
        hashlib.sha256(lengths).hexdigest(),
    ]


def digest(tok):
    """The identity as 16 hexadecimal digits, which checkpoints carry."""
    return hashlib.sha256(json.dumps(identity(tok)).encode()).hexdigest()[:16]


def check_checkpoint(path, extra, tok, preset):
    """Raise UserError if a checkpoint was made with another tokenizer.

    path, extra   the checkpoint, and the values in it
    tok, preset   the tokenizer, and the preset that it belongs to
    One that does not name its tokenizer is known by the preset in settings.json beside it.
    """
    made_by = extra.get("preset")
    if "tokenizer" in extra:
        same = extra["tokenizer"] == digest(tok)
    else:
        made_by = preset_beside(path)
        same = made_by in (None, preset)
    if not same:
        by = f" of --preset {made_by}" if made_by else ""
        raise UserError(
            f"{path}: made with another tokenizer{by} and not with that of --preset {preset}; give "
            "the --preset and --model that it was made with"
        )


def preset_beside(path):
    """The preset in settings.json beside a checkpoint, or None."""
    try:
        with open(os.path.join(os.path.dirname(path), "settings.json")) as f:
            return dict(json.load(f)).get("preset")
    except (OSError, ValueError, TypeError):
        return None


def make_tokenizer(enc, eos, vocab_size=None, bos=None, normal=""):
    """A Tokenizer around a tiktoken encoding. eos: the id of its end-of-text token. vocab_size: the encoding's if None. bos: an id or None."""
    import regex

    nbytes = np.zeros(vocab_size or enc.n_vocab, dtype=np.int64)
    joins_before = regex.match(enc._pat_str, ":\n  x").end() == 2
    thought, stop, closing = [], [eos], []
    for token in enc.token_byte_values():
        i = enc.encode_single_token(token)
        if i >= len(nbytes):
            continue
        nbytes[i] = len(token)
        if (
            joins_before
            and token.endswith(b"\n")
            and token.strip()
            and token.count(b"\n") == 1
            and b"\r" not in token
        ):
            closing.append(i)
        elif b"\n" in token or b"\r" in token:
            stop.append(i)
        elif token.lstrip(b" ").startswith(b"#"):
            thought.append(i)
    return Tokenizer(
        enc,
        eos,
        sorted(thought),
        sorted(set(stop)),
        nbytes,
        sorted(closing),
        [] if bos is None else [bos],
        normal,
        joins_before,
    )


def encoding(ranks, pattern=PATTERN):
    return tiktoken.Encoding(
        "ra3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)}
    )


def train_tokenizer(texts, vocab_size, pattern=PATTERN):
    """Byte-level BPE on `texts` -> Tokenizer with at most vocab_size ids, eos last. Deterministic.

    The first merge is always ` #`, so that the decision to think is one token at any indentation.
    Raises UserError if vocab_size has no room for the 256 bytes, ` #` and eos.
    """
    if vocab_size < 258:
        raise UserError(
            f"vocab_size={vocab_size}: expected at least 258 (256 bytes, ' #' and the end of text)"
        )
    import regex

    count = {}
    for text in texts:
        for word in regex.findall(pattern, text):
            count[word] = count.get(word, 0) + 1
    ranks = {bytes([i]): i for i in range(256)}
    words = [([bytes([b]) for b in w.encode()], n) for w, n in sorted(count.items())]
    pairs, where = {}, {}  # pair -> its count, pair -> the words that may hold it

    def add(w, sign):
        parts, n = words[w]
        for pair in zip(parts, parts[1:]):
            pairs[pair] = pairs.get(pair, 0) + sign * n
            where.setdefault(pair, set()).add(w)

    for w in range(len(words)):
        add(w, 1)
    best = (b" ", b"#")
    while len(ranks) < vocab_size - 1:
        ranks[best[0] + best[1]] = len(ranks)
        for w in sorted(where.pop(best, ())):
            add(w, -1)
            parts, i = words[w][0], 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = [best[0] + best[1]]
                i += 1
            add(w, 1)
        pairs.pop(best, None)
        # two pairs may spell the same token (a|bc, ab|c): the second has a rank already
        best = max(
            (p for p in pairs if pairs[p] > 1 and p[0] + p[1] not in ranks),
            key=lambda p: (pairs[p], p),
            default=None,
        )
        if best is None:
            break
    return make_tokenizer(encoding(ranks, pattern), len(ranks))


def save_tokenizer(tok, path):
    """Write the ranks of a trained tokenizer: a line a token, base64, a blank, the rank. eos is the id after the last."""
    with open(f"{path}.part", "w", encoding="ascii") as f:
        for token in tok.enc.token_byte_values():
            rank = tok.enc.encode_single_token(token)
            if rank != tok.eos:
                f.write(f"{base64.b64encode(token).decode()} {rank}\n")
    os.replace(f"{path}.part", path)


def load_tokenizer(path):
    """The Tokenizer that `save_tokenizer` wrote. Raises UserError if the file is missing or is something else."""
    try:
        with open(path, encoding="ascii") as f:
            pairs = [line.split() for line in f]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        if len(ranks) < 256 or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError
    except (OSError, ValueError) as e:
        raise UserError(
            f"{path}: expected a tokenizer (a line a token: base64, blank, rank), found "
            f"{'no such file' if isinstance(e, FileNotFoundError) else 'something else'}; run --stage pretrain to make one"
        ) from None
    return make_tokenizer(encoding(ranks), len(ranks))


# How published tokenizers split text before merging, by llama.cpp's names. SmolLM2 splits off single digits first and GPT-2's pattern sees the rest
# piece by piece: blanks before a digit are the end of their piece and stay whole, others leave their last one to the word after them.
GGUF_PATTERNS = {
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def gguf_tokenizer(path):
    """The Tokenizer whose vocabulary is in a GGUF file (package `gguf`); eos is the text's end, `<|endoftext|>` where there is one.

    tiktoken merges the pair whose *result* has the lowest id, byte-level BPE the pair that comes first in the list of merges: the same
    where the results' ids rise along the list, which is checked. (A text that is a token as it stands becomes that token, whatever the merges say, as with
    Llama 3's `ignore_merges`; where every token has its merge, as in all others, that is the same again.) Bytes that the vocabulary lacks (SmolLM2: 13 that UTF-8 never has, some control
    characters, the leads of unassigned planes) get ids above it, and `encode` drops them, as other implementations do.
    Raises UserError for a file that holds no such vocabulary.
    """

    meta = open_gguf(path)[0]
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in GGUF_PATTERNS:
        raise UserError(
            f"{path}: its tokenizer is {kind!r} ({pre!r}); expected byte-level BPE, one of {', '.join(GGUF_PATTERNS)}"
        )
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    ranks = {bytes_of(t): i for i, t in enumerate(tokens) if types[i] == 1}  # 1: a normal token
    special = {t: i for i, t in enumerate(tokens) if types[i] != 1}
    made = [bytes_of(merge.replace(" ", "")) for merge in meta["tokenizer.ggml.merges"]]
    enc = merged_encoding(path, ranks, made, GGUF_PATTERNS[pre], special, len(tokens))
    return make_tokenizer(
        enc, special.get("<|endoftext|>", meta.get("tokenizer.ggml.eos_token_id")), len(tokens)
    )


SHOWN = [
    b for b in range(256) if chr(b).isprintable() and not chr(b).isspace() and b != 0xAD
]  # bytes that stand for themselves
BYTE_OF = {chr(b): b for b in SHOWN} | {
    chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in SHOWN)
}


def bytes_of(token):
    """The bytes of a token as byte-level BPE's vocabularies spell it. Example: "Ġif" -> b" if"   Raises KeyError."""
    return bytes(BYTE_OF[c] for c in token)


def merged_encoding(path, ranks, made, pattern, special, size):
    """The tiktoken.Encoding of byte-level BPE: ranks {bytes: id}, made: what each merge makes, in order. Raises UserError if it would encode otherwise.

    Several merges in a row may make the same token, as Llama 3's do: whichever comes first, the result is that token.
    """
    made = [ranks.get(token, -1) for token in made]
    if any(a > b for a, b in zip([0] + made, made)):
        raise UserError(
            f"{path}: the ids of its tokens do not rise along its list of merges; such a vocabulary cannot be read"
        )
    missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
    return tiktoken.Encoding(
        "ra3",
        pat_str=pattern,
        mergeable_ranks=ranks | {b: size + n for n, b in enumerate(missing)},
        special_tokens=special,
    )


def folder_tokenizer(folder):
    """The Tokenizer of a model's folder in Hugging Face's format, from its tokenizer.json; its vocab_size is that of config.json, which may be larger.

    eos is the text's end (`<|endoftext|>`, `<|end_of_text|>`) where there is one, for an instruct model too, else config.json's. bos is the token
    that the tokenizer puts first by itself (Llama 3). Raises UserError for a tokenizer of another kind than byte-level BPE with one of GGUF_PATTERNS.
    """
    path = os.path.join(folder, "tokenizer.json")

    def load(name):
        with open(os.path.join(folder, name), encoding="utf-8") as f:
            return json.load(f)

    def refuse(what, expected):
        return UserError(f"{path}: {what}; expected {expected}")

    try:
        said, config = load("tokenizer.json"), load("config.json")
        model, normal = said["model"], (said.get("normalizer") or {}).get("type", "")
        if (
            model.get("type", "BPE") != "BPE"
            or model.get("byte_fallback")
            or model.get("dropout")
            or model.get("continuing_subword_prefix")
        ):
            raise refuse(f"its model is {model.get('type')}", "byte-level BPE")
        if normal not in ("", "NFC"):
            raise refuse(f"its normalizer is {normal}", "NFC or none")
        pattern = pattern_of(said.get("pre_tokenizer") or {})
        if pattern not in (*GGUF_PATTERNS.values(), PATTERN):
            raise refuse(
                "it splits texts by a rule that is not known here",
                f"one of {', '.join(GGUF_PATTERNS)}",
            )
        special = {t["content"]: t["id"] for t in said.get("added_tokens", [])}
        ranks = {bytes_of(t): i for t, i in model["vocab"].items() if t not in special}
        made = [
            bytes_of("".join(merge) if isinstance(merge, list) else merge.replace(" ", ""))
            for merge in model["merges"]
        ]
        if not model.get("ignore_merges") and (
            lone := [t for t in ranks.keys() - set(made) if len(t) > 1]
        ):
            raise refuse(
                f"no merge makes its token {min(lone)!r}", "merges for all tokens, or ignore_merges"
            )
        first = next((step for step in template(said.get("post_processor") or {})), None)
        eos = config.get("eos_token_id")
        eos = special.get(
            "<|endoftext|>",
            special.get("<|end_of_text|>", eos[0] if isinstance(eos, list) else eos),
        )
        if not isinstance(eos, int):
            raise refuse(
                "nothing says which token ends a text",
                "<|endoftext|>, <|end_of_text|> or config.json's eos_token_id",
            )
        size = max(config["vocab_size"], 1 + max(*ranks.values(), *special.values()))
        enc = merged_encoding(path, ranks, made, pattern, special, size)
        return make_tokenizer(enc, eos, size, special.get(first), normal)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path}: expected a tokenizer, found {'no such file' if isinstance(e, FileNotFoundError) else 'something else'} ({e}); give the folder "
            "of a model in Hugging Face's format"
        ) from None


def pattern_of(step):
    """The pattern that a tokenizer.json's pre_tokenizer splits by, or None if it is none of the usual."""
    kinds = [part["type"] for part in step.get("pretokenizers", [step] if step else [])]
    *before, level = step.get("pretokenizers", [step] if step else [{}])
    if level.get("type") != "ByteLevel" or level.get("add_prefix_space", True):
        return None
    if kinds == ["Split", "ByteLevel"] and not level["use_regex"]:
        return (
            before[0]["pattern"].get("Regex")
            if before[0]["behavior"] == "Isolated" and not before[0].get("invert")
            else None
        )
    if kinds == ["Digits", "ByteLevel"] and level.get("use_regex", True):
        return GGUF_PATTERNS["smollm"] if before[0]["individual_digits"] else None
    return (
        GGUF_PATTERNS["gpt-2"] if kinds == ["ByteLevel"] and level.get("use_regex", True) else None
    )


def template(step):
    """The special tokens that a tokenizer.json's post_processor puts before a text."""
    for part in step.get("processors", [step]):
        for piece in part.get("single", []) if part.get("type") == "TemplateProcessing" else []:
            if "SpecialToken" not in piece:
                return
            yield piece["SpecialToken"]["id"]
