"""Tokenizers: byte-level BPE, trained here, or read from a GGUF file or a folder.

Folders are in Hugging Face's format. All are tiktoken encodings: a regular expression splits a text
into pieces, and within a piece pairs of tokens are merged, the earliest of the vocabulary first.
Texts are normalised only where the tokenizer's own file says so.
Special tokens in a text are ordinary text; added tokens that are not special are matched first.
Which tokens begin and end a thought is worked out here too.
"""

import base64
import dataclasses
import hashlib
import json
import os
import re
import unicodedata

import numpy as np
import tiktoken

from config import UserError
from formats import fields
from formats.gguf import open_gguf

# GPT-2's pattern without English contractions, and with single digits: ` ?` joins one blank to the
# word, digit or punctuation after it, a newline joins the blanks after it except the last.
# Example: "if a:\n    b = 12" -> if| a|:|\n   | b| =| 1|2
PATTERN = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Characters of Unicode 10 and later that Python composes or reorders in normal form C, and the
# `tokenizers` library, whose tables are older, does not. Text is normalised between them, so that
# ids are those of the library under any version of Python.
UNNORMALISED = re.compile(
    "([\u0897\u0898-\u089f\u08ca-\u08d3\u07fd\u09fe\u0c3c\u0d3b-\u0d3c\u0eba\u1715\u1abf-\u1aff"
    "\u1df6-\u1dfa\ua82c\U000105c0-\U000105ff\U00010d24-\U00010d27\U00010d40-\U00010d8f"
    "\U00010eab-\U00010eac\U00010efa-\U00010eff\U00010f46-\U00010f50\U00010f82-\U00010f85"
    "\U00011070\U0001133b\U00011380-\U000113ff\U0001145e\U00011839-\U0001183a\U00011930"
    "\U00011935\U00011938\U0001193d-\U0001193e\U00011943\U000119e0\U00011a34\U00011a47"
    "\U00011a99\U00011d42\U00011d44-\U00011d45\U00011d97\U00011f41-\U00011f42"
    "\U00016100-\U0001613f\U00016d40-\U00016d7f\U00016ff0-\U00016ff1\U0001e08f"
    "\U0001e130-\U0001e136\U0001e2ae\U0001e2ec-\U0001e2ef\U0001e4ec-\U0001e4ef"
    "\U0001e5ee-\U0001e5ef\U0001e6c0-\U0001e6ff])"
)


@dataclasses.dataclass
class Tokenizer:
    enc: tiktoken.Encoding
    eos: int  # id of the end-of-text token
    thought_ids: (
        list  # tokens that begin with '#' after blanks, without a newline: a thought's first
    )
    stop_ids: (
        list  # eos, and tokens with '\n' or '\r' but closing ones: they end a thought, outside it
    )
    nbytes: np.ndarray  # (V,) bytes of each token, 0 for special ones; V is the embedding's size
    closing_ids: list = dataclasses.field(default_factory=list)
    # punctuation that one '\n' has joined: a thought's last token
    bos: list = dataclasses.field(default_factory=list)  # [what every text begins with], or []
    normal: str = ""  # Unicode's normal form that texts are brought into: "" or NFC
    joins_before: bool = (
        False  # does a newline join the punctuation before it, not the indentation?
    )
    end_ids: list = dataclasses.field(
        default_factory=list
    )  # eos, and what else ends a model's text
    added: dict = dataclasses.field(default_factory=dict)  # text -> id of tokens matched in a text
    added_normal: dict = dataclasses.field(default_factory=dict)  # so, after normalisation
    marks: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)  # of data.mark

    def __post_init__(self):
        self.end_ids = list(dict.fromkeys([self.eos, *self.end_ids]))
        self.matchers = [matcher(self.added), matcher(self.added_normal)]

    def encode(self, text):
        """Ids of text, without bos. Special tokens in it are ordinary text.

        Bytes that the vocabulary lacks are dropped (see gguf_tokenizer).
        """
        ids = []
        for raw, i in split_added(text, self.matchers[0], self.added):
            if i is not None:
                ids.append(i)
                continue
            plain = normalise(raw) if self.normal else raw
            for piece, i in split_added(plain, self.matchers[1], self.added_normal):
                ids += self.enc.encode_ordinary(piece) if i is None else [i]
        if self.enc.n_vocab == len(self.nbytes):
            return ids
        return [i for i in ids if i < len(self.nbytes)]

    def decode(self, ids):
        """Text of ids. Special tokens are rendered as '', broken UTF-8 as U+FFFD."""
        raw = self.enc.decode_bytes([i for i in ids if self.nbytes[i]])
        return raw.decode("utf-8", errors="replace")

    def start(self, text):
        """What a model goes on from -> (ids, how its completion begins).

        text: it ends where a line ends, its newline not included.
        Example: "def f():" -> (def| f|():, "") where a newline joins what follows;
        (def| f|():\\n, "\\n") where it joins what precedes.
        """
        head = "\n" if self.joins_before and not text.endswith("\n") else ""
        return self.bos + self.encode(text + head), head

    @property
    def vocab_size(self):
        """Size of the embedding."""
        return len(self.nbytes)


