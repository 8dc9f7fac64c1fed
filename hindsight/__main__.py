"""Thoughts in hindsight: an E-step that proposes a thought after seeing the line it is for, and weighs it by what it would have cost before.

    python -m hindsight --preset smollm2 --out runs/smollm2-0 --models base,ntp,ra3        what a model's own thoughts are worth on held-out code

How thoughts are proposed and weighed, and what was found, is in propose.py.
"""

import json

from config import UserError, check_output, command, parse, write_output
from data import inserted
from engine.machine import set_threads
from engine.training import inference_copy
from hindsight.judge import judge, table
from run import Run


def main(argv):

    cfg, args = parse(
        argv,
        {
            "--against": dict(
                default="ntp",
                metavar="NAME",
                help="one of --models: the bounds are compared with its likelihood without thoughts (default ntp)",
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
                help="print the N thoughts with the largest gain on their line, one a line, in their context",
            ),
            "--per": dict(
                type=int,
                default=3,
                metavar="N",
                help="lines of a snippet at which it is made to think, the same for all models; 0: all (default 3)",
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
        },
        __doc__.split("\n")[0],
    )
    if min(args.limit, args.per, args.shown) < 0 or args.thoughts_a_line < 1 or args.soften <= 0:
        raise UserError(
            f"--limit {args.limit} --per {args.per} --shown {args.shown} --thoughts-a-line {args.thoughts_a_line} --soften {args.soften}: expected at "
            "least 0, 0, 0 and 1, and a temperature above 0"
        )
    check_output("--json", args.json)
    set_threads(cfg)
    run = Run(cfg)
    held, judged, names = run.heldout[: args.limit or None], {}, cfg.models.split(",")
    for name in names:
        run.about(name)  # is it there?
    for name in names:
        model = run.load(name)[0]
        model.norm.weight.data /= args.soften  # the head is linear
        model = inference_copy(model, cfg)
        judged[name], kept = judge(
            model,
            run.tok,
            held,
            cfg,
            args.thoughts_a_line,
            args.per,
            n_hindsight=args.thoughts_a_line * args.in_hindsight,
            shuffle=args.shuffle,
            desc=name,
        )
        best = {x[3:5]: x for x in sorted(kept, key=lambda x: x[0])}  # one a line
        for line, rest, think, b, t, z in sorted(best.values(), key=lambda x: -x[0])[: args.shown]:
            s = held[b]
            before, end = (
                run.tok.decode(s.ids[: s.first[t]]),
                s.first[t + 1] if t + 1 < len(s.first) else len(s.ids),
            )
            text = before + run.tok.decode(inserted(run.tok, z, s.sep[t]) + s.ids[s.first[t] : end])
            print(
                f"\n--- {name}: {s.name}, {line:+.2f} nats on the line, {rest:+.2f} on all from it on; P(think) {think:.3f}\n{text.rstrip()}"
            )
        if args.json:
            said = {
                name: {k: v.tolist() for k, v in figures.items()}
                for name, figures in judged.items()
            }
            write_output(args.json, "--json", json.dumps(said).encode())
    print("\n".join(table(judged, args.against)))


if __name__ == "__main__":
    command(main)
