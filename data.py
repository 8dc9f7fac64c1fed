"""Text, lines and ids: tokenizers, snippets cut into lines that can take a thought, infusion, packing.

A snippet is what is given (s_0) and L lines a_0 … a_{L-1}. Before each line the model either writes the expert's next token (<act>) or a comment
at the same indentation (<think>), and after the comment a newline and that indentation again:

    … :|\\n   | return| x                        <act>:    the decision is the token ` return`
    … :|\\n   | #| the| sum|\\n   | return| x     <think>:  the decision is the token ` #`

Both branches share `\\n   `, so the decision is one token, and so is the choice of form: ` #` where the tokenizer joins one blank to what follows it,
`#` in column 0. A thought is inserted between tokens of the canonical encoding (that of the whole text), and only where the encoding
of the text with a comment in it is again the ids put together: a probe comment before each line decides. Token ids are the record; nothing is
decoded and encoded again.

Where a line begins in tokens, and where a thought goes, by style of tokenizer (a bar between tokens, ^ where <act> or <think> is decided):

    GPT-2, SmolLM2     if| x|:|\\n   |^ return| x       a newline joins the indentation after it, but for its last blank;
                       if| x|:|\\n   |^ #| why|\\n   | return| x
    Qwen, Llama 3      if| x|:\\n|   |^ return| x       it joins the punctuation and the newlines before it (`:\\n`, `()\\n\\n`), else it stands alone;
                       if| x|:\\n|   |^ #| why|\\n|   | return| x

In all of them the indentation leaves its last blank to the first token of the content or to ` #`. (A tab it leaves to a word only, in the second
row, so that lines which begin with a word behind tabs take no thoughts there.) In the second row a prefix of the text is not always a prefix of
its ids: s_0 ends before the `:\\n`, and what a model is given to write on from has its newline (`Tokenizer.start`). A thought ends

    at a stop token     `\\n`, `\\n\\n`, ` \\n`, the end of text: not part of it; all of them mean the same, and `\\n` + indentation follows
    with a closing one  `.\\n`, `)\\n`: its last token, for itself, which brings the newline; the indentation follows
                        if| x|:\\n|   |^ #| why|.\\n|   | return| x

(What stands before several newlines, `.\\n\\n`, or before a carriage return, is left out: those are stop tokens.)

Letters: B rows, T tokens, L lines.
"""
import base64
import dataclasses
import io
import json
import os
import tokenize
import unicodedata

import numpy as np
import tiktoken
import torch
import torch.nn.functional as F

from config import UserError

# GPT-2's pattern without English contractions, and with single digits: ` ?` joins one blank to the word, digit or punctuation after
# it, a newline joins the blanks after it except the last.   Example: "if a:\n    b = 12" -> if| a|:|\n   | b| =| 1|2
PATTERN = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

PROMPT, CODE, THOUGHT = 0, 1, 2      # kinds of token; padding is -1


# ---------------------------------------------------------------------------------------------------------------- tokenizers

@dataclasses.dataclass
class Tokenizer:
    enc: tiktoken.Encoding
    eos: int                 # id of the end-of-text token
    thought_ids: list        # tokens whose text, leading blanks dropped, begins with '#' (and holds no newline): one of them starts a thought
    stop_ids: list           # tokens that contain '\n' or '\r', but for closing ones, and eos: they end a thought, and are not part of it
    nbytes: np.ndarray       # (V,) length of each token in bytes; 0 for special tokens. V is the size of the embedding
    closing_ids: list = dataclasses.field(default_factory=list)      # punctuation that one '\n' has joined: a thought's last token
    bos: list = dataclasses.field(default_factory=list)      # [the token that every text begins with], or []
    normal: str = ""         # Unicode's normal form that texts are brought into: "", NFC, ...
    joins_before: bool = False      # does a newline join the punctuation before it (else the indentation after it)?
    marks: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)     # cache of `mark`

    def encode(self, text):
        """Ids of text, without bos. Special tokens in it are ordinary text. Bytes that the vocabulary lacks are dropped (see gguf_tokenizer)."""
        if self.normal:
            text = unicodedata.normalize(self.normal, text)
        ids = self.enc.encode_ordinary(text)
        return ids if self.enc.n_vocab == len(self.nbytes) else [i for i in ids if i < len(self.nbytes)]

    def decode(self, ids):
        """Text of ids. Special tokens are rendered as '', broken UTF-8 as U+FFFD."""
        return self.enc.decode_bytes([i for i in ids if self.nbytes[i]]).decode("utf-8", errors="replace")

    def start(self, text):
        """What a model is given to go on from a text that ends where a line ends, its newline not included -> (ids, how the completion begins).

        Example: "def f():" -> (def| f|():, "") where a newline joins what follows; (def| f|():\\n, "\\n") where it joins what precedes.
        """
        head = "\n" if self.joins_before and not text.endswith("\n") else ""
        return self.bos + self.encode(text + head), head

    @property
    def vocab_size(self):
        """Size of the embedding."""
        return len(self.nbytes)


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
        if joins_before and token.endswith(b"\n") and token.strip() and token.count(b"\n") == 1 and b"\r" not in token:
            closing.append(i)
        elif b"\n" in token or b"\r" in token:
            stop.append(i)
        elif token.lstrip(b" ").startswith(b"#"):
            thought.append(i)
    return Tokenizer(enc, eos, sorted(thought), sorted(set(stop)), nbytes, sorted(closing), [] if bos is None else [bos], normal, joins_before)


