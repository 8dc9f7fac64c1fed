"""Models in Hugging Face's format, read and written: config.json, *.safetensors, tokenizer.json.

    python -m formats export runs/qwen2.5-1.5b-0/ra3.pt FOLDER

writes a trained one, for transformers, vLLM, llama.cpp's converter, ..., with a model card.
What is read and written is in huggingface.py.
"""

import torch

from config import Limits, Parser, check_number, command
from formats.huggingface import export


def main(argv):
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    options = commands.add_parser(
        "export", help="write a checkpoint as a folder that other programs read"
    )
    options.add_argument("checkpoint", help="a .pt file of a run's folder")
    options.add_argument("folder", help="a new folder")
    options.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: as in the checkpoint)",
    )
    options.add_argument(
        "--model",
        default=None,
        metavar="SOURCE",
        help="folder or .gguf file that the run's base model came from "
        "(default: as its settings say)",
    )
    options.add_argument(
        "--shard-gb",
        type=float,
        default=5.0,
        metavar="GB",
        help="largest size of a file of weights (default 5)",
    )
    args = parser.parse_args(argv)
    check_number("--shard-gb", args.shard_gb, Limits(above=0))
    export(
        args.checkpoint,
        args.folder,
        getattr(torch, args.dtype) if args.dtype else None,
        args.model,
        args.shard_gb * 1e9,
    )
    print(f"{args.checkpoint} -> {args.folder}/")


if __name__ == "__main__":
    command(main)
