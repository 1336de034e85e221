"""Small drawings for the report as inline SVG, without scripts; colours are CSS classes of the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

BARS = 400
"""More queries than this are drawn as that many quantiles."""


@dataclass(frozen=True, slots=True)
class AxisScale:
    """A range of values laid over 0..100 % of a width."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float], step: float = 0.05) -> "AxisScale":
        """The range that holds all finite values, with a little room and round ends."""
        known = [value for value in values if value is not None and math.isfinite(value)] or [0.0, 1.0]
        low, high = math.floor(min(known) / step) * step, math.ceil(max(known) / step) * step
        return cls(low, high if high > low else low + step)

    def position(self, value: float) -> float:
        """Percent from the left, held within the width."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 2)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values inside the range."""
        span = self.high - self.low
        power = 10 ** math.floor(math.log10(span / count))
        step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """The values 1, 2 and 5 times a power of ten between two bounds above 0; evenly spaced ones where these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [round(factor * 10.0**power, 12) for power in powers for factor in (1, 2, 5)]
    inside = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    return inside if len(inside) > 2 else AxisScale(low, high).ticks()


def interval(span: Mapping[str, float | None], scale: AxisScale, line: float | None, kind: str) -> Markup:
    """A dot for the mean with a bar for its interval, and a vertical line at `line`.

    Args:
        span: mean, low, high; None draws nothing.
        kind: a CSS class: subject, baseline or other.
    """
    parts = []
    if line is not None:
        parts.append('<line class="rule" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>'.format(scale.position(line)))
    mean, low, high = span["mean"], span["low"], span["high"]
    if mean is not None and low is not None and high is not None:
        left, right = scale.position(low), scale.position(high)
        parts.append(f'<line class="span" x1="{left}%" x2="{right}%" y1="50%" y2="50%"/>')
        parts.append(f'<circle cx="{scale.position(mean)}%" cy="50%" r="5"/>')
    return Markup('<svg class="interval {}" role="img" aria-hidden="true">{}</svg>').format(
        kind, Markup("".join(parts))
    )


def sorted_bars(gaps: NDArray[np.float64]) -> tuple[Markup, float]:
    """Per-query differences as bars from the largest gain to the largest loss, and the value at the plot's edge.

    Args:
        gaps: (queries,) new minus baseline.
    """
    ordered = np.sort(gaps[np.isfinite(gaps)])[::-1]
    if len(ordered) > BARS:
        ordered = np.quantile(ordered, np.linspace(1, 0, BARS))
    edge = max(0.1, math.ceil(10 * float(np.abs(ordered).max(initial=0.0))) / 10)
    width = 1000 / max(len(ordered), 1)
    gap = 0.15 * width if len(ordered) <= 120 else 0.0
    paths = {"gain": "", "loss": ""}
    for number, value in enumerate(ordered):
        height = round(100 * float(value) / edge, 2)
        if height:
            left, right = round(number * width + gap, 2), round((number + 1) * width - gap, 2)
            paths["gain" if height > 0 else "loss"] += f"M{left} 0V{-height}H{right}V0Z"
    drawn = "".join(f'<path class="{kind}" d="{path}"/>' for kind, path in paths.items() if path)
    svg = (
        '<svg class="bars" viewBox="0 -100 1000 200" preserveAspectRatio="none" role="img" '
        'aria-label="differences of single queries, sorted">'
        f'{drawn}<line class="zero" x1="0" x2="1000" y1="0" y2="0"/></svg>'
    )
    return Markup(svg), edge  # numbers only; nothing in it comes from a document


def lines(
    curves: Mapping[str, Mapping[str, float]],
    *,
    rule: float,
    rule_name: str,
    tick: str,
    step: float = 0.05,
    shows: Sequence[float] = (),
) -> Markup:
    """Draws curves over equally spaced points, and a horizontal line at `rule`.

    The SVG stands alone, so it can be a file as well as a part of a page.

    Args:
        curves: name → point → value; all of the same points.
        rule: value of the horizontal line; `rule_name` is its label.
        tick: format of the values at the left, such as "{:.0%}".
        step: the vertical axis begins and ends at a multiple of it.
        shows: values that the vertical axis covers whatever the curves are.
    """
    scale = AxisScale.over([rule, *shows, *(value for curve in curves.values() for value in curve.values())], step)
    points = list(next(iter(curves.values())))
    positions = np.linspace(8, 76, len(points))

    def height(value: float) -> float:
        return round(92 - 0.84 * scale.position(value), 2)

    parts = [
        Markup('<text x="7" y="{}" text-anchor="end">{}</text>').format(height(value) + 1, tick.format(value))
        for value in scale.ticks()
    ]
    parts += [
        Markup('<text x="{:.2f}" y="97" text-anchor="middle">{}</text>').format(position, point)
        for position, point in zip(positions, points, strict=True)
    ]
    parts.append(
        Markup(
            '<line x1="8" x2="76" y1="{0}" y2="{0}" stroke="currentColor" stroke-width="0.2"/>'
            '<text x="77" y="{1}">{2}</text>'
        ).format(height(rule), height(rule) + 1, rule_name)
    )
    for number, (name, values) in enumerate(curves.items()):
        path = " ".join(
            f"{position:.2f},{height(values[point])}" for position, point in zip(positions, points, strict=True)
        )
        parts.append(_curve(number, name, path))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-5 0 140 100" font-size="3" role="img">{}</svg>'
    ).format(Markup("").join(parts))


def _curve(number: int, name: str, path: str) -> Markup:
    """A curve and its line in the legend; the first is solid, each other one has its own dashes."""
    return Markup(
        '<polyline points="{1}" fill="none" stroke="currentColor" stroke-width="0.5" stroke-dasharray="{0}"/>'
        '<line x1="83" x2="90" y1="{2}" y2="{2}" stroke="currentColor" stroke-width="0.5" stroke-dasharray="{0}"/>'
        '<text x="91" y="{3}">{4}</text>'
    ).format("none" if number == 0 else f"{number} 1", path, 75 + 5 * number, 76 + 5 * number, name)


@dataclass(frozen=True, slots=True)
class Point:
    """One system in a scatter plot."""

    name: str
    x: float
    y: float
    marked: bool = False
    """Drawn full, and joined with the other marked points by a line."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Labels of a scatter plot's axes, and the value and label of a horizontal line."""

    x: str
    y: str
    rule: float
    rule_name: str