def encoding(ranks, pattern=PATTERN):
    return tiktoken.Encoding("ra3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})


def train_tokenizer(texts, vocab_size, pattern=PATTERN):
    """Byte-level BPE on `texts` -> Tokenizer with at most vocab_size ids, eos last. Deterministic.

    The first merge is always ` #`, so that the decision to think is one token at any indentation.
    Raises UserError if vocab_size has no room for the 256 bytes, ` #` and eos.
    """
    if vocab_size < 258:
        raise UserError(f"vocab_size={vocab_size}: expected at least 258 (256 bytes, ' #' and the end of text)")
    import regex
    count = {}
    for text in texts:
        for word in regex.findall(pattern, text):
            count[word] = count.get(word, 0) + 1
    ranks = {bytes([i]): i for i in range(256)}
    words = [([bytes([b]) for b in w.encode()], n) for w, n in sorted(count.items())]
    pairs, where = {}, {}                                    # pair -> its count, pair -> the words that may hold it

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
                    parts[i:i + 2] = [best[0] + best[1]]
                i += 1
            add(w, 1)
        pairs.pop(best, None)
        # two pairs may spell the same token (a|bc, ab|c): the second has a rank already
        best = max((p for p in pairs if pairs[p] > 1 and p[0] + p[1] not in ranks), key=lambda p: (pairs[p], p), default=None)
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
        raise UserError(f"{path}: expected a tokenizer (a line a token: base64, blank, rank), found "
                        f"{'no such file' if isinstance(e, FileNotFoundError) else 'something else'}; run --stage pretrain to make one") from None
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
    from model import open_gguf
    meta = open_gguf(path)[0]
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in GGUF_PATTERNS:
        raise UserError(f"{path}: its tokenizer is {kind!r} ({pre!r}); expected byte-level BPE, one of {', '.join(GGUF_PATTERNS)}")
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    ranks = {bytes_of(t): i for i, t in enumerate(tokens) if types[i] == 1}                             # 1: a normal token
    special = {t: i for i, t in enumerate(tokens) if types[i] != 1}
    made = [bytes_of(merge.replace(" ", "")) for merge in meta["tokenizer.ggml.merges"]]
    enc = merged_encoding(path, ranks, made, GGUF_PATTERNS[pre], special, len(tokens))
    return make_tokenizer(enc, special.get("<|endoftext|>", meta.get("tokenizer.ggml.eos_token_id")), len(tokens))


SHOWN = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace() and b != 0xAD]          # bytes that stand for themselves
BYTE_OF = {chr(b): b for b in SHOWN} | {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in SHOWN)}


def bytes_of(token):
    """The bytes of a token as byte-level BPE's vocabularies spell it. Example: "Ġif" -> b" if"   Raises KeyError."""
    return bytes(BYTE_OF[c] for c in token)


