"""Ten minutes on a lent GPU: one command, stages in order of value, each with a share of the time.

    python -m speed gpu --minutes 9 --out FOLDER --packed PACK     all stages
    python -m speed gpu --only c,e --minutes 5 --out FOLDER        some of them
    python -m speed gpu --tiny --device cpu --out FOLDER           a rehearsal, in three minutes
    python -m speed gpu --pack PACK                                what travels, in parts
    python -m speed gpu --unpack PACK                              the parts joined, there

a  ceilings   what the card does at its best: products, copies, launches             ceilings.jsonl
b  parity     float32 results against those of a CPU (speed/parity.py)                 parity.jsonl
c  rates      speed beside peers, with MFU and MBU (speed/card.py)                       rates.json
d  domain     `train.py --stage em` of the default preset, whole                       domain.jsonl
e  midtrain   SmolLM2-135M mid-trained on what was packed (speed/midtrain.py)        midtrain.jsonl

A stage that ends early leaves its time to the later ones. Each is a process of its own: one that
fails leaves NAME.traceback, one that is late is ended, and the next one goes on. Results are
written line by line. FOLDER holds them, NAME.log, stages.jsonl (a line a stage), and the small
files of the runs under runs/; weights stay in a temporary folder.

What the machine needs is the core, and what --packed brings.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing

import torch

import train
from config import UserError, ended_by_signals, make, program_name
from engine.machine import device_of, set_up
from speed import card, ceilings, midtrain, pack, parity


@dataclasses.dataclass
class StageJob:
    """What a stage is given."""

    out: pathlib.Path  # the results' folder
    work: pathlib.Path  # the runs' folder: weights, which do not come back
    packed: pathlib.Path | None = None  # an unpacked pack
    device: str = "auto"
    tiny: bool = False  # a rehearsal: everything at its smallest
    compile: str = "auto"  # as the setting
    ends: float = float("inf")  # when its time is over, as time.monotonic counts

    def left(self):
        """Seconds that are left."""
        return self.ends - time.monotonic()

    def write(self, stage, **row):
        """Add a line to the results STAGE.jsonl, and print it. It says what it was measured on."""
        place = {"device": self.torch_device().type, "tiny": self.tiny}
        with open(self.out / f"{stage}.jsonl", "a") as f:
            f.write(json.dumps({**row, **place}) + "\n")
        print(f"{stage}: " + ", ".join(f"{key} {short(value)}" for key, value in row.items()))
        sys.stdout.flush()

    def torch_device(self):
        return device_of(make(device=self.device))


def short(value):
    """A value as a person wants to see it. Example: 0.123456 -> "0.1235" """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- the stages

# The runs of the stage `domain`, in order, each a name and its settings.
DOMAIN_RUNS = {"em": ["--stage", "em"], "longer programs": ["--stage", "em", "--stages", "6"]}
LONGER = 2.0  # seconds that the next of these runs may take, in those of the one before
TINY_DOMAIN = (
    "--n-layer 1 --n-head 2 --d-model 32 --d-ff 64 --vocab-size 400 --max-len 4096 "
    "--pretrain-steps 4 --base-check false --rows 2 --n-expert 24 --n-heldout 4 --iters 1 "
    "--estep-steps 2 --snippets 3 --group 2 --think-max 6 --mstep-steps 2 --infuse 6 "
    "--eval-tasks 2 --samples 2 --max-new 16 --elbo-samples 2"
).split()


def domain_stage(job):
    """The default command, whole: seconds, and the figures of its table.

    Longer programs follow if the time suffices.
    """
    common = ["--device", job.device, "--compile", job.compile, "--save-every", "1000"]
    seconds = 0.0
    for name, settings in DOMAIN_RUNS.items():
        if job.left() < LONGER * seconds:
            return
        out = job.work / f"domain-{name.replace(' ', '-')}"
        began = time.monotonic()
        tiny = TINY_DOMAIN if job.tiny else []
        train.main([*settings, *common, *tiny, "--out", str(out)])
        seconds = time.monotonic() - began
        for model, result in json.loads((out / "results.json").read_text()).items():
            figures = {key: value for key, value in result.items() if key != "measured"}
            job.write("domain", run=name, model=model, seconds=seconds, **figures)


class Stage(typing.NamedTuple):
    """A stage of the command."""

    name: str
    share: float  # of the time
    run: typing.Callable  # StageJob -> None


STAGES = {
    "a": Stage("ceilings", 0.04, ceilings.ceilings_stage),
    "b": Stage("parity", 0.12, parity.parity_stage),
    "c": Stage("rates", 0.32, card.rates_stage),
    "d": Stage("domain", 0.20, domain_stage),
    "e": Stage("midtrain", 0.32, midtrain.midtrain_stage),
}


def run_stage(stage, job):
    """Run a stage in this process -> whether it ended well.

    A failure goes to NAME.traceback.
    """
    cfg = make(device=job.device, compile=job.compile)
    try:
        set_up(cfg)
        stage.run(job)
    except Exception:
        text = traceback.format_exc()
        with open(job.out / f"{stage.name}.traceback", "a") as f:
            f.write(text)
        print(text, file=sys.stderr, flush=True)
        return False
    return True


# ---------------------------------------------------------------- the runner

GRACE = 4.0  # seconds that a stage may be late, to write its last line
LEAST = 5.0  # seconds without which a stage is not started
SHORTEST = 0.5  # minutes that the command can be given


def shares(letters, seconds):
    """{letter: when the stage must have ended, in seconds from the start}.

    Example: a of 4% and b of 12%, 100 s -> {"a": 25, "b": 100}
    """
    total = sum(STAGES[letter].share for letter in letters)
    ends = {}
    passed = 0.0
    for letter in letters:
        passed += STAGES[letter].share / total * seconds
        ends[letter] = passed
    return ends


def command_of(letter, args, work, seconds):
    """The command of a stage's own process."""
    words = [sys.executable, "-m", "speed", "gpu", "--process", letter]
    words += ["--seconds", f"{seconds:.1f}", "--out", args.out, "--work", str(work)]
    words += ["--device", args.device, "--compile", args.compile]
    if args.packed:
        words += ["--packed", args.packed]
    return words + ["--tiny"] * args.tiny


