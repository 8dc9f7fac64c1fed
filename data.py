"""Text, lines and ids: snippets cut into lines that can take a thought, and infusion.

A snippet is a prompt (s_0) and L lines a_0 … a_{L-1}. Before each line the model writes either the
expert's next token (<act>), or a comment at the same indentation (<think>). After the comment come
a newline and that indentation again:

    … :|\\n   | return| x                        <act>:    the decision is the token ` return`
    … :|\\n   | #| the| sum|\\n   | return| x     <think>:  the decision is the token ` #`

Both branches share `\\n   `, so the decision is one token, and so is the choice of form: ` #` where
the tokenizer joins one blank to what follows it, `#` in column 0.

Thoughts are inserted as ids, never as text. A line can take one only if encoding the text *with* a
comment gives the same ids as inserting the comment's ids. This is tested with a dummy comment
before every line. Nothing is decoded and encoded again.

Where a line begins in tokens, and where a thought goes, by style of tokenizer (a bar between
tokens, ^ where <act> or <think> is decided):

    GPT-2, SmolLM2     if| x|:|\\n   |^ return| x
                       if| x|:|\\n   |^ #| why|\\n   | return| x
                       a newline joins the indentation after it, but for its last blank
    Qwen, Llama 3      if| x|:\\n|   |^ return| x
                       if| x|:\\n|   |^ #| why|\\n|   | return| x
                       it joins the punctuation and newlines before it (`:\\n`, `()\\n\\n`)

In all of them the indentation leaves its last blank to the first token of the content or to ` #`.
With Qwen's and Llama's pattern a tab stays attached to the word after it, so a tab-indented line
that begins with a word cannot take a thought. There a prefix of the text is not always a prefix of
its ids: s_0 ends before the `:\\n`, and the ids that a model goes on from have the newline
(`Tokenizer.start`). A thought ends

    at a stop token     `\\n`, `\\n\\n`, ` \\n`, the end of text. It is not part of the thought. All
                        of them mean the same; `\\n` and the indentation follow.
    with a closing one  `.\\n`, `)\\n`: the thought's last token, which brings the newline. The
                        indentation follows:  if| x|:\\n|   |^ #| why|.\\n|   | return| x

Tokens with several newlines (`.\\n\\n`) or a carriage return are stop tokens.

Letters: L lines.
"""

import ast
import dataclasses
import io
import tokenize
import typing
import warnings

import numpy as np

# kinds of token; padding is -1
PROMPT = 0
CODE = 1
THOUGHT = 2


# ---------------------------------------------------------------- snippets


@dataclasses.dataclass
class Snippet:
    """Code cut into lines. Line t is ids[first[t]:first[t+1]]: content, newline, indentation of
    the next line. The last one runs to the end and includes eos.

    ids      bos, if the tokenizer has one; the canonical encoding of the text; eos
    prompt   ids[:prompt] is s_0: it ends where a line ends, its newline not included
    first    (L,) index in ids of the first token of line t's content, where <act> or <think> is
             decided; ids[prompt:first[0]] is newline + indentation
    sep      (L,) ids of "\\n" + indentation, which stand between a thought and line t (`inserted`)
    """

    ids: list
    prompt: int
    first: list
    sep: list
    name: str = ""


# tokens that begin no statement
NO_STATEMENT = (
    tokenize.NL,
    tokenize.COMMENT,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
)


def statements(text):
    """Character offsets at which statements (logical lines) begin, with only blanks before them.

    Example: "x = [1,\\n  2]; y = 3\\n\\nif x:\\n    z" -> [0, 21, 31].
    Raises SyntaxError or tokenize.TokenError.
    """
    starts = []
    line_begins = [0] + [i + 1 for i, ch in enumerate(text) if ch == "\n"]  # of physical lines
    expected = True  # a statement comes next
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            expected = True
        elif expected and token.type not in NO_STATEMENT:
            expected = False
            begin = line_begins[token.start[0] - 1]
            if not text[begin : begin + token.start[1]].strip(" \t"):
                starts.append(begin + token.start[1])
    return starts


def mark(tok, indent):
    """How a comment is written after an indentation -> (token, carry, sep), or None.

    token   the first token of the comment; carry: blanks of the indentation that it holds
    sep     ids of "\\n" + the remaining indentation
    Example, GPT-2 style: 4 blanks -> (` #`, 1, [`\\n   `]);   no indentation -> (`#`, 0, [`\\n`])
    """
    if indent not in tok.marks:
        *sep, last = tok.encode("\n" + indent + "#")
        carry = int(tok.nbytes[last]) - 1
        ok = carry in (0, 1) and last in tok.thought_ids
        tok.marks[indent] = (last, carry, sep) if ok else None
    return tok.marks[indent]


class Point(typing.NamedTuple):
    """A line that may take a thought."""

    first: int  # index of its first token
    hash_id: int  # the first token of a comment before it
    sep: list  # ids between a comment and the line
    byte: int  # offset of its first token in the text
    char: int  # offset of its content