def merged_encoding(path, ranks, made, pattern, special, size):
    """The tiktoken.Encoding of byte-level BPE: ranks {bytes: id}, made: what each merge makes, in order. Raises UserError if it would encode otherwise.

    Several merges in a row may make the same token, as Llama 3's do: whichever comes first, the result is that token.
    """
    made = [ranks.get(token, -1) for token in made]
    if any(a > b for a, b in zip([0] + made, made)):
        raise UserError(f"{path}: the ids of its tokens do not rise along its list of merges; such a vocabulary cannot be read")
    missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
    return tiktoken.Encoding("ra3", pat_str=pattern, mergeable_ranks=ranks | {b: size + n for n, b in enumerate(missing)}, special_tokens=special)


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
        if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or model.get("dropout") or model.get("continuing_subword_prefix"):
            raise refuse(f"its model is {model.get('type')}", "byte-level BPE")
        if normal not in ("", "NFC"):
            raise refuse(f"its normalizer is {normal}", "NFC or none")
        pattern = pattern_of(said.get("pre_tokenizer") or {})
        if pattern not in (*GGUF_PATTERNS.values(), PATTERN):
            raise refuse("it splits texts by a rule that is not known here", f"one of {', '.join(GGUF_PATTERNS)}")
        special = {t["content"]: t["id"] for t in said.get("added_tokens", [])}
        ranks = {bytes_of(t): i for t, i in model["vocab"].items() if t not in special}
        made = [bytes_of("".join(merge) if isinstance(merge, list) else merge.replace(" ", "")) for merge in model["merges"]]
        if not model.get("ignore_merges") and (lone := [t for t in ranks.keys() - set(made) if len(t) > 1]):
            raise refuse(f"no merge makes its token {min(lone)!r}", "merges for all tokens, or ignore_merges")
        first = next((step for step in template(said.get("post_processor") or {})), None)
        eos = config.get("eos_token_id")
        eos = special.get("<|endoftext|>", special.get("<|end_of_text|>", eos[0] if isinstance(eos, list) else eos))
        if not isinstance(eos, int):
            raise refuse("nothing says which token ends a text", "<|endoftext|>, <|end_of_text|> or config.json's eos_token_id")
        size = max(config["vocab_size"], 1 + max(*ranks.values(), *special.values()))
        enc = merged_encoding(path, ranks, made, pattern, special, size)
        return make_tokenizer(enc, eos, size, special.get(first), normal)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: expected a tokenizer, found {'no such file' if isinstance(e, FileNotFoundError) else 'something else'} ({e}); give the folder "
                        "of a model in Hugging Face's format") from None


def pattern_of(step):
    """The pattern that a tokenizer.json's pre_tokenizer splits by, or None if it is none of the usual."""
    kinds = [part["type"] for part in step.get("pretokenizers", [step] if step else [])]
    *before, level = step.get("pretokenizers", [step] if step else [{}])
    if level.get("type") != "ByteLevel" or level.get("add_prefix_space", True):
        return None
    if kinds == ["Split", "ByteLevel"] and not level["use_regex"]:
        return before[0]["pattern"].get("Regex") if before[0]["behavior"] == "Isolated" and not before[0].get("invert") else None
    if kinds == ["Digits", "ByteLevel"] and level.get("use_regex", True):
        return GGUF_PATTERNS["smollm"] if before[0]["individual_digits"] else None
    return GGUF_PATTERNS["gpt-2"] if kinds == ["ByteLevel"] and level.get("use_regex", True) else None


def template(step):
    """The special tokens that a tokenizer.json's post_processor puts before a text."""
    for part in step.get("processors", [step]):
        for piece in part.get("single", []) if part.get("type") == "TemplateProcessing" else []:
            if "SpecialToken" not in piece:
                return
            yield piece["SpecialToken"]["id"]


# ---------------------------------------------------------------------------------------------------------------- snippets

@dataclasses.dataclass
class Snippet:
    ids: list        # bos, if the tokenizer has one; the canonical encoding of the text; eos
    prompt: int      # ids[:prompt] is s_0, what is given: it ends where a line ends, its newline not included
    first: list      # (L,) index in ids of the first token of line t's content, where <act> or <think> is decided;
                     # ids[prompt:first[0]] is newline + indentation
    sep: list        # (L,) ids of "\n" + indentation, which stand between a thought and line t (`inserted`)
    name: str = ""

    # Line t is ids[first[t]:first[t+1]]: content, newline, indentation of the next line. The last one runs to the end and includes eos.