def wait_for(words, log, seconds):
    """Run a command for so many seconds at most -> its exit status, or None if it was ended.

    All that it prints goes to the file `log`.
    """
    root = pathlib.Path(__file__).resolve().parent.parent
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    keywords = dict(cwd=root, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    with subprocess.Popen(words, **keywords) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def bring_home(work, out):
    """Copy what is small of the runs to runs/ of the results."""
    for path in work.rglob("*"):
        small = path.suffix in (".json", ".jsonl", ".txt", ".html") and path.stat().st_size < 2**22
        if small and path.is_file():
            target = out / "runs" / path.relative_to(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def run_stages(args):
    """All stages that are asked for, one process after the other.

    Raises UserError, in the end also where a stage failed. One that ran out of time did not, if it
    has results.
    """
    letters = asked_for(args)
    seconds = 60 * minutes_of(args.minutes)
    check_device(args)
    if args.packed:
        pack.unpack(args.packed)
    out = pack.folder_of("--out", args.out)
    ends = shares(letters, seconds - GRACE)
    began = time.monotonic()
    failed = []
    with tempfile.TemporaryDirectory(prefix="ra3-", dir=scratch()) as folder:
        for letter in letters:
            start = time.monotonic() - began
            limit = ends[letter] - start
            status = "no time"
            if limit >= LEAST:
                with open(out / f"{STAGES[letter].name}.log", "w") as log:
                    words = command_of(letter, args, folder, limit)
                    code = wait_for(words, log, limit + GRACE)
                status = status_of(code)
                if code or not list(out.glob(f"{STAGES[letter].name}.json*")):
                    failed.append(STAGES[letter].name)
            row = {"stage": STAGES[letter].name, "status": status, "limit_s": round(limit, 1)}
            row["seconds"] = round(time.monotonic() - began - start, 1)
            row["left_s"] = round(seconds - (time.monotonic() - began), 1)
            with open(out / "stages.jsonl", "a") as f:
                f.write(json.dumps(row) + "\n")
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            bring_home(pathlib.Path(folder), out)
    if failed:
        raise UserError(f"{', '.join(failed)} failed: see the logs and tracebacks in {out}")


MEMORY = "/dev/shm"  # a disk in memory, on Linux
ROOM = 40e9  # bytes that the runs may take


def scratch():
    """Where the runs' folders go: memory where there is room, None for the system's folder."""
    room = shutil.disk_usage(MEMORY).free if os.path.isdir(MEMORY) else 0
    return MEMORY if room > ROOM else None


def status_of(code):
    """An exit status in words."""
    if code is None:
        return "ended late"
    return "ok" if code == 0 else f"failed ({code})"


def check_letters(letters):
    """Raise UserError unless each is a stage's."""
    for letter in letters:
        if letter not in STAGES:
            raise UserError(f"{letter!r}: no such stage; expected some of {', '.join(STAGES)}")


def asked_for(args):
    """The letters of the stages, in order. Raises UserError."""
    only = args.only.split(",") if args.only else list(STAGES)
    skip = args.skip.split(",") if args.skip else []
    check_letters([*only, *skip])
    letters = [letter for letter in STAGES if letter in only and letter not in skip]
    if not letters:
        raise UserError(f"--only {args.only} --skip {args.skip}: no stage is left")
    return letters


def minutes_of(text):
    """The number of --minutes. Raises UserError."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not SHORTEST <= minutes < math.inf:
        raise UserError(f"--minutes {text}: expected a number of at least {SHORTEST}, such as 9")
    return minutes


def check_device(args):
    """Raise UserError where --device is not here.

    A command without --device and --tiny is for a GPU: on a CPU its stages would all be late.
    No context of CUDA is made, for this process would keep its memory from the stages.
    """
    gpus = torch.cuda.device_count()
    here = ["cuda"] * bool(gpus) + [f"cuda:{number}" for number in range(gpus)]
    if args.device in here or args.device == "auto" and (gpus or args.tiny):
        return
    if args.device == "auto" or args.device.startswith("cuda"):
        raise UserError(
            f"--device {args.device}: expected a GPU, found {', '.join(here) or 'none'}; "
            "--tiny --device cpu rehearses on a CPU"
        )
    device_of(make(device=args.device))


# ---------------------------------------------------------------- the command line

OPTIONS = {
    "--minutes": dict(default="9", metavar="N", help="of all stages (default 9)"),
    "--out": dict(default="gpu-results", metavar="FOLDER", help="results (default gpu-results)"),
    "--packed": dict(default="", metavar="FOLDER", help="what --pack made; joined if need be"),
    "--only": dict(default="", metavar="LETTERS", help="these stages, such as a,c"),
    "--skip": dict(default="", metavar="LETTERS", help="not these"),
    "--device": dict(default="auto", help="as of train.py (default: a GPU if there is one)"),
    "--compile": dict(default="auto", choices=("auto", "true", "false"), help="as of train.py"),
    "--tiny": dict(action="store_true", help="a rehearsal: everything at its smallest"),
    "--pack": dict(default="", metavar="FOLDER", help="instead: gather what travels"),
    "--unpack": dict(default="", metavar="FOLDER", help="instead: join what was gathered"),
    "--data": dict(default=pack.DATA, help="--pack: the corpus, as of train.py (default stdlib)"),
    "--data-dir": dict(default="", help="--pack: folder of the benchmarks, as of train.py"),
    "--process": dict(default="", metavar="LETTER", help="one stage, in this process"),
    "--seconds": dict(type=float, default=600.0, metavar="N", help="--process: its time"),
    "--work": dict(default="", metavar="FOLDER", help="--process: the folder of its runs"),
}


def gpu_options(argv):
    """The command line; a mistake ends the program."""
    parser = argparse.ArgumentParser(
        prog=f"{program_name()} gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, keywords in OPTIONS.items():
        parser.add_argument(option, **keywords)
    return parser.parse_args(argv)


def job_of_process(args):
    """The StageJob of a stage's own process."""
    ends = time.monotonic() + args.seconds
    packed = pathlib.Path(args.packed) / pack.JOINED if args.packed else None
    out = pack.folder_of("--out", args.out)
    work = pathlib.Path(args.work or tempfile.mkdtemp(prefix="ra3-"))
    return StageJob(out, work, packed, args.device, args.tiny, args.compile, ends)


def main(argv):
    args = gpu_options(argv)
    try:
        if args.pack:
            pack.write_pack(args.pack, args.data, args.data_dir, args.tiny)
        elif args.unpack:
            pack.unpack(args.unpack)
        elif args.process:
            check_letters([args.process])
            job = job_of_process(args)
            pack.use(job.packed)
            if not run_stage(STAGES[args.process], job):
                sys.exit(1)
        else:
            with ended_by_signals():
                run_stages(args)
    except UserError as e:
        sys.exit(f"{program_name()} gpu: {e}")