def matcher(tokens):
    """A regular expression that finds any of the texts, the longest first; None for no texts."""
    if not tokens:
        return None
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def split_added(text, pattern, ids):
    """A text cut at added tokens -> (piece, id or None) each. Example: "a<t>" -> a, None; <t>, 7"""
    if pattern is None:
        return [(text, None)]
    pieces = pattern.split(text)  # text and tokens alternate
    return [(piece, ids[piece] if n % 2 else None) for n, piece in enumerate(pieces) if piece]


def normalise(text):
    """Normal form C, as the `tokenizers` library computes it."""
    if text.isascii():
        return text
    pieces = UNNORMALISED.split(text)
    return "".join(unicodedata.normalize("NFC", piece) for piece in pieces)


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


def make_tokenizer(
    enc, eos, vocab_size=None, bos=None, normal="", *, end_ids=(), added=None, added_normal=None
):
    """A Tokenizer around a tiktoken encoding.

    eos           the id of its end-of-text token. bos: an id or None.
    vocab_size    size of the embedding; None: the encoding's.
    end_ids       what else ends a text of the model.
    added         {text: id} of tokens that are matched in a text before anything else;
                  added_normal: so, in the normalised text.
    """
    import regex

    added = added or {}
    added_normal = added_normal or {}
    nbytes = np.zeros(vocab_size or enc.n_vocab, dtype=np.int64)  # (V,)
    joins_before = regex.match(enc._pat_str, ":\n  x").end() == 2
    kinds = {"thought": [], "stop": [eos], "closing": []}
    tokens = {enc.encode_single_token(token): token for token in enc.token_byte_values()}
    tokens |= {i: text.encode() for text, i in (added | added_normal).items()}
    for i, token in tokens.items():
        if i < len(nbytes):
            nbytes[i] = len(token)
            if kind := kind_of(token, joins_before):
                kinds[kind].append(i)
    return Tokenizer(
        enc=enc,
        eos=eos,
        thought_ids=sorted(kinds["thought"]),
        stop_ids=sorted(set(kinds["stop"])),
        nbytes=nbytes,
        closing_ids=sorted(kinds["closing"]),
        bos=[] if bos is None else [bos],
        normal=normal,
        joins_before=joins_before,
        end_ids=list(end_ids),
        added=added,
        added_normal=added_normal,
    )


def kind_of(token, joins_before):
    """What a token (bytes) does to a thought: "thought" begins it, "closing" and "stop" end it.

    Example: b" #" -> "thought"; b":\\n" -> "closing"; b"\\n\\n" -> "stop"; b"x" -> None
    """
    if b"\n" in token or b"\r" in token:
        one_newline = token.endswith(b"\n") and token.count(b"\n") == 1 and b"\r" not in token
        return "closing" if joins_before and one_newline and token.strip() else "stop"
    return "thought" if token.lstrip(b" ").startswith(b"#") else None


# ---------------------------------------------------------------- training


def encoding(ranks, pattern=PATTERN):
    """The tiktoken.Encoding of a vocabulary {bytes: id}; the end of text is the id after it."""
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
    words = Words(count)
    ranks = {bytes([i]): i for i in range(256)}
    pair = (b" ", b"#")
    while pair is not None and len(ranks) < vocab_size - 1:
        ranks[pair[0] + pair[1]] = len(ranks)
        words.merge(pair)
        pair = words.commonest_pair(ranks)
    return make_tokenizer(encoding(ranks, pattern), len(ranks))


