"""Figures as inline SVG that stretches: positions in percent, text and strokes in pixels, colours from the page's CSS.

So one figure is sharp and legible on a wide screen, a phone, in light and in dark, without a script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

from xft.report.contents import Matrix
from xft.report.table import NOT_RUN, power, signed

MOST_POINTS = 400
"""Points a curve is thinned to; more are not visible."""
SMOOTHED_BY = 30
"""A curve's bold line is its running mean over a 30th of the steps."""
BETWEEN_LABELS = 15
"""Pixels from one line's name to the next at a chart's right edge."""
NEAR = 30
"""Percent of a chart's width within which two names could lie over one another."""
FAR = 3 * BETWEEN_LABELS
"""Pixels below its dot from which on a name would be taken for another dot's, and is left out."""
LETTER, NEAR_DOT = 2.0, 3.0
"""Percent of a scatter's width that a letter takes, and of its sides that a dot does."""
LEAST_SCALE = 0.01
"""Deviations below 1% stay pale, so that noise doesn't look like structure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Maps values to percent of an axis."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Return the position of a value, 0 to 100."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return 100 * (value - low) / (high - low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve; `tone` is the CSS class that colours it, `name` is written at its end."""

    tone: str
    name: str = ""
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A dot with an interval; `tone` is the CSS class that colours it."""

    label: str
    tone: str
    at: tuple[float, float, float] | None
    """Mean, lower end, upper end; None where there is none."""


def linear(low: float, high: float, *, whole: bool = False, tight: bool = False) -> Scale:
    """Make a scale with about 4 round steps; a tight one ends where the values do, not at a tick."""
    if high <= low:
        low, high = (low - 0.5, high + 0.5) if not whole else (low, low + 1)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
    if tight:
        return Scale(low=low, high=high, ticks=tuple(tick for tick in ticks if low <= tick <= high))
    return Scale(low=ticks[0], high=ticks[-1], ticks=ticks)


def steps(first: float, last: float) -> Scale:
    """Make a scale of whole steps from the first one, which has a tick, to the last."""
    scale = linear(first, last, whole=True, tight=True)
    gap = scale.ticks[1] - scale.ticks[0] if len(scale.ticks) > 1 else 2.0
    return replace(scale, ticks=(first, *(tick for tick in scale.ticks if tick >= first + gap / 2)))


def logarithmic(low: float, high: float) -> Scale:
    """Make a scale in powers of ten, or in their 1-2-5 parts where the values span less than a few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    parts = (1.0, 2.0, 5.0) if last - first < 3 else (1.0,)
    marks = [part * 10.0**exponent for exponent in range(first, last + 1) for part in parts]
    below = max((mark for mark in marks if mark <= low * 1.001), default=marks[0])
    above = min((mark for mark in marks if mark >= high * 0.999 and mark > below), default=marks[-1])
    step = max(1, math.ceil((last - first) / 5)) if len(parts) == 1 else 1
    ticks = [mark for mark in marks if below <= mark <= above][::step]
    return Scale(low=below, high=above, ticks=tuple(ticks), log=True)