def statements(text):
    """Character offsets at which statements (logical lines) begin, where only blanks stand before them on their line.

    Example: "x = [1,\\n  2]; y = 3\\n\\nif x:\\n    z" -> [0, 21, 31].   Raises SyntaxError or tokenize.TokenError.
    """
    starts, fresh = [], True
    at = [0] + [i + 1 for i, ch in enumerate(text) if ch == "\n"]        # offset of each physical line
    skip = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            fresh = True
        elif fresh and token.type not in skip:
            fresh = False
            line = at[token.start[0] - 1]
            if not text[line:line + token.start[1]].strip(" \t"):
                starts.append(line + token.start[1])
    return starts


def mark(tok, indent):
    """How a comment is written after the indentation -> (first token of the comment, blanks it carries, ids of "\\n" + the rest), or None.

    Example, GPT-2 style: 4 blanks -> (` #`, 1, [`\\n   `]);   no indentation -> (`#`, 0, [`\\n`])
    """
    if indent not in tok.marks:
        *sep, last = tok.encode("\n" + indent + "#")
        carry = int(tok.nbytes[last]) - 1
        ok = carry in (0, 1) and last in tok.thought_ids
        tok.marks[indent] = (last, carry, sep) if ok else None
    return tok.marks[indent]


def snippet(tok, text, prompt_chars, name=""):
    """Cut a text without comments of its own into lines -> Snippet, or None if no line after text[:prompt_chars] can take a thought.

    A line is a decision point if a comment before it leaves the encoding of everything else as it is; other lines belong to the line
    before them, or to the prompt if no line comes before them. So do blank lines and the continuations of a statement.
    Raises SyntaxError or tokenize.TokenError where the text is not Python, UnicodeEncodeError where it holds lone surrogates.
    """
    def offset(chars):
        return chars if text.isascii() else len(text[:chars].encode())

    raw = text.encode()
    ids = tok.encode(text)
    ends = np.cumsum(tok.nbytes[ids])
    if len(ends) == 0 or tok.decode(ids) != text:                        # bytes that the vocabulary lacks, characters that it spells in another way
        return None
    index = {int(end): i + 1 for i, end in enumerate(ends)}              # byte offset -> index of the token that begins there
    points = []                  # (index, first token of a comment, sep, byte offset, the content's offset in characters)
    for start in statements(text):
        if start < prompt_chars:
            continue
        indent = text[text.rfind("\n", 0, start) + 1:start]
        form = mark(tok, indent)
        if form:
            at = offset(start) - form[1]
            if index.get(at, len(ids)) < len(ids):
                points.append((index[at], form[0], form[2], at, start))

    probe = tok.encode(" x")

    def survives(some):
        """Is the encoding of the text with a probe comment before each of these lines what we would put together?"""
        out, chars, i, j = [], [], 0, 0
        for first, hash_id, sep, at, _ in some:
            inserted = [hash_id] + probe + sep
            out += ids[i:first] + inserted
            chars += [raw[j:at], tok.enc.decode_bytes(inserted)]
            i, j = first, at
        return tok.encode((b"".join(chars) + raw[j:]).decode()) == out + ids[i:]

    if not survives(points):
        points = [p for p in points if survives([p])]
    if not points:
        return None
    given = offset(len(text[:points[0][4]].rstrip()))
    prompt = int(np.searchsorted(ends, given, side="right"))             # tokens that end at or before it
    n = len(tok.bos)
    return Snippet(tok.bos + ids + [tok.eos], n + prompt, [n + p[0] for p in points], [p[2] for p in points], name)


def inserted(tok, thought, sep):
    """What a thought puts before a line: itself and the line's sep, but for the newline that a closing token brings.

    Example: ` #| why`, `\\n|   ` -> ` #| why|\\n|   `;   ` #| why|.\\n`, `\\n|   ` -> ` #| why|.\\n|   `
    """
    return [*thought, *sep[thought[-1] in tok.closing_ids:]]