class Words:
    """The words of a corpus, cut into tokens, and the counts of neighbouring tokens."""

    def __init__(self, count):
        """count: {word: how often it occurs}."""
        self.words = [([bytes([b]) for b in w.encode()], n) for w, n in sorted(count.items())]
        self.pairs = {}  # pair -> its count
        self.holders = {}  # pair -> the words that may hold it
        for number in range(len(self.words)):
            self.count_pairs(number, 1)

    def count_pairs(self, number, sign):
        """Add the pairs of a word, or with sign -1 take them away."""
        tokens, n = self.words[number]
        for pair in zip(tokens, tokens[1:], strict=False):
            self.pairs[pair] = self.pairs.get(pair, 0) + sign * n
            self.holders.setdefault(pair, set()).add(number)

    def merge(self, pair):
        """Make the pair one token in all words."""
        for number in sorted(self.holders.pop(pair, ())):
            self.count_pairs(number, -1)
            tokens = self.words[number][0]
            i = 0
            while i < len(tokens) - 1:
                if (tokens[i], tokens[i + 1]) == pair:
                    tokens[i : i + 2] = [pair[0] + pair[1]]
                i += 1
            self.count_pairs(number, 1)
        self.pairs.pop(pair, None)

    def commonest_pair(self, ranks):
        """The pair to merge next, or None if none occurs twice.

        Two pairs may spell the same token (a|bc, ab|c): the second has a rank already.
        """
        pairs = [p for p, n in self.pairs.items() if n > 1 and p[0] + p[1] not in ranks]
        return max(pairs, key=lambda p: (self.pairs[p], p), default=None)


def save_tokenizer(tok, path):
    """Write the ranks of a trained tokenizer: a line a token, base64, a blank, the rank.

    eos is the id after the last.
    """
    with open(f"{path}.part", "w", encoding="ascii") as f:
        for token in tok.enc.token_byte_values():
            rank = tok.enc.encode_single_token(token)
            if rank != tok.eos:
                f.write(f"{base64.b64encode(token).decode()} {rank}\n")
    os.replace(f"{path}.part", path)


def load_tokenizer(path):
    """The Tokenizer that `save_tokenizer` wrote. Raises UserError if the file is not one."""
    try:
        with open(path, encoding="ascii") as f:
            pairs = [line.split() for line in f]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        if len(ranks) < 256 or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError
    except (OSError, ValueError) as e:
        problem = "no such file" if isinstance(e, FileNotFoundError) else "something else"
        raise UserError(
            f"{path}: expected a tokenizer (a line a token: base64, blank, rank), found {problem}; "
            "run --stage pretrain to make one"
        ) from None
    return make_tokenizer(encoding(ranks), len(ranks))


# ---------------------------------------------------------------- published vocabularies

# How published tokenizers split text before merging, by llama.cpp's names.
# SmolLM2 splits off single digits first, and GPT-2's pattern sees the rest piece by piece: blanks
# before a digit end their piece and stay together; others leave their last one to the next word.
GGUF_PATTERNS = {
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?![^\s\p{N}])|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>")  # the end of a text, of an instruct model too
NORMAL, USER_DEFINED = 1, 4  # types of tokens in GGUF files

# The bytes that stand for themselves in a vocabulary's spelling, and the byte of each character.
SHOWN = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace() and b != 0xAD]
HIDDEN = [b for b in range(256) if b not in SHOWN]
BYTE_OF = {chr(b): b for b in SHOWN} | {chr(256 + n): b for n, b in enumerate(HIDDEN)}


def bytes_of(token):
    """The bytes of a token as BPE spells it. Example: "Ġif" -> b" if"   Raises KeyError."""
    return bytes(BYTE_OF[c] for c in token)


def merged_encoding(path, ranks, merged, pattern, special, size):
    """The tiktoken.Encoding of byte-level BPE. Raises UserError if it would encode otherwise.

    ranks    {bytes: id}.
    merged   the bytes that each merge makes, in order. Several merges in a row may make the same
             token, as Llama 3's do: whichever comes first, the result is that token.
    special  {text: id}; size: of the embedding.
    """
    order = [ranks.get(token, -1) for token in merged]
    if any(a > b for a, b in zip([0] + order, order, strict=False)):
        raise UserError(
            f"{path}: the ids of its tokens do not rise along its list of merges; "
            "such a vocabulary cannot be read"
        )
    missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
    return tiktoken.Encoding(
        "ra3",
        pat_str=pattern,
        mergeable_ranks=ranks | {b: size + n for n, b in enumerate(missing)},
        special_tokens=special,
    )


# ---------------------------------------------------------------- GGUF


