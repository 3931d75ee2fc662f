"""Charts as inline SVG: lines, stacked areas and bars, points with intervals.

Colours are CSS classes (``c0`` ...), so that one stylesheet serves light, dark and print; what a color says is also
said by a dash, a marker or a label beside it. Every chart has a title and a description for who does not see it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from markupsafe import Markup

from seekr_cl.system.visible import one_line, visible

CLASSES = 8
"""Colours that differ; more series differ in their dashes too."""
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Series:
    """One line.

    Attributes:
        name: as the legend has it.
        points: (x, y); a y that is None breaks the line.
        band: (low, high) at each point, where known.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    band: Sequence[tuple[float, float] | None] = ()


@dataclass(slots=True)
class Axis:
    """A scale from values to pixels.

    Attributes:
        low: value at the beginning.
        high: value at the end.
        begin: its pixel.
        end: the pixel of ``high``.
        log: logarithmic.
        ticks: values with their labels.
    """

    low: float
    high: float
    begin: float
    end: float
    log: bool = False
    ticks: list[tuple[float, str]] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        """The pixel of a value; what lies outside stands at the border."""
        low, high, at = (self.low, self.high, value) if not self.log else (*map(_log, (self.low, self.high, value)),)
        part = 0.5 if high == low else (at - low) / (high - low)
        return round(self.begin + min(1.0, max(0.0, part)) * (self.end - self.begin), 1)


def _log(value: float) -> float:
    return math.log10(max(value, 1e-12))


def short(value: float) -> str:
    """A number as an axis has it."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3g}"


def linear(low: float, high: float, begin: float, end: float, ticks: int = 5) -> Axis:
    """An axis over a range, with round ticks."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    marks = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, begin, end, False, [(mark, short(mark)) for mark in marks])


def logarithmic(low: float, high: float, begin: float, end: float) -> Axis:
    """An axis over powers of ten."""
    first, last = math.floor(_log(low)), math.ceil(_log(high))
    last = max(last, first + 1)
    every = max(1, (last - first) // 5)
    ticks = [
        (10.0**power, short(10.0**power) if power >= -3 else f"1e{power}") for power in range(first, last + 1, every)
    ]
    return Axis(10.0**first, 10.0**last, begin, end, True, ticks)


def svg(width: int, height: int, title: str, about: str, body: Iterable[Markup], kind: str = "") -> Markup:
    """The picture around its parts, with its title and description."""
    number = next(_numbers)
    return Markup(
        '<svg viewBox="0 0 {w} {h}" class="chart {k}" role="img" aria-labelledby="t{n} d{n}" '
        'preserveAspectRatio="xMinYMin meet" style="max-width:{m}px">'
        '<title id="t{n}">{t}</title><desc id="d{n}">{d}</desc>{b}</svg>'
    ).format(
        w=width,
        h=height,
        m=round(width * 1.35),
        k=kind,
        n=number,
        t=one_line(title, 200),
        d=visible(about),
        b=Markup("").join(body),
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> Markup:
    """A label."""
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        round(x, 1), round(y, 1), kind, anchor, visible(content)
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line."""
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(
        *(round(place, 1) for place in (x1, y1, x2, y2)), kind
    )


def rect(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> Markup:
    """A rectangle, with a text that shows when it is pointed at."""
    inner = Markup("<title>{}</title>").format(visible(title)) if title else Markup("")
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}">{}</rect>').format(
        *(round(place, 1) for place in (x, y, max(0.0, width), max(0.0, height))), kind, inner
    )


def frame(x: Axis, y: Axis, x_label: str, y_label: str, height: int, width: int) -> list[Markup]:
    """Grid, ticks and the names of both axes."""
    parts = []
    for value, label in y.ticks:
        parts += [
            line(x.begin, y(value), x.end, y(value), "grid"),
            text(x.begin - 6, y(value) + 4, label, "tick", "end"),
        ]
    for value, label in x.ticks:
        parts.append(text(x(value), y.begin + 16, label, "tick", "middle"))
    parts.append(line(x.begin, y.begin, x.end, y.begin, "axis"))
    if x_label:
        parts.append(text((x.begin + x.end) / 2, height - 5, x_label, "label", "middle"))
    if y_label:
        parts.append(text(4, 12, y_label, "label"))
    return parts


def path(points: Sequence[tuple[float, float | None]], x: Axis, y: Axis) -> str:
    """The path through points; gaps where there is no value."""
    parts, pen = [], "M"
    for at, value in points:
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        parts.append(f"{pen}{x(at)} {y(value)}")
        pen = "L"
    return "".join(parts)


def curve(series: Series, number: int, x: Axis, y: Axis, markers: bool) -> list[Markup]:
    """One line in its color, its band behind it."""
    parts = []
    known = [(at, band) for (at, _), band in zip(series.points, series.band) if band is not None]
    if len(known) > 1:
        upper = [f"{x(at)} {y(high)}" for at, (_, high) in known]
        lower = [f"{x(at)} {y(low)}" for at, (low, _) in reversed(known)]
        parts.append(Markup('<path d="M{}Z" class="band c{}"/>').format("L".join(upper + lower), number % CLASSES))
    drawn = path(series.points, x, y)
    if drawn:
        dash = _DASHES[(number // CLASSES) % len(_DASHES)]
        parts.append(
            Markup('<path d="{}" class="line c{}"{}/>').format(
                drawn, number % CLASSES, Markup(' stroke-dasharray="{}"').format(dash) if dash else ""
            )
        )
    if markers:
        for at, value in series.points:
            if value is not None:
                parts.append(
                    Markup('<circle cx="{}" cy="{}" r="3" class="dot c{}"><title>{}: {}</title></circle>').format(
                        x(at), y(value), number % CLASSES, visible(series.name), short(value)
                    )
                )
    return parts


def legend(names: Sequence[str], kind: str = "line") -> Markup:
    """What the colors mean, as a list beside the chart."""
    items = Markup("").join(
        Markup('<li><svg viewBox="0 0 26 10" width="26" height="10" aria-hidden="true">{}</svg>{}</li>').format(
            Markup('<path d="M1 5H25" class="line c{}" stroke-dasharray="{}"/>').format(
                number % CLASSES, _DASHES[(number // CLASSES) % len(_DASHES)]
            )
            if kind == "line"
            else Markup('<rect x="4" y="0" width="18" height="10" class="fill c{}"/>').format(number % CLASSES),
            one_line(name, 48),
        )
        for number, name in enumerate(names)
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def decimate(points: Sequence[tuple[float, float | None]], most: int = 400) -> list[tuple[float, float | None]]:
    """So many points at the most: the mean of what lies between, so that no peak is made up and no trend is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    found: list[tuple[float, float | None]] = []
    for begin in range(0, len(points), size):
        block = points[begin : begin + size]
        values = [value for _, value in block if value is not None]
        found.append((block[len(block) // 2][0], sum(values) / len(values) if values else None))
    return found