def window(points: int) -> int:
    """Return over how many points a curve's running mean goes; 1 for a short curve, which is drawn as it is."""
    return max(1, points // SMOOTHED_BY)


def curves(
    lines: Sequence[Line],
    *,
    label: str,
    height: int,
    log: bool = False,
    whole: bool = False,
    smooth: bool = True,
    percent: bool = False,
) -> Markup:
    """Draw curves over steps: single steps faint and their running mean bold, or the steps alone.

    Values that a scale can't hold (not finite, or not positive on a logarithmic one) are left out.
    """
    lines = [_drawable(line, log) for line in lines]
    lines = [line for line in lines if line.x]
    if not lines:
        return Markup('<p class="note">Nothing to draw.</p>')
    ys = [y for line in lines for y in line.y]
    x = steps(min(min(line.x) for line in lines), max(max(line.x) for line in lines))
    y = logarithmic(min(ys), max(ys)) if log else linear(min(0.0, *ys) if whole else min(ys), max(ys), whole=whole)
    drawn = [_polyline(line, x, y, smooth=smooth) for line in lines if len(line.x) > 1]
    dots = [
        f'<circle class="{line.tone}" cx="{x.at(line.x[0]):.2f}%" cy="{100 - y.at(line.y[0]):.2f}%" r="3"/>'
        for line in lines
        if len(line.x) == 1
    ]
    inner = f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">{"".join(drawn)}</svg>'
    names = _names(lines, x, y, height, smooth=smooth)
    right = 54 if names else 14
    return _figure(
        f"{_y_axis(y, percent=percent)}{_x_axis(x)}{inner}{''.join(dots)}{names}",
        label=label,
        height=height,
        right=right,
    )


def forest(marks: Sequence[Mark], *, label: str, percent: bool = False, reference: float | None = None) -> Markup:
    """Draw a dot with its interval per row, and a dashed line through `reference`."""
    shown = [mark.at for mark in marks if mark.at]
    if not shown:
        return Markup(f'<p class="note">{NOT_RUN.capitalize()}.</p>')
    ends = [end for _, low, high in shown for end in (low, high)]
    ends += [] if reference is None else [reference]
    x = linear(min(ends), max(ends))
    pitch = 30
    parts = [_x_axis(x, percent=percent, grid=True)]
    if reference is not None:
        at = f"{x.at(reference):.2f}%"
        parts.append(f'<line class="reference" x1="{at}" x2="{at}" y1="0" y2="100%"/>')
    for i, mark in enumerate(marks):
        middle = pitch * i + pitch / 2
        parts.append(
            f'<text class="name" x="-14" y="{middle}" dy=".34em" text-anchor="end">{escape(mark.label)}</text>'
        )
        if mark.at is None:
            parts.append(f'<text class="faint" x="0" y="{middle}" dx="4" dy=".34em">{NOT_RUN}</text>')
            continue
        mean, low, high = (f"{x.at(value):.2f}%" for value in mark.at)
        parts.append(
            f'<g class="{mark.tone}"><line class="whisker" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>'
            f'<circle cx="{mean}" cy="{middle}" r="5"/></g>'
        )
    longest = max(len(mark.label) for mark in marks)
    return _figure("".join(parts), label=label, height=pitch * len(marks), left=min(170, 7 * longest + 22))


def scatter(
    points: Sequence[tuple[float, Mark]],
    *,
    label: str,
    height: int,
    write: Callable[[float], str],
    unit: float = 1.0,
    reference: float | None = None,
) -> Markup:
    """Draw each mark with its interval up and down at its place from 0 on; `write` writes a place, round in `unit`s.

    Names that find no room near their dots are left out; each dot tells its own when it is pointed at.
    """
    shown = [(place / unit, mark, mark.at) for place, mark in points if mark.at]
    if not shown:
        return Markup(f'<p class="note">{NOT_RUN.capitalize()}.</p>')
    x = linear(0.0, max(place for place, _, _ in shown) or 1.0)
    ends = [end for _, _, (_, low, high) in shown for end in (low, high)]
    ends += [] if reference is None else [reference]
    y = linear(min(ends), max(ends))
    parts = [_y_axis(y)]
    parts += [
        f'<text x="{x.at(tick):.2f}%" y="100%" dy="1.6em" text-anchor="middle">{escape(write(tick * unit))}</text>'
        for tick in x.ticks
    ]
    if reference is not None:
        at = f"{100 - y.at(reference):.2f}%"
        parts.append(f'<line class="reference" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
    named: list[tuple[float, float]] = []
    for place, mark, values in sorted(shown, key=lambda point: -point[2][0]):
        mean, low, high = (100 - y.at(value) for value in values)
        across = x.at(place)
        parts.append(
            f'<g class="{mark.tone}"><title>{escape(mark.label)}</title>'
            f'<line class="whisker" x1="{across:.2f}%" x2="{across:.2f}%" y1="{low:.2f}%"'
            f' y2="{high:.2f}%"/><circle cx="{across:.2f}%" cy="{mean:.2f}%" r="5"/></g>'
        )
        down = height * mean / 100
        while any(abs(across - other) < NEAR and abs(down - taken) < BETWEEN_LABELS for other, taken in named):
            down += 1
        if down > min(height * mean / 100 + FAR, height):
            continue
        named.append((across, down))
        sides = ("end", "start") if across > 60 else ("start", "end")
        spans = [(x.at(at), 100 - y.at(ends[2]), 100 - y.at(ends[1])) for at, other, ends in shown if other is not mark]
        free = [side for side in sides if not _crossed(across, 100 * down / height, mark.label, side, spans)]
        anchor = (*free, *sides)[0]
        aside = 9 if anchor == "start" else -9
        parts.append(
            f'<text class="end {mark.tone}" x="{across:.2f}%" dx="{aside}" y="{down:.1f}" dy=".34em"'
            f' text-anchor="{anchor}">{escape(mark.label)}</text>'
        )
    return _figure("".join(parts), label=label, height=height)


def _crossed(across: float, down: float, name: str, side: str, spans: Sequence[tuple[float, float, float]]) -> bool:
    """Tell whether a name leaves the plot or crosses another mark's interval (place, top, bottom), all in percent."""
    end = across + (1 if side == "start" else -1) * (LETTER * len(name) + NEAR_DOT)
    left, right = sorted((across, end))
    return (
        left < 0
        or right > 100
        or any(left < place < right and top - NEAR_DOT < down < bottom + NEAR_DOT for place, top, bottom in spans)
    )


def load_map(load: Matrix, *, label: str, first: int = 0) -> Markup:
    """Draw the share of tokens of each expert (down) in each layer (across) against an even share.

    More is in one hue, less in another; experts without any token are outlined.
    """
    note = f"line: an even share, {100 / len(load[0]):.1f}%"
    if any(share == 0 for row in load for share in row):
        note += "; dashed: no token"
    return _deviation_map(
        load, label=label, say=lambda share: f"{100 * share:.1f}%", note=note, outline=True, first=first
    )


def coefficient_map(coefficients: Matrix, sets: int = 1, *, label: str, first: int = 0) -> Markup:
    """Draw how far each expert's coefficient is from the uniform 1/R, in percent of it; `sets` for a layer."""
    routed = len(coefficients[0])

    def say(value: float) -> str:
        return f"{signed(100 * (routed * value - 1), 1)}%"

    return _deviation_map(coefficients, label=label, say=say, note=f"line: uniform, 1/{routed}", sets=sets, first=first)


def _deviation_map(
    matrix: Matrix,
    *,
    label: str,
    say: Callable[[float], str],
    note: str,
    outline: bool = False,
    sets: int = 1,
    first: int = 0,
) -> Markup:
    """Draw shares against their even one: the further, the stronger, alike on both sides; with a legend."""
    even = 1 / len(matrix[0])
    coloured = [value for row in matrix for value in row if value or not outline]
    most = max([LEAST_SCALE, *(abs(value / even - 1) for value in coloured)])

    def cell(value: float) -> tuple[str, float]:
        if outline and value == 0:
            return "dead", 1.0
        above = value / even - 1
        return "high" if above > 0 else "low", abs(above) / most

    least = min(most, 1.0)  # no share is below nothing
    palest = f"flex-grow:{least / most:.3f};opacity:{least / most:.3f}"
    legend = Markup(
        f'<div class="legend"><span>{say(even * (1 - least))}</span>'
        f'<span class="ramp"><i class="below" style="{palest}"></i><i class="above"></i></span>'
        f"<span>{say(even * (1 + most))}</span><span>{note}</span></div>"
    )
    return _heat_map(matrix, cell=cell, label=label, title=say, sets=sets, first=first) + legend


def _heat_map(
    matrix: Matrix,
    *,
    cell: Callable[[float], tuple[str, float]],
    label: str,
    title: Callable[[float], str],
    sets: int = 1,
    first: int = 0,
) -> Markup:
    experts = len(matrix[0])
    pitch = max(8, min(24, 240 // experts))
    width = 100 / len(matrix)
    every = math.ceil(14 / pitch)
    parts = [
        f'<text x="-10" y="{pitch * e + pitch / 2}" dy=".34em" text-anchor="end">{e + 1}</text>'
        for e in range(0, experts, every)
    ]
    outlined: list[str] = []
    for number, row in enumerate(matrix):
        layer = f"layer {first + number // sets}" + (f", matrix {number % sets + 1}" if sets > 1 else "")
        for expert, value in enumerate(row):
            tone, strength = cell(value)
            (outlined if tone == "dead" else parts).append(
                f'<rect class="{tone}" x="{number * width:.3f}%" y="{pitch * expert}" width="{width:.3f}%"'
                f' height="{pitch}" fill-opacity="{strength:.2f}">'
                f"<title>{layer}, expert {expert + 1}: {title(value)}</title></rect>"
            )
    parts += [*outlined, _layers(len(matrix) // sets, first)]  # an outline lies over the neighbours
    return _figure("".join(parts), label=label, height=pitch * experts)


def _figure(body: str, *, label: str, height: int, left: int = 52, right: int = 14) -> Markup:
    """Wrap a drawing; what lies beside and below it fits into the padding."""
    return Markup(
        f'<div class="plot" style="padding-left:{left}px;padding-right:{right}px">'
        f'<svg width="100%" height="{height}" role="img" aria-label="{escape(label)}">{body}</svg></div>'
    )


def _x_axis(x: Scale, *, percent: bool = False, grid: bool = False) -> str:
    parts = []
    for tick, text in zip(x.ticks, _numbers(x, percent=percent), strict=True):
        at = f"{x.at(tick):.2f}%"
        if grid:
            parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="100%"/>')
        parts.append(f'<text x="{at}" y="100%" dy="1.6em" text-anchor="middle">{text}</text>')
    return "".join(parts)


def _y_axis(y: Scale, *, percent: bool = False) -> str:
    parts = []
    for tick, text in zip(y.ticks, _numbers(y, percent=percent), strict=True):
        at = f"{100 - y.at(tick):.2f}%"
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="-10" y="{at}" dy=".34em" text-anchor="end">{text}</text>')
    return "".join(parts)


def _layers(count: int, first: int) -> str:
    every = math.ceil(count / 8)
    return "".join(
        f'<text x="{100 * (layer + 0.5) / count:.2f}%" y="100%" dy="1.6em" text-anchor="middle">{first + layer}</text>'
        for layer in range(0, count, every)
    )


def tone(row: str) -> str:
    """Return the CSS class that colours a row of a run."""
    if row.startswith("base"):
        return "base"
    return row if row in ("sft", "moe", "xft") else "uniform"


def _drawable(line: Line, log: bool) -> Line:
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y) and (y > 0 or not log)]
    return replace(line, x=[x for x, _ in points], y=[y for _, y in points])


def _mean(line: Line, *, smooth: bool) -> Line:
    return replace(line, y=_running_mean(line.y, window(len(line.x)))) if smooth else line


def _polyline(line: Line, x: Scale, y: Scale, *, smooth: bool) -> str:
    faint = smooth and window(len(line.x)) > 1
    single = f'<polyline class="{line.tone} single" points="{_points(line, x, y)}"/>' if faint else ""
    return f'{single}<polyline class="{line.tone}" points="{_points(_mean(line, smooth=smooth), x, y)}"/>'


def _names(lines: Sequence[Line], x: Scale, y: Scale, height: int, *, smooth: bool) -> str:
    """Write each line's name at its end: at the right edge one below the other, elsewhere below the line."""
    ends = [(height * (1 - y.at(_mean(line, smooth=smooth).y[-1]) / 100), line) for line in lines if line.name]
    parts, free = [], 0.0
    for down, line in sorted(ends, key=lambda end: end[0]):
        if line.x[-1] == x.high:
            free = max(down, free)
            place = f'x="100%" dx="8" y="{free:.1f}" dy=".34em"'
            free += BETWEEN_LABELS
        else:
            place = f'x="{x.at(line.x[-1]):.2f}%" y="{min(down, height - 24):.1f}" dy="1.5em" text-anchor="middle"'
        parts.append(f'<text class="end {line.tone}" {place}>{escape(line.name)}</text>')
    return "".join(parts)


def _points(line: Line, x: Scale, y: Scale) -> str:
    """Write a polyline's points, thinned by averaging neighbours."""
    size = math.ceil(len(line.x) / MOST_POINTS)
    places = []
    for start in range(0, len(line.x), size):
        xs, ys = line.x[start : start + size], line.y[start : start + size]
        places.append((10 * x.at(sum(xs) / len(xs)), 1000 - 10 * y.at(sum(ys) / len(ys))))
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in places)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Average over a centred window, cut off at both ends."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    means = []
    for i in range(len(values)):
        first, end = max(0, i - window // 2), min(len(values), i + window // 2 + 1)
        means.append((sums[end] - sums[first]) / (end - first))
    return means


def _numbers(scale: Scale, *, percent: bool = False) -> list[str]:
    """Write the ticks of an axis alike: all with the decimals that one needs, or all in thousands."""
    if percent:
        return [f"{100 * tick:.4g}%" for tick in scale.ticks]
    most = max(abs(tick) for tick in scale.ticks)
    if scale.log or 0 < most < 0.001:
        return [f"{tick:g}" if tick == 0 or 0.001 <= abs(tick) < 10_000 else power(tick, 0) for tick in scale.ticks]
    unit, suffix = (1000, "k") if most >= 10_000 else (1, "")
    decimals = max(len(f"{tick / unit:.6g}".partition(".")[2]) for tick in scale.ticks)
    return [f"{tick / unit:,.{decimals}f}{suffix}" for tick in scale.ticks]
