"""A page of a run, to look at; of several runs one that compares them; and RLVR curves.

    python -m report runs/tiny-0                          -> runs/tiny-0/report.html
    python -m report runs/tiny-0 runs/tiny-1              -> runs/report.html, a folder is a seed
    python -m report runs/tiny-0 runs/tiny-1 --figures docs/figures    -> em.png, rlvr.png, ...
    python -m report runs/tiny-0 --picture docs/figures/page.png       -> of the page, by a browser
    python -m report runs/tiny-0 runs/tiny-1 --paired rlvr-ra3,rlvr-ntp
    python -m report --rows runs/a/greedy-ra3-mbpp+.jsonl runs/a/greedy-ntp-mbpp+.jsonl

train.py --stage em makes the first one at its end. A page stands alone: no network, no script.

A curve of RLVR is the held-out pass rate of a model (`pass@1` of its lines of phase rlvr-heldout in
metrics.jsonl); a folder is a seed. Drawn are every seed, their mean, and a band of one standard
deviation (n - 1) to either side, wherever all seeds have values; between its points a seed is
interpolated.

    area        1 / (x_n - x_0) sum_i (x_i+1 - x_i) (y_i + y_i+1) / 2
                mean pass rate y over the steps x; compare models of one length (--max-step)
    steps to    first evaluated step where a seed's pass rate is at least --threshold, or at least
                what --against ends with in the same folder: mean over the seeds that get there, and
                how many do
    TFLOP       of mid-training and RLVR; pre-training, which all models share, is not in the
                metrics
    intervals   95%. --paired: Student's t over the seeds. --rows: Newcombe's for pairs, over the
                problems of evaluate.py's rows (benchmarks/rates.py)
"""

import argparse
import os

import numpy as np

from config import Parser, UserError, check_output, command, convert, write_output
from report.compare import comparison_page, em_charts
from report.curves import (
    HELD,
    TRAIN,
    curve_table,
    markdown_table,
    paired_over_seeds,
    read_metrics,
    select,
)
from report.figures import curves_figure, em_figure, training_figure
from report.files import open_folder
from report.markup import escape, html_table, paragraph
from report.page import run_page
from report.pairs import paired_over_problems
from report.picture import picture_of

OPTIONS = {
    "--html": (
        "FILE",
        "",
        "the page (default report.html in the run's folder; of several runs, in the folder that "
        "holds them all)",
    ),
    "--figures": (
        "FOLDER",
        "",
        "write the figures that there are metrics for: em.png, rlvr.png, rlvr-training.png",
    ),
    "--picture": ("FILE", "", "a PNG of the page of one run, by a Chromium that is installed"),
    "--models": ("NAME[,NAME...]", "", "RLVR: models to show (default: all that have a curve)"),
    "--out": ("FILE", "", "RLVR: figure of the curves"),
    "--training": ("FILE", "", "RLVR: figure of the training metrics against steps"),
    "--max-step": ("N", "", "RLVR: cut everything after this step"),
    "--threshold": ("RATE", "", "pass rate that the steps are counted to; default: see --against"),
    "--against": (
        "NAME",
        "",
        "count the steps to this model's own final pass rate, by seed (default rlvr-ntp)",
    ),
    "--paired": (
        "A,B",
        "",
        "print the difference of the final pass rates of two models, by seed, with its interval",
    ),
}
ABOUT_CURVES = ("models", "out", "training", "max_step", "threshold", "against", "paired")


def report_options(argv):
    """The command line -> (options, folders). Raises UserError."""
    parser = Parser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="*", metavar="RUN", help="folders of runs, a seed each")
    parser.add_argument(
        "--rows",
        nargs=2,
        metavar="FILE",
        help="print the difference of the pass rates in two files of evaluate.py, and its interval",
    )
    for option, (metavar, default, text) in OPTIONS.items():
        parser.add_argument(option, metavar=metavar, default=default, help=text)
    args = parser.parse_args(argv)
    if not args.folders and not args.rows:
        raise UserError("nothing to do: expected RUN ..., or --rows FILE FILE; see --help")
    folders = [os.path.normpath(folder) for folder in args.folders]
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise UserError(f"{' '.join(args.folders)}: expected each folder once, as each is a seed")
    for option in ("out", "training", "html", "picture"):
        ending = "" if option == "html" else ".png"
        check_output(f"--{option}", vars(args)[option], ending)
    if args.figures and not os.path.isdir(args.figures):
        raise UserError(f"--figures {args.figures}: expected a folder that exists; make it first")
    if args.picture and len(folders) != 1:
        raise UserError(f"--picture {args.picture}: expected one run; leave the others out")
    return args, folders


