"""Progress on standard error: tqdm's bar on a terminal, else a plain line now and then."""

import sys
import time

EVERY = 30.0  # seconds between lines, at least
SHARE = 0.05  # of the time so far, at least: a day makes some 120 lines
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(iterable=None, **options):
    """A tqdm, or where standard error is no terminal a `PlainProgress`.

    options   those of tqdm: total, desc, unit, leave, disable, ...
    """
    if not sys.stderr.isatty():
        return PlainProgress(iterable, **options)
    from tqdm import tqdm  # here and below: loading it takes time, and not all commands need it

    return tqdm(iterable, **options)


class PlainProgress:
    """What a log file gets instead of a bar.

    A line every EVERY seconds, later every SHARE of the time so far; and one at the end, with
    `leave`. Options that concern a bar alone are ignored.
    """

    def __init__(
        self,
        iterable=None,
        *,
        total=None,
        desc="",
        unit="it",
        unit_scale=False,
        initial=0,
        leave=True,
        disable=False,
        **_,
    ):
        self.iterable = iterable
        self.total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
        self.n = initial
        self.leave = leave
        self.disable = disable
        self.options = dict(prefix=desc, unit=unit, unit_scale=unit_scale, initial=initial)
        self.postfix = ""
        self.started = time.monotonic()
        self.due = self.started + EVERY

    def __iter__(self):
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def update(self, n=1):
        self.n += n
        now = time.monotonic()
        if now >= self.due:
            self.write()
            self.due = now + max(EVERY, SHARE * (now - self.started))

    def set_postfix(self, **values):
        """Figures to print behind the progress, as texts."""
        self.set_postfix_str(", ".join(f"{name}={value}" for name, value in values.items()))

    def set_postfix_str(self, text, refresh=True):
        self.postfix = text

    @property
    def format_dict(self):
        return {"elapsed": time.monotonic() - self.started}

    def write(self):
        """Print a line as tqdm would."""
        if self.disable:
            return
        from tqdm import tqdm

        elapsed = self.format_dict["elapsed"]
        format = dict(postfix=self.postfix, bar_format=LINE, **self.options)
        line = tqdm.format_meter(self.n, self.total, elapsed, **format)
        print(line, file=sys.stderr, flush=True)

    def close(self):
        """The last line, once."""
        if self.leave:
            self.write()
        self.disable = True
