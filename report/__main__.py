"""RLVR curves: figures, a table, a page to look at.

    python -m report runs/tiny-5 runs/tiny-6 --models rlvr-base,rlvr-ntp,rlvr-ra3 --out rlvr.png
    python -m report runs/tiny-5 runs/tiny-6 --paired rlvr-ra3,rlvr-ntp --training training.png --html report.html

A curve is the held-out pass rate of a model (`pass@1` of its lines of phase rlvr-heldout in metrics.jsonl); a folder is a seed. Drawn are every seed,
their mean, and a band of one standard deviation (n - 1) to either side, wherever all seeds have values; between its points a seed is interpolated.

    area        1 / (x_n - x_0) sum_i (x_i+1 - x_i) (y_i + y_i+1) / 2      mean pass rate y over the steps x; compare models of one length (--max-step)
    steps to    first evaluated step where a seed's pass rate is at least --threshold, or at least what --against ends with in the same folder: mean
                over the seeds that get there, and how many do
    TFLOP       of mid-training and RLVR; pre-training, which all models share, is not in the metrics
"""

import argparse
import os

import numpy as np

from config import Parser, UserError, check_output, command, convert, write_output
from report.curves import HELD, TRAIN, markdown, paired, read, select, table
from report.figures import curves_figure, training_figure
from report.page import page


def main(argv):
    parser = Parser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of runs, a seed each")
    parser.add_argument(
        "--models",
        default="",
        metavar="NAME[,NAME...]",
        help="models to show (default: all that have a curve)",
    )
    parser.add_argument(
        "--out", default="rlvr.png", metavar="FILE", help="figure of the curves (default rlvr.png)"
    )
    parser.add_argument(
        "--training",
        default="",
        metavar="FILE",
        help="figure of the training metrics against steps",
    )
    parser.add_argument(
        "--html",
        default="",
        metavar="FILE",
        help="a page with figures, table, settings and samples, all in one file",
    )
    parser.add_argument(
        "--max-step", default="", metavar="N", help="cut everything after this step"
    )
    parser.add_argument(
        "--threshold",
        default="",
        metavar="RATE",
        help="pass rate that the steps are counted to; default: see --against",
    )
    parser.add_argument(
        "--against",
        default="",
        metavar="NAME",
        help="count the steps to this model's own final pass rate, by seed (default rlvr-ntp)",
    )
    parser.add_argument(
        "--paired",
        default="",
        metavar="A,B",
        help="print the difference of the final pass rates of two models, by seed",
    )
    args = parser.parse_args(argv)
    max_step = convert("max-step", int, args.max_step) if args.max_step else np.inf
    rate = convert("threshold", float, args.threshold) if args.threshold else None
    pair = [name for name in args.paired.split(",") if name]
    if max_step < 0:
        raise UserError(f"--max-step {args.max_step}: expected a number of at least 0")
    if rate is not None and (args.against or not 0 <= rate <= 1):
        raise UserError(
            f"--threshold {args.threshold}: expected a rate from 0 to 1"
            + ", and no --against beside it" * bool(args.against)
        )
    if args.paired and len(pair) != 2:
        raise UserError(
            f"--paired {args.paired}: expected two models, as in --paired rlvr-ra3,rlvr-ntp"
        )
    for option, path in (("--out", args.out), ("--training", args.training), ("--html", args.html)):
        check_output(option, path)
    folders = [os.path.normpath(folder) for folder in args.folders]
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise UserError(f"{' '.join(args.folders)}: expected each folder once, as each is a seed")

    runs = {folder: read(folder, max_step) for folder in folders}
    models = (
        list(dict.fromkeys(args.models.split(",")))
        if args.models
        else sorted({model for found in runs.values() for model in found[HELD]})
    )
    if not models:
        raise UserError(
            f"{', '.join(folders)}: no lines of phase {HELD}; expected runs of train.py --stage rlvr"
        )
    curves = {model: select(runs, HELD, model) for model in models}
    against = args.against or "rlvr-ntp"
    known = args.against or any(against in found[HELD] for found in runs.values())
    thresholds = (
        {folder: rows[-1]["pass@1"] for folder, rows in select(runs, HELD, against).items()}
        if known and rate is None
        else {}
    )
    if rate is not None:
        thresholds = dict.fromkeys(folders, rate)
    lines = table(curves, thresholds, f"the end of {against}" if rate is None else args.threshold)
    notes = [paired(*(select(runs, HELD, name) for name in pair), pair)] if pair else []
    print("\n\n".join([markdown(lines), *notes]))

    figures = {"held-out pass rate": curves_figure(curves)}
    write_output(args.out, "--out", figures["held-out pass rate"])
    if args.training:
        figures["training"] = training_figure(
            {model: select(runs, TRAIN, model) for model in models}
        )
        write_output(args.training, "--training", figures["training"])
    if args.html:
        write_output(args.html, "--html", page(figures, lines, notes, curves, folders).encode())


if __name__ == "__main__":
    command(main)
