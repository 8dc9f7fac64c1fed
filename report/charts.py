"""Line charts as SVG: they grow with the page, follow its colours, and say in words what they show.

Every series has a colour, a dash pattern and a name. Nothing is drawn of what was not measured.
"""

import dataclasses
import math

from report.markup import element, escape, number

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24  # margins
MOST_POINTS = 300  # of a line; longer ones are averaged


@dataclasses.dataclass
class Series:
    """One line of a chart. points: [(x, y)]; those without a number are left out."""

    label: str
    points: list
    style: int = 0  # of STYLES in page.css
    faint: bool = False  # one seed of several: thin, and without a legend

    def __post_init__(self):
        self.points = [(x, float(y)) for x, y in self.points if is_finite(y)]


def is_finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def thinned(points, limit=MOST_POINTS):
    """At most so many points: means of equally many neighbours. Example: 4 points, 2 -> 2 means"""
    size = -(-len(points) // limit)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(mean([x for x, _ in group]), mean([y for _, y in group])) for group in groups]


def mean(values):
    return sum(values) / len(values)


def ticks(low, high, count=5):
    """Round numbers from low to high. Example: 0, 10 -> [0, 2, 4, 6, 8, 10]"""
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def decades(low, high):
    """Powers of ten from low to high. Example: .05, 20 -> [.1, 1, 10]"""
    first = math.ceil(math.log10(low) - 1e-9)
    last = math.floor(math.log10(high) + 1e-9)
    return [10.0**i for i in range(first, last + 1)]


def tick_text(value):
    """Example: 2000.0 -> "2k"; 0.05 -> "0.05" """
    return f"{value / 1000:g}k" if abs(value) >= 1000 else number(value, "{:g}")


@dataclasses.dataclass
class Scale:
    """From a number to a place on paper."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value):
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)


def scale_of(values, begin, end, log=False):
    """The scale that holds all values, with some room where they are all alike."""
    low = min(values)
    high = max(values)
    if low == high:
        room = abs(low) / 10 or 1.0
        low, high = (low / 2, high * 2) if log else (low - room, high + room)
    return Scale(low, high, begin, end, log)


def rounded_scale(scale):
    """A linear scale made longer, to the round numbers around it."""
    marks = ticks(scale.low, scale.high)
    step = marks[1] - marks[0]
    low = math.floor(scale.low / step + 1e-9) * step
    high = math.ceil(scale.high / step - 1e-9) * step
    return dataclasses.replace(scale, low=low, high=high)


def chart(title, unit, series, x_title, *, log=False, borders=()):
    """A figure: title, lines, legend, and a caption in words; "" where nothing was measured.

    unit      one that begins with "share" has an axis from 0 to 1
    log       the vertical axis is logarithmic, if all values are above zero, and far apart
    borders   places on the x axis that a thin line marks
    """
    series = [line for line in series if line.points]
    if not series:
        return ""
    ys = [y for line in series for _, y in line.points]
    log = log and min(ys) > 0 and max(ys) > 10 * min(ys)
    if unit.startswith("share"):
        ys += [0.0, 1.0]
    x = scale_of([x for line in series for x, _ in line.points], LEFT, WIDTH - RIGHT)
    y = scale_of(ys, HEIGHT - BOTTOM, TOP, log)
    y = y if log else rounded_scale(y)
    drawn = [
        *grid(x, y),
        *(border(x(place)) for place in borders),
        *(path(s, x, y) for s in series),
    ]
    words = "; ".join(series_in_words(line) for line in series if not line.faint)
    svg = element(
        "svg",
        *drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}, {unit}: {words}",
    )
    heading = element("div", element("b", escape(title)), escape(f", {unit}"), cls="chart-title")
    below = element(
        "div", escape(x_title + ("; vertical axis logarithmic" if log else "")), cls="axis"
    )
    caption = element("figcaption", legend(series), escape(words + "."))
    return element("figure", heading, svg, below, caption)


def grid(x, y):
    """Lines and numbers of both axes."""
    marks = decades(y.low, y.high) if y.log else ticks(y.low, y.high)
    for value in marks if len(marks) > 1 else (y.low, y.high):
        place = f"{y(value):.1f}"
        yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=place, y2=place, cls="grid")
        text = tick_text(value if len(marks) > 1 else float(f"{value:.3g}"))
        yield element("text", text, x=LEFT - 5, y=place, dy="0.32em", cls="tick-y")
    for value in ticks(x.low, x.high):
        if value == int(value):
            yield element("text", tick_text(value), x=f"{x(value):.1f}", y=HEIGHT - 7, cls="tick-x")


def border(place):
    return element(
        "line", x1=f"{place:.1f}", x2=f"{place:.1f}", y1=TOP, y2=HEIGHT - BOTTOM, cls="border"
    )


def path(line, x, y):
    """The line of a series; a dot where it is one point alone."""
    places = [(x(a), y(b)) for a, b in thinned(line.points)]
    cls = f"s{line.style}" + (" faint" if line.faint else "")
    if len(places) == 1:
        return element("circle", cx=f"{places[0][0]:.1f}", cy=f"{places[0][1]:.1f}", r=3, cls=cls)
    text = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    return element("polyline", points=text, cls=cls)


def series_in_words(line):
    """Example: "RA3 from −4.41 to −0.48" """
    first, last = (float(f"{line.points[i][1]:.3g}") for i in (0, -1))
    if len(line.points) == 1:
        return f"{line.label} {number(last, '{:g}')}"
    return f"{line.label} from {number(first, '{:g}')} to {number(last, '{:g}')}"


def legend(series):
    """The colour and dash of each series beside its name."""
    keys = []
    for line in series:
        if not line.faint:
            stroke = element("line", x1=0, x2=24, y1=5, y2=5, cls=f"s{line.style}")
            swatch = element("svg", stroke, viewBox="0 0 24 10", cls="key", aria_hidden="true")
            keys.append(element("span", swatch, escape(line.label), cls="series"))
    return element("span", *keys, cls="legend") if len(keys) > 1 else ""