def numbers_of(args):
    """(last step, threshold or None, pair of models or []) of the options. Raises UserError."""
    max_step = convert("max-step", int, args.max_step) if args.max_step else np.inf
    if max_step < 0:
        raise UserError(f"--max-step {args.max_step}: expected a number of at least 0")
    rate = convert("threshold", float, args.threshold) if args.threshold else None
    if rate is not None and args.against:
        raise UserError(
            f"--threshold {args.threshold}: expected a rate from 0 to 1, and no --against beside it"
        )
    if rate is not None and not 0 <= rate <= 1:
        raise UserError(f"--threshold {args.threshold}: expected a rate from 0 to 1")
    pair = [name for name in args.paired.split(",") if name]
    if args.paired and len(pair) != 2:
        raise UserError(
            f"--paired {args.paired}: expected two models, as in --paired rlvr-ra3,rlvr-ntp"
        )
    return max_step, rate, pair


def thresholds_of(runs, against, rate):
    """{folder: pass rate that steps are counted to}; empty where no model is there to compare with.

    against: a model's name, or "" for rlvr-ntp where it is there. Raises UserError.
    """
    if rate is not None:
        return dict.fromkeys(runs, rate)
    name = against or "rlvr-ntp"
    if not against and not any(name in curves[HELD] for curves in runs.values()):
        return {}
    return {folder: rows[-1]["pass@1"] for folder, rows in select(runs, HELD, name).items()}


def main(argv):
    args, folders = report_options(argv)
    max_step, rate, pair = numbers_of(args)
    if args.rows:
        print(paired_over_problems(*args.rows))
    if not folders:
        return
    runs = {folder: read_metrics(folder, max_step) for folder in folders}
    curves = rlvr_curves(args, runs)
    rlvr = ""
    if curves:
        goal = f"the end of {args.against or 'rlvr-ntp'}" if rate is None else args.threshold
        lines = curve_table(curves, thresholds_of(runs, args.against, rate), goal)
        notes = notes_of(runs, pair)
        print("\n\n".join([markdown_table(lines), *notes]))
        write_figures(args, runs, curves)
        cells = [[escape(cell) for cell in line] for line in lines]
        rlvr = html_table(cells, "Held-out pass rates", "plain") + "".join(map(paragraph, notes))
    folders = [open_folder(folder) for folder in folders]
    if args.figures and (charts := em_charts(folders)):
        write_output(os.path.join(args.figures, "em.png"), "--figures", em_figure(charts))
    page = write_page(args, folders, rlvr)
    if args.picture:
        write_output(args.picture, "--picture", picture_of(page))
    print(page)


def write_page(args, folders, rlvr):
    """The page of a run, or of several, with the RLVR curves' table -> its path. Raises UserError.

    folders: what `open_folder` gives
    """
    text = comparison_page(folders, rlvr) if len(folders) > 1 else run_page(folders[0], rlvr)
    page = args.html or os.path.join(common_folder([f.path for f in folders]), "report.html")
    write_output(page, "--html", text.encode("utf-8", "replace"))
    return page


def common_folder(folders):
    """A run's own folder; of several runs the one that holds them all.

    Example: ["runs/tiny-0", "runs/tiny-1"] -> "runs"
    """
    if len(folders) == 1:
        return folders[0]
    return os.path.relpath(os.path.commonpath([os.path.abspath(folder) for folder in folders]))


def rlvr_curves(args, runs):
    """{model: curve} of the models to show; {} without any. runs: {folder: read_metrics(folder)}.

    Raises UserError if there are none and an option asks for them.
    """
    names = {model for curves in runs.values() for model in curves[HELD]}
    models = list(dict.fromkeys(args.models.split(","))) if args.models else sorted(names)
    if not models and any(vars(args)[option] for option in ABOUT_CURVES):
        raise UserError(
            f"{', '.join(runs)}: no lines of phase {HELD}; expected runs of train.py --stage rlvr"
        )
    return {model: select(runs, HELD, model) for model in models}


def notes_of(runs, pair):
    """The comparison of a pair of models, as lines; none without a pair. Raises UserError."""
    if not pair:
        return []
    a, b = (select(runs, HELD, name) for name in pair)
    return [paired_over_seeds(a, b, pair)]


def write_figures(args, runs, curves):
    """The figures of RLVR that were asked for. Raises UserError."""
    of_curves = [("--out", args.out)]
    of_training = [("--training", args.training)]
    if args.figures:
        of_curves.append(("--figures", os.path.join(args.figures, "rlvr.png")))
        of_training.append(("--figures", os.path.join(args.figures, "rlvr-training.png")))
    for option, path in of_curves:
        if path:
            write_output(path, option, curves_figure(curves))
    for option, path in of_training:
        if path:
            training = {model: select(runs, TRAIN, model) for model in curves}
            write_output(path, option, training_figure(training))


if __name__ == "__main__":
    command(main)