def gguf_tokenizer(path):
    """The Tokenizer in a GGUF file (package `gguf`). Raises UserError if it holds none like it.

    eos is `<|endoftext|>` where there is one, else the file's eos. bos is the file's if it is put
    before every text. User-defined tokens are matched in a text; other special ones are not.

    tiktoken picks the merge with the lowest *result id*, byte-level BPE the first merge *in the
    list*. They agree if result ids rise along the list; we check that. tiktoken also maps a text
    that is itself a token to that token (as `ignore_merges` does); with a merge for every token
    this changes nothing.

    Bytes that the vocabulary lacks get ids above it, and `encode` drops them, as other
    implementations do. (SmolLM2 lacks 13 that UTF-8 never has, some control characters, and the
    leads of unassigned planes.)
    """
    meta = open_gguf(path)[0]
    pre = meta.get("tokenizer.ggml.pre")
    model = meta.get("tokenizer.ggml.model")
    if model != "gpt2" or pre not in GGUF_PATTERNS:
        raise UserError(
            f"{path}: its tokenizer is {model!r} ({pre!r}); expected byte-level BPE, "
            f"one of {', '.join(GGUF_PATTERNS)}"
        )
    tokens = fields.text_list(meta, "tokenizer.ggml.tokens", path)
    merges = fields.text_list(meta, "tokenizer.ggml.merges", path)
    types = meta.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(f"{path}: tokenizer.ggml.token_type: expected {len(tokens)} types")
    ranks = {}
    special = {}
    added = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == NORMAL:
            ranks[spelled(path, token)] = i
        else:
            special[token] = i
        if kind == USER_DEFINED:
            added[token] = i
    merged = [spelled(path, merge.replace(" ", "")) for merge in merges]
    enc = merged_encoding(path, ranks, merged, GGUF_PATTERNS[pre], special, len(tokens))
    ends = []
    for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"):
        ends += fields.id_list(meta, key, path, len(tokens))
    eos = text_end(path, special, ends)
    bos = gguf_bos(path, meta, pre, len(tokens))
    return make_tokenizer(enc, eos, len(tokens), bos, end_ids=ends, added=added)


def gguf_bos(path, meta, pre, size):
    """The id that every text begins with, or None. Raises UserError.

    Without add_bos_token, Llama 3's tokenizer puts it first and the others do not (llama.cpp).
    """
    if fields.boolean(meta, "tokenizer.ggml.add_eos_token", path, False):
        raise fields.wrong_field(path, "tokenizer.ggml.add_eos_token", True, "false")
    if not fields.boolean(meta, "tokenizer.ggml.add_bos_token", path, pre == "llama-bpe"):
        return None
    ids = fields.id_list(meta, "tokenizer.ggml.bos_token_id", path, size)
    if len(ids) != 1:
        raise fields.wrong_field(path, "tokenizer.ggml.bos_token_id", ids or None, "a token id")
    return ids[0]


def spelled(path, token):
    """`bytes_of`, as a UserError for a token that is no byte-level BPE."""
    try:
        return bytes_of(token)
    except KeyError:
        raise UserError(
            f"{path}: its token {token!r} is not spelled in bytes; expected byte-level BPE"
        ) from None


def text_end(path, special, ends):
    """The id of the end of a text: TEXT_ENDS, else the first of the end ids. Raises UserError."""
    for text in TEXT_ENDS:
        if text in special:
            return special[text]
    if not ends:
        raise UserError(
            f"{path}: nothing says which token ends a text; expected <|endoftext|>, "
            "<|end_of_text|> or an eos_token_id"
        )
    return ends[0]


# ---------------------------------------------------------------- folders


