"""Files of the benchmarks: which ones we know, where they come from, and how they are read.

HumanEval's file is part of the project (data/), the others are not.
A missing file is named with its origin. A file that differs from ours is refused.
"""

import gzip
import hashlib
import json
import os
import typing
import zlib

from config import UserError


class File(typing.NamedTuple):
    """Where a file of a benchmark comes from."""

    sha256: str  # of its text: the file may be packed in any way, or not at all
    items: int
    repository: str  # on github.com
    commit: str
    path: str  # within the repository
    licence: str

    @property
    def origin(self):
        """Example: openai/human-eval 6d43fb98 (MIT)"""
        return f"{self.repository} {self.commit[:8]} ({self.licence})"


FILES = {
    "humaneval/HumanEval.jsonl.gz": File(
        "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
        164,
        "openai/human-eval",
        "6d43fb980f9fee3c892a914eda09951f772ad10d",
        "data/HumanEval.jsonl.gz",
        "MIT",
    ),
    "humaneval_plus/HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz": File(
        "04228b8a570ff7c346c740b91f0c6a0b323f86a26e903db8477c6f2d10f38819",
        164,
        "evalplus/humanevalplus_release",
        "200defce9e3429d28ca215b6dd061c0f7f31c18b",
        "HumanEvalPlus-OriginFmt.jsonl.gz",
        "Apache-2.0",
    ),
    "mbpp/mbpp.jsonl.gz": File(
        "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
        974,
        "patdfb/TPC-EES",
        "30c8c572bfcd0fc5fa537210710d7fde134e4868",
        "mbpp/mbpp.jsonl (a copy of google-research's)",
        "CC-BY-4.0",
    ),
    "mbpp/sanitized-mbpp.json": File(
        "ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9",
        427,
        "mrigankpawagi/PropertyEval",
        "b2be813dcff867cc350c61b8d3ea57ec088ce1ac",
        "sanitized-mbpp.json (a copy of google-research's)",
        "CC-BY-4.0",
    ),
    "mbpp_plus/MbppPlus-v0.2.0.jsonl.gz": File(
        "b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad",
        378,
        "evalplus/mbppplus_release",
        "64fc4195b858a17cdfdb3324f0baf37939144e14",
        "MbppPlus.jsonl.gz",
        "Apache-2.0, CC-BY-4.0",
    ),
    "mbpp_plus/MbppPlus-OriginFmt-v0.2.0.jsonl.gz": File(
        "132d01c96df6b4b0fe0cbb8414092fe62c51b873b160d1ec8fc2ded28484865a",
        378,
        "evalplus/mbppplus_release",
        "64fc4195b858a17cdfdb3324f0baf37939144e14",
        "MbppPlus-OriginFmt.jsonl.gz",
        "Apache-2.0, CC-BY-4.0",
    ),
    "leetcode/LeetCodeDataset-v0.2.0-train.jsonl.gz": File(
        "56ccd4b5160b9102e125a586ed8017edd140929582bb9e856795a99f4d218304",
        1890,
        "newfacade/LeetCodeDataset",
        "182cd19fd53161efd70a1ef074fe1056b659bfa3",
        "data/LeetCodeDataset-v0.2.0-train.jsonl.gz",
        "MIT; statements (c) LeetCode",
    ),
    "leetcode/LeetCodeDataset-v0.2.0-test.jsonl.gz": File(
        "a66b5f708814fe9e7086bb8d6962c4b94e1c7e64aa82a3b9c474ac6487c2612e",
        200,
        "newfacade/LeetCodeDataset",
        "182cd19fd53161efd70a1ef074fe1056b659bfa3",
        "data/LeetCodeDataset-v0.2.0-test.jsonl.gz",
        "MIT; statements (c) LeetCode",
    ),
    "leetcode/LeetCodeDataset-v0.3.1-test.jsonl.gz": File(
        "aec951945feb555b4c72783519452a7a0437ca8c6e5624a83d0ae888718fa4ed",
        228,
        "newfacade/LeetCodeDataset",
        "182cd19fd53161efd70a1ef074fe1056b659bfa3",
        "data/LeetCodeDataset-v0.3.1-test.jsonl.gz",
        "MIT; statements (c) LeetCode",
    ),
    "livecodebench/lcb_release_v5_public.jsonl.gz": File(
        "4839a15ce9b4284e14697ddaf620a9c5c465557c5d01fd730d7db29d441d4951",
        879,
        "winnieyangwannan/rllm",
        "019b394d7bdde03144a6384a3f865bd46bf0078e",
        "rllm/data/{test,train}/code/livecodebench.json, merged with dates of "
        "XZC888/MavenCoder data/lcb.jsonl",
        "CC, MIT; statements (c) LeetCode, AtCoder, Codeforces",
    ),
    "rllm/codeforces_test.json.gz": File(
        "8e9eab7fce7e432abe4437dd997c16f1514be51d224f2d72a7bd07d58cce476a",
        408,
        "agentica-project/rllm",
        "874daa4acb7f451dc2a4b2b6e8ce28f5aa88d1f5",
        "rllm/data/test/code/codeforces.json",
        "MIT; statements (c) Codeforces",
    ),
}
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BESIDE = os.path.join(os.path.dirname(PROJECT), "shared", "data")  # beside the project, if there
# The only file that comes with the project; its licence is beside it.
HUMAN_EVAL = os.path.join(PROJECT, "benchmarks", "data", "HumanEval.jsonl.gz")


def data_folder(data_dir=""):
    """The folder of the data as messages show it: --data-dir, or BESIDE from where we are."""
    return data_dir or os.path.relpath(BESIDE)


def read_rows(file, data_dir=""):
    """The records of one of FILES.

    data_dir: folder of the data, default BESIDE.
    Raises UserError if the file is missing, damaged, or not the file we know.
    """
    known = FILES[file]
    origin = (
        f"it is {known.path} of github.com/{known.repository} at commit {known.commit} "
        f"({known.licence})"
    )
    path = find_file(file, data_folder(data_dir), origin)
    text = file_bytes(path, known.items, origin)
    sha256 = hashlib.sha256(text).hexdigest()
    if sha256 != known.sha256:
        raise UserError(
            f"{path}: the sha256 of its text is {sha256}, expected {known.sha256}: {origin}; "
            "fetch it again"
        )
    if text.lstrip()[:1] == b"[":
        return json.loads(text)
    return [json.loads(line) for line in text.decode().split("\n") if line.strip()]


def find_file(file, folder, origin):
    """The path of a file in a folder, packed or not; of HumanEval's also in benchmarks/data.

    Raises UserError with the file's origin if there is none.
    """
    for name in (file, file.removesuffix(".gz")):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    if file == "humaneval/HumanEval.jsonl.gz" and os.path.isfile(HUMAN_EVAL):
        return HUMAN_EVAL
    raise UserError(
        f"{os.path.join(folder, file)} is not there: {origin}; put it there, or give its folder's "
        "parent with --data-dir"
    )


def file_bytes(path, items, origin):
    """The bytes of a file, after gunzip where it is packed. Raises UserError."""
    try:
        with open(path, "rb") as f:
            content = f.read()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(
            f"{path} cannot be read ({e}): expected the file of {items} items, {origin}; "
            "fetch it again"
        ) from None