@dataclass(frozen=True, slots=True)
class _Plane:
    """The area of a scatter plot: logarithmic across, linear upwards."""

    across: AxisScale
    """The scale of the logarithms to base 10."""
    up: AxisScale

    def left(self, x: float) -> float:
        """The horizontal position of a value in the SVG."""
        return round(10 + 0.72 * self.across.position(math.log10(x)), 2)

    def height(self, y: float) -> float:
        """The vertical position of a value in the SVG, from the top."""
        return round(88 - 0.8 * self.up.position(y), 2)


def scatter(points: Sequence[Point], axes: Axes) -> Markup:
    """Draws numbered points over a logarithmic horizontal axis, with a legend at the right.

    The SVG stands alone, so it can be a file as well as a part of a page.

    Args:
        points: (x, y) of each point, at least one; x above 0.
        axes: labels, and the horizontal line.
    """
    plane = _Plane(
        AxisScale.over([math.log10(point.x) for point in points], 0.1),
        AxisScale.over([axes.rule, *(point.y for point in points)], 0.005),
    )
    parts = _drawn_axes(axes, plane)
    marked = sorted((point for point in points if point.marked), key=lambda point: point.x)
    path = " ".join(f"{plane.left(point.x)},{plane.height(point.y)}" for point in marked)
    parts.append(Markup('<polyline points="{}" fill="none" stroke="currentColor" stroke-width="0.4"/>').format(path))
    ranked = sorted(points, key=lambda point: -point.y)
    parts += [_drawn_point(point, number, plane) for number, point in enumerate(ranked, start=1)]
    tall = max(100, 8 + 3 * len(points))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-5 0 140 {}" font-size="3" role="img">{}</svg>'
    ).format(tall, Markup("").join(parts))


def _drawn_axes(axes: Axes, plane: _Plane) -> list[Markup]:
    """The values and names of both axes, and the horizontal line."""
    upwards = [
        Markup('<text x="9" y="{}" text-anchor="end">{:.3f}</text>').format(plane.height(value) + 1, value)
        for value in plane.up.ticks()
    ]
    across = [
        Markup('<text x="{}" y="93" text-anchor="middle">{}</text>').format(plane.left(value), f"{value:,.10g}")
        for value in logarithmic_ticks(10**plane.across.low, 10**plane.across.high)
    ]
    height = plane.height(axes.rule)
    rule = Markup(
        '<text x="46" y="98" text-anchor="middle">{0}</text><text x="10" y="5">{1}</text>'
        '<line x1="10" x2="82" y1="{2}" y2="{2}" stroke="currentColor" stroke-width="0.2"/>'
        '<text x="83" y="{3}">{4}</text>'
    ).format(axes.x, axes.y, height, height + 1, axes.rule_name)
    return [*upwards, *across, rule]


def _drawn_point(point: Point, number: int, plane: _Plane) -> Markup:
    """A point with its number, and its line in the legend."""
    left, height = plane.left(point.x), plane.height(point.y)
    return Markup(
        '<circle cx="{0}" cy="{1}" r="1" stroke="currentColor" stroke-width="0.3" fill="{2}"/>'
        '<text x="{3}" y="{4}" font-size="2.2">{5}</text><text x="95" y="{6}" font-size="2.2">{5} {7}</text>'
    ).format(
        left,
        height,
        "currentColor" if point.marked else "none",
        left + 1.3,
        height - 1.0,
        number,
        4 + 3 * number,
        point.name,
    )