def snippet(tok, text, prompt_chars, name=""):
    """Cut a text without comments of its own into lines -> Snippet.

    None if no line after text[:prompt_chars] can take a thought, or if the ids do not give back the
    text (bytes that the vocabulary lacks, characters that it spells in another way).

    A line is a decision point if a comment before it leaves the encoding of everything else as it
    is. Other lines belong to the line before them, or to the prompt if there is none. So do blank
    lines and the continuations of a statement.
    Raises SyntaxError or tokenize.TokenError where the text is not Python, UnicodeEncodeError where
    it holds lone surrogates.
    """
    raw = text.encode()
    ids = tok.encode(text)
    ends = np.cumsum(tok.nbytes[ids])  # byte offset of each token's end
    if len(ends) == 0 or tok.decode(ids) != text:
        return None
    points = possible_points(tok, text, ids, ends, prompt_chars)
    if not keeps_encoding(tok, raw, ids, points):
        points = [point for point in points if keeps_encoding(tok, raw, ids, [point])]
    if not points:
        return None
    prompt_end = byte_offset(text, len(text[: points[0].char].rstrip()))
    prompt = int(np.searchsorted(ends, prompt_end, side="right"))  # tokens that end at or before it
    n = len(tok.bos)
    return Snippet(
        ids=tok.bos + ids + [tok.eos],
        prompt=n + prompt,
        first=[n + point.first for point in points],
        sep=[point.sep for point in points],
        name=name,
    )


def byte_offset(text, chars):
    return chars if text.isascii() else len(text[:chars].encode())


def possible_points(tok, text, ids, ends, prompt_chars):
    """The Points of the statements behind the prompt that begin where a token begins."""
    index = {int(end): i + 1 for i, end in enumerate(ends)}  # byte offset -> token that begins
    points = []
    for start in statements(text):
        form = mark(tok, text[text.rfind("\n", 0, start) + 1 : start])
        if start < prompt_chars or not form:
            continue
        hash_id, carry, sep = form
        byte = byte_offset(text, start) - carry
        if index.get(byte, len(ids)) < len(ids):
            points.append(Point(index[byte], hash_id, sep, byte, start))
    return points


def keeps_encoding(tok, raw, ids, points):
    """Is the encoding of the text with a dummy comment before each point what insertion gives?

    raw: the text in bytes.
    """
    dummy = tok.encode(" x")
    expected = []
    pieces = []
    token = 0
    byte = 0
    for point in points:
        comment = [point.hash_id] + dummy + point.sep
        expected += ids[token : point.first] + comment
        pieces += [raw[byte : point.byte], tok.enc.decode_bytes(comment)]
        token = point.first
        byte = point.byte
    return tok.encode((b"".join(pieces) + raw[byte:]).decode()) == expected + ids[token:]


# ---------------------------------------------------------------- infusion


def inserted(tok, thought, sep):
    """What a thought puts before a line: itself and the line's sep.

    The newline of sep is left out where a closing token brings it.
    Example: ` #| why`, `\\n|   ` -> ` #| why|\\n|   `
    Example: ` #| why|.\\n`, `\\n|   ` -> ` #| why|.\\n|   `
    """
    return [*thought, *(sep[1:] if thought[-1] in tok.closing_ids else sep)]


def ends_itself(tok, thought, think_max):
    """Does a thought end without a stop token: at the greatest length, or with a closing token?"""
    return len(thought) == think_max or thought[-1] in tok.closing_ids


def infuse(tok, snip, thoughts):
    """Write thoughts into a snippet -> (ids, kinds), two lists of equal length.

    thoughts   {line: ids}, or a list of L (ids, or None or [] for <act>)
    kinds      PROMPT, CODE or THOUGHT (what is `inserted`); the ids whose kind is not THOUGHT are
               snip.ids exactly
    """
    if not isinstance(thoughts, dict):
        thoughts = dict(enumerate(thoughts))
    ids = list(snip.ids[: snip.prompt])
    kinds = [PROMPT] * snip.prompt
    copied = snip.prompt  # tokens of the snippet that are in ids
    for t, first in enumerate(snip.first):
        if thoughts.get(t):
            insert = inserted(tok, thoughts[t], snip.sep[t])
            ids += snip.ids[copied:first] + insert
            kinds += [CODE] * (first - copied) + [THOUGHT] * len(insert)
            copied = first
    return ids + snip.ids[copied:], kinds + [CODE] * (len(snip.ids) - copied)


def canonical(tok, ids):
    """Are the ids (but for a bos and a final eos) what the tokenizer makes of their own text?"""
    ids = list(ids)
    if ids and ids[-1] == tok.eos:
        ids.pop()
    if ids and ids[:1] == tok.bos:
        del ids[0]
    return tok.encode(tok.decode(ids)) == ids


def syntax_tree(source):
    """ast.parse without its warnings: invalid escapes in strings are not ours to report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)
