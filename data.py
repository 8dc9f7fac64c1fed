"""Text, lines and ids: snippets cut into lines that can take a thought, and infusion.

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

Letters: L lines.
"""

import ast
import dataclasses
import io
import tokenize
import warnings

import numpy as np

PROMPT, CODE, THOUGHT = 0, 1, 2  # kinds of token; padding is -1


# ---------------------------------------------------------------------------------------------------------------- snippets


@dataclasses.dataclass
class Snippet:
    ids: list  # bos, if the tokenizer has one; the canonical encoding of the text; eos
    prompt: int  # ids[:prompt] is s_0, what is given: it ends where a line ends, its newline not included
    first: list  # (L,) index in ids of the first token of line t's content, where <act> or <think> is decided;
    # ids[prompt:first[0]] is newline + indentation
    sep: list  # (L,) ids of "\n" + indentation, which stand between a thought and line t (`inserted`)
    name: str = ""

    # Line t is ids[first[t]:first[t+1]]: content, newline, indentation of the next line. The last one runs to the end and includes eos.


def statements(text):
    """Character offsets at which statements (logical lines) begin, where only blanks stand before them on their line.

    Example: "x = [1,\\n  2]; y = 3\\n\\nif x:\\n    z" -> [0, 21, 31].   Raises SyntaxError or tokenize.TokenError.
    """
    starts, fresh = [], True
    at = [0] + [i + 1 for i, ch in enumerate(text) if ch == "\n"]  # offset of each physical line
    skip = (
        tokenize.NL,
        tokenize.COMMENT,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.ENCODING,
    )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            fresh = True
        elif fresh and token.type not in skip:
            fresh = False
            line = at[token.start[0] - 1]
            if not text[line : line + token.start[1]].strip(" \t"):
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
    if (
        len(ends) == 0 or tok.decode(ids) != text
    ):  # bytes that the vocabulary lacks, characters that it spells in another way
        return None
    index = {
        int(end): i + 1 for i, end in enumerate(ends)
    }  # byte offset -> index of the token that begins there
    points = []  # (index, first token of a comment, sep, byte offset, the content's offset in characters)
    for start in statements(text):
        if start < prompt_chars:
            continue
        indent = text[text.rfind("\n", 0, start) + 1 : start]
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
    given = offset(len(text[: points[0][4]].rstrip()))
    prompt = int(np.searchsorted(ends, given, side="right"))  # tokens that end at or before it
    n = len(tok.bos)
    return Snippet(
        tok.bos + ids + [tok.eos],
        n + prompt,
        [n + p[0] for p in points],
        [p[2] for p in points],
        name,
    )


def inserted(tok, thought, sep):
    """What a thought puts before a line: itself and the line's sep, but for the newline that a closing token brings.

    Example: ` #| why`, `\\n|   ` -> ` #| why|\\n|   `;   ` #| why|.\\n`, `\\n|   ` -> ` #| why|.\\n|   `
    """
    return [*thought, *sep[thought[-1] in tok.closing_ids :]]


def ends_itself(tok, thought, think_max):
    """Does a thought end without a stop token: at the greatest length, or with a closing token?"""
    return len(thought) == think_max or thought[-1] in tok.closing_ids


def infuse(tok, snip, thoughts):
    """Write thoughts into a snippet -> (ids, kinds), two lists of equal length.

    thoughts: {line: ids} or a list of L (ids, or None/[] for <act>). kinds: PROMPT, CODE or THOUGHT (what is `inserted`);
    the ids whose kind is not THOUGHT are snip.ids exactly.
    """
    if not isinstance(thoughts, dict):
        thoughts = dict(enumerate(thoughts))
    ids, kinds, last = list(snip.ids[: snip.prompt]), [PROMPT] * snip.prompt, snip.prompt
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


def syntax_tree(source):
    """ast.parse without its warnings: invalid escapes in strings are not ours to report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)