def infuse(tok, snip, thoughts):
    """Write thoughts into a snippet -> (ids, kinds), two lists of equal length.

    thoughts: {line: ids} or a list of L (ids, or None/[] for <act>). kinds: PROMPT, CODE or THOUGHT (what is `inserted`);
    the ids whose kind is not THOUGHT are snip.ids exactly.
    """
    if not isinstance(thoughts, dict):
        thoughts = dict(enumerate(thoughts))
    ids, kinds, last = list(snip.ids[:snip.prompt]), [PROMPT] * snip.prompt, snip.prompt
    for t, first in enumerate(snip.first):
        if thoughts.get(t):
            new = inserted(tok, thoughts[t], snip.sep[t])
            ids += snip.ids[last:first] + new
            kinds += [CODE] * (first - last) + [THOUGHT] * len(new)
            last = first
    return ids + snip.ids[last:], kinds + [CODE] * (len(snip.ids) - last)


def canonical(tok, ids):
    """Are the ids (but for a bos and a final eos) what the tokenizer makes of their own text?"""
    ids = list(ids)
    if ids and ids[-1] == tok.eos:
        ids.pop()
    if ids and ids[:1] == tok.bos:
        del ids[0]
    return tok.encode(tok.decode(ids)) == ids


# ---------------------------------------------------------------------------------------------------------------- packing

def one_row(docs, kinds=None, multiple=1):
    """Documents one behind the other as a row of tensors: ids, pos, doc (1, T) int64 and kind (1, T) int8. T is their tokens.

    pos restarts at 0 in each document; doc numbers them. multiple: pad to a multiple of so many tokens; padding is a document of its own with ids 0,
    doc -1 and kind -1. kinds: a list like docs, or None (then kind is CODE).   Example: [[5, 6], [7]] -> ids [[5, 6, 7]], pos [[0, 1, 0]], doc [[0, 0, 1]]
    """
    sizes = [len(d) for d in docs]
    rest = -sum(sizes) % multiple
    pos = [torch.arange(size) for size in sizes] + [torch.arange(rest)]
    doc = torch.arange(len(docs)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    kinds = [[CODE] * size for size in sizes] if kinds is None else kinds
    ids, kind = (torch.tensor([i for d in lists for i in d], dtype=dtype) for lists, dtype in ((docs, torch.int64), (kinds, torch.int8)))
    return F.pad(ids, (0, rest))[None], torch.cat(pos)[None], F.pad(doc, (0, rest), value=-1)[None], F.pad(kind, (0, rest), value=-1)[None]


def one_tree(rows):
    """Rows of ids as one packed row in which a beginning that several share stands once -> (ids, pos, doc (1, T) int64, before, where).

    A row is a document of the tokens in which it differs from the row before it, in lexicographic order; before: numbers of the tokens that stand before
    each document; where: (len(row),) numbers of the tokens of each row. So T is the number of nodes of the rows' trie.
    Example: [[5, 6, 7], [5, 6, 8]] -> ids [[5, 6, 7, 8]], pos [[0, 1, 2, 2]], doc [[0, 0, 0, 1]], before [[], [0, 1]], where [[0, 1, 2], [0, 1, 3]]
    """
    ids, pos, doc, before, where, last, path = [], [], [], [], [None] * len(rows), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for n in sorted(range(len(rows)), key=lambda n: rows[n]):
        row = np.array(rows[n])
        m = common(last, row)
        path = path[:m]                                      # numbers of the tokens that it shares
        if m < len(row):                                     # else it is the same row again
            doc += [len(before)] * (len(row) - m)
            before.append(torch.from_numpy(path))
            path = np.concatenate([path, np.arange(len(ids), len(ids) + len(row) - m)])
            ids += rows[n][m:]
            pos += range(m, len(row))
        where[n], last = path, row
    return *(torch.tensor(x)[None] for x in (ids, pos, doc)), before, [torch.from_numpy(w) for w in where]


def tree_parts(rows, most):
    """Deal rows out to parts whose trees have at most so many tokens (or that are a single row), those with equal beginnings together -> lists of indices."""
    parts, last, room = [], np.zeros(0, np.int64), 0
    for n in sorted(range(len(rows)), key=lambda n: rows[n]):
        row = np.array(rows[n])
        new = len(row) - common(last, row)
        if not parts or new > room:
            parts.append([])
            new, room = len(row), max(most, len(row))
        parts[-1].append(n)
        room, last = room - new, row
    return parts


def common(a, b):
    """How many tokens two rows (numpy arrays) begin with alike.   Example: [5, 6, 7], [5, 6, 8] -> 2"""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