def folder_tokenizer(folder):
    """The Tokenizer of a model's folder in Hugging Face's format, from its tokenizer.json.

    Its vocab_size is config.json's, which may be larger than the vocabulary.
    eos is the end of a text (TEXT_ENDS) where there is one, for an instruct model too.
    end_ids are those of generation_config.json, else of config.json.
    bos is the token that the tokenizer puts first by itself (Llama 3).
    Raises UserError for another kind than byte-level BPE with one of GGUF_PATTERNS.
    """
    path = os.path.join(folder, "tokenizer.json")
    try:
        return tokenizer_of_files(folder, path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        problem = "no such file" if isinstance(e, FileNotFoundError) else "something else"
        raise UserError(
            f"{path}: expected a tokenizer, found {problem} ({e}); "
            "give the folder of a model in Hugging Face's format"
        ) from None


def read_record(folder, name):
    """A JSON file of a folder."""
    with open(os.path.join(folder, name), encoding="utf-8") as f:
        return json.load(f)


def tokenizer_of_files(folder, path):
    """`folder_tokenizer`, with other errors for files that are no tokenizer's."""
    record = read_record(folder, "tokenizer.json")
    normal = check_kind(path, record)
    pattern = pattern_of(record.get("pre_tokenizer") or {})
    if pattern not in (*GGUF_PATTERNS.values(), PATTERN):
        raise UserError(
            f"{path}: it splits texts by a rule that is not known here; "
            f"expected one of {', '.join(GGUF_PATTERNS)}"
        )
    model = record["model"]
    special = {token["content"]: token["id"] for token in record.get("added_tokens", [])}
    ranks = {bytes_of(token): i for token, i in model["vocab"].items() if token not in special}
    merged = [bytes_of("".join(pair(merge))) for merge in model["merges"]]
    unmade = [token for token in ranks.keys() - set(merged) if len(token) > 1]
    if unmade and not model.get("ignore_merges"):
        raise UserError(
            f"{path}: no merge makes its token {min(unmade)!r}; "
            "expected merges for all tokens, or ignore_merges"
        )
    config_path = os.path.join(folder, "config.json")
    stated = fields.whole_number(read_record(folder, "config.json"), "vocab_size", config_path)
    size = max(stated, 1 + max(*ranks.values(), *special.values()))
    enc = merged_encoding(path, ranks, merged, pattern, special, size)
    ends = ends_of_folder(folder, size)
    return make_tokenizer(
        enc,
        text_end(path, special, ends),
        size,
        special.get(first_token_of(path, record)),
        normal,
        end_ids=ends,
        added=added_tokens(path, record, normalized=False),
        added_normal=added_tokens(path, record, normalized=True),
    )


def check_kind(path, record):
    """The normal form of texts. Raises UserError for another model than byte-level BPE."""
    model = record["model"]
    odd = ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model.get("type", "BPE") != "BPE" or any(model.get(key) for key in odd):
        raise UserError(f"{path}: its model is {model.get('type')}; expected byte-level BPE")
    normal = (record.get("normalizer") or {}).get("type", "")
    if normal not in ("", "NFC"):
        raise UserError(f"{path}: its normalizer is {normal}; expected NFC or none")
    return normal


def pair(merge):
    """The two parts of a merge, in either of the two forms of tokenizer.json."""
    return merge if isinstance(merge, list) else merge.split(" ")


def added_tokens(path, record, normalized):
    """{text: id} of added tokens that are not special: they are matched in texts.

    normalized: those matched after normalisation; or those before. Raises UserError for tokens
    that swallow blanks or match whole words only.
    """
    result = {}
    for token in record.get("added_tokens", []):
        if token.get("special", False) or token.get("normalized", True) != normalized:
            continue
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key):
                raise UserError(
                    f"{path}: its added token {token['content']!r} has {key}; expected none"
                )
        result[token["content"]] = token["id"]
    return result


def ends_of_folder(folder, size):
    """The ids that end a model's text: generation_config.json's, else config.json's, or []."""
    for name in ("generation_config.json", "config.json"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            ids = fields.id_list(read_record(folder, name), "eos_token_id", path, size)
            if ids:
                return ids
    return []


def first_token_of(path, record):
    """The special token that a tokenizer puts before a text, or None.

    Raises UserError if it puts several there, or any after it.
    """
    step = record.get("post_processor") or {}
    pieces = []
    for part in step.get("processors", [step]):
        if part.get("type") == "TemplateProcessing":
            pieces += part["single"]
    names = [piece.get("SpecialToken", {}).get("id") for piece in pieces]
    if names in ([], [None]):
        return None
    if len(names) == 2 and names[1] is None:
        return names[0]
    raise UserError(
        f"{path}: it puts special tokens around a text ({len(names)} pieces); "
        "expected one before it, or none"
    )


def pattern_of(step):
    """The pattern that a tokenizer.json's pre_tokenizer splits by, or None if it is unusual."""
    steps = step.get("pretokenizers", [step] if step else [])
    kinds = [part["type"] for part in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return None
    level = steps[-1]
    if kinds == ["Split", "ByteLevel"] and not level["use_regex"]:
        return pattern_of_split(steps[0])
    if not level.get("use_regex", True):
        return None
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return GGUF_PATTERNS["smollm"]
    return GGUF_PATTERNS["gpt-2"] if kinds == ["ByteLevel"] else None


def pattern_of_split(step):
    """The regular expression of a Split that keeps what it matches, or None."""
    if step["behavior"] != "Isolated" or step.get("invert"):
        return None
    return step["pattern"].get("Regex")
