"""Thoughts proposed after the line that they are for, and weighed by their cost before it.

    python -m hindsight --preset smollm2 --out runs/smollm2-0 --models base,ntp,ra3

prints what a model's own thoughts are worth on held-out code.
How thoughts are proposed and weighed, and what was found, is in propose.py.
"""

import json

from config import Limits, check_number, check_output, command, parse, write_output
from data import inserted
from engine.machine import set_up
from engine.training import inference_copy
from hindsight.judge import format_table, judge_thoughts
from hindsight.propose import line_end
from run import Run

OPTIONS = {
    "--against": dict(
        default="ntp",
        metavar="NAME",
        help="one of --models: the bounds are compared with its likelihood without thoughts "
        "(default ntp)",
    ),
    "--limit": dict(
        type=int, default=0, metavar="N", help="the first N held-out snippets only; 0: all"
    ),
    "--thoughts-a-line": dict(
        type=int, default=8, metavar="K", help="thoughts at each of these lines (default 8)"
    ),
    "--shown": dict(
        type=int,
        default=0,
        metavar="N",
        help="print the N thoughts with the largest gain on their line, one a line, in context",
    ),
    "--per": dict(
        type=int,
        default=3,
        metavar="N",
        help="lines of a snippet at which it is made to think, the same for all models; 0: all "
        "(default 3)",
    ),
    "--in-hindsight": dict(
        action="store_true",
        help="judge thoughts proposed in hindsight instead of the model's own",
    ),
    "--shuffle": dict(
        action="store_true",
        help="a control: give each line thoughts that were written for other snippets",
    ),
    "--soften": dict(
        type=float,
        default=1.0,
        metavar="T",
        help="another: divide all logits by T, which mends an overconfident model without thoughts",
    ),
    "--json": dict(default="", metavar="FILE", help="write the figures by snippet"),
}


def check_options(args):
    """Raises UserError for a value out of range."""
    for name in ("limit", "per", "shown"):
        check_number(f"--{name}", getattr(args, name), Limits())
    check_number("--thoughts-a-line", args.thoughts_a_line, Limits(least=1))
    check_number("--soften", args.soften, Limits(above=0))
    check_output("--json", args.json)


def show(name, tok, snippets, thoughts, n):
    """Print the n thoughts with the largest gain on their line, one a line of code."""
    best = {}
    for thought in sorted(thoughts, key=lambda x: x.line_gain):
        best[thought.snippet, thought.line] = thought
    for x in sorted(best.values(), key=lambda x: -x.line_gain)[:n]:
        snip = snippets[x.snippet]
        begin = snip.first[x.line]
        end = line_end(snip, x.line)
        print(
            f"\n--- {name}: {snip.name}, {x.line_gain:+.2f} nats on the line, "
            f"{x.rest_gain:+.2f} on all from it on; P(think) {x.think:.3f}"
        )
        comment = inserted(tok, x.ids, snip.sep[x.line])
        text = tok.decode(snip.ids[:begin]) + tok.decode(comment + snip.ids[begin:end])
        print(text.rstrip())


def main(argv):
    cfg, args = parse(argv, OPTIONS, __doc__.split("\n")[0])
    check_options(args)
    set_up(cfg)
    run = Run(cfg)
    snippets = run.heldout[: args.limit or None]
    names = cfg.models.split(",")
    for name in names:
        run.about(name)  # raises UserError if the run has no such model
    judged = {}
    for name in names:
        model = run.load(name)[0]
        model.norm.weight.data /= args.soften  # the head is linear
        judged[name], thoughts = judge_thoughts(
            inference_copy(model, cfg),
            run.tok,
            snippets,
            cfg,
            args.thoughts_a_line,
            args.per,
            in_hindsight=args.in_hindsight,
            shuffle=args.shuffle,
            desc=name,
        )
        show(name, run.tok, snippets, thoughts, args.shown)
        if args.json:
            figures = {
                model: {key: values.tolist() for key, values in by_snippet.items()}
                for model, by_snippet in judged.items()
            }
            write_output(args.json, "--json", json.dumps(figures).encode())
    print("\n".join(format_table(judged, args.against)))


if __name__ == "__main__":
    command(main)
