"""Charts as small SVG files whose colours follow the page: light or dark, on the screen or on paper.

A chart has no colour of its own: curves use `currentColor` within a group of class c0, c1, …, for which the page, or
the style of a standalone file, sets the colour. Texts have 12 units in a frame of 360 × 240, so that they stay legible
on a phone, where a chart takes the full width.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40  # margins around the axes, in units
_LINE = 18  # height of a line of the legend in a standalone file
_MAX_POINTS = 80  # of a curve: more cannot be distinguished at this size
_DASHES = ("", "6 3", "2 3")  # of the curves that use the palette for the first, second and third time

# Colours of the methods by place, for light and for dark backgrounds: the baseline is neutral, the others are those of
# Okabe and Ito, which colour-blind readers can distinguish, darkened or lightened for a contrast of at least 3 : 1.
PALETTE = (
    ("#5f6368", "#a9adb3"),
    ("#0067a8", "#5db4f0"),
    ("#b84f00", "#f0954a"),
    ("#00795a", "#3fc9a0"),
    ("#a8447f", "#e391c0"),
    ("#7a6a00", "#d8c64a"),
    ("#5a50b5", "#a79ff0"),
    ("#2f7f8f", "#78cfdf"),
)


def palette_css(selector: str) -> str:
    """Rules for the classes c0, c1, … under a selector, of both colour schemes."""
    light = "".join(f"{selector} .c{place}{{color:{color}}}" for place, (color, _) in enumerate(PALETTE))
    dark = "".join(f"{selector} .c{place}{{color:{color}}}" for place, (_, color) in enumerate(PALETTE))
    return f"{light}\n@media screen and (prefers-color-scheme:dark){{{dark}}}"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points (x, y) in the order of x, of the method with this place; low and high: a band around it, or none.

    marks: draw the points. line: join them. faint: of one run among several.
    """

    place: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    marks: bool = False
    line: bool = True
    faint: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart; `file` is the name of its SVG file without the ending, `description` is read to those who cannot see it.

    ranges: of the vertical bars behind the curves, as (x, low, high). legend: (place, name) of each method, drawn in a
    standalone file only: the page has one legend for all its charts.
    """

    file: str
    title: str
    description: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    legend: Sequence[tuple[int, str]] = ()
    ranges: Sequence[tuple[float, float, float]] = ()
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    log_x: bool = False
    diagonal: bool = False
    zero_line: bool = False

    def svg(self) -> Markup:
        """The element for the page."""
        return Markup(
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self._spoken())}">{self._body()}</svg>'
        )

    def standalone(self) -> str:
        """A file of its own, with title, legend and colours."""
        height = HEIGHT + 26 + _LINE * len(self.legend)
        style = (
            "svg{color:#1c1d1f;background:#fff;font:12px system-ui,sans-serif}.axis{fill:#5b5e63}.grid{stroke:#e3e4e6}"
            "@media screen and (prefers-color-scheme:dark){svg{color:#e8e8e6;background:#17191c}.axis{fill:#a3a7ad}"
            ".grid{stroke:#33373c}}" + palette_css("svg")
        )
        legend = "".join(
            f'<g class="{_color(place)}"><path d="M{_LEFT} {HEIGHT + 34 + _LINE * row}h22" {_stroke(place)}/></g>'
            f'<text x="{_LEFT + 30}" y="{HEIGHT + 38 + _LINE * row}" fill="currentColor">{_clean(name)}</text>'
            for row, (place, name) in enumerate(self.legend)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{2 * WIDTH}" role="img" '
            f'aria-label="{_clean(self._spoken())}"><style>{style}</style>'
            f'<text x="{_LEFT}" y="17" fill="currentColor" font-weight="600">{_clean(self.title)}</text>'
            f'<g transform="translate(0 18)">{self._body()}</g>{legend}</svg>\n'
        )

    def _spoken(self) -> str:
        return f"{self.title}. {self.description}"

    def _body(self) -> Markup:
        scale = _Scale.of(self)
        parts = [*_grid(self, scale)]
        for x, low, high in self.ranges:
            top, bottom = scale.y(high), scale.y(low)
            height = max(bottom - top, 1.5)
            parts.append(
                Markup(f'<rect class="range" x="{scale.x(x) - 4:.1f}" y="{top:.1f}" width="8" height="{height:.1f}"/>')
            )
        parts += [_curve(curve, scale) for curve in self.curves]
        return Markup("").join(parts)


@dataclasses.dataclass(frozen=True)
class _Scale:
    """From values to units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log_x: bool

    @classmethod
    def of(cls, chart: Chart) -> "_Scale":
        x = [value for curve in chart.curves for value in curve.x] + [each[0] for each in chart.ranges]
        y = [value for curve in chart.curves for row in (curve.y, curve.low, curve.high) for value in row]
        y += [end for each in chart.ranges for end in each[1:]]
        y += [0.0] if chart.zero_line else []
        return cls(*(chart.x_limits or _limits(x, 0.0)), *(chart.y_limits or _limits(y, 0.06)), chart.log_x)

    def x(self, value: float) -> float:
        low, high, value = ((math.log(each) if self.log_x else each) for each in (self.x_low, self.x_high, value))
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        value = min(max(value, self.y_low), self.y_high)
        return HEIGHT - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - _TOP - _BOTTOM)


def _limits(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low == high:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    extra = margin * (high - low)
    return low - extra, high + extra


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high: steps are 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(each * power for each in (1.0, 2.0, 5.0, 10.0) if raw <= each * power * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(value: float, step: float, largest: float) -> str:
    if largest >= 10_000 and step >= 100:
        return f"{value / 1000:g}k" if value else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else "0"


def _labelled(values: Sequence[float]) -> Iterable[tuple[float, str]]:
    step = min((b - a for a, b in zip(values, values[1:], strict=False)), default=1.0)
    largest = max((abs(value) for value in values), default=0.0)
    return [(value, _label(value, step, largest)) for value in values]


def _grid(chart: Chart, scale: _Scale) -> Iterable[Markup]:
    """Grid lines with their numbers, the names of the axes, and the lines y = x and y = 0."""
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    for value, text in _labelled(ticks(scale.y_low, scale.y_high, 4)):
        y = scale.y(value)
        yield Markup(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        yield Markup(f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    if scale.log_x:
        known = sorted({value for curve in chart.curves for value in curve.x})
        marked = [(value, f"{value:g}") for value in known]
    else:
        marked = list(_labelled(ticks(scale.x_low, scale.x_high, 5)))
    for value, text in marked:
        x = scale.x(value)
        # The first and the last number stay within the frame.
        anchor = "end" if x > right - 8 else "middle"
        yield Markup(f'<text class="axis" x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{text}</text>')
    yield Markup(f'<path class="base" d="M{_LEFT} {bottom}H{right}" stroke="currentColor" stroke-opacity=".45"/>')
    middle = (_LEFT + right) / 2
    for place, name in (
        (f'x="{middle}" y="{HEIGHT - 6}"', chart.x_label),
        (f'transform="translate(12 {(_TOP + bottom) / 2})rotate(-90)"', chart.y_label),
    ):
        yield Markup(f'<text class="axis" {place} text-anchor="middle">{_clean(name)}</text>')
    line = 'stroke="currentColor" stroke-opacity=".4" stroke-dasharray="3 3" fill="none"'
    if chart.zero_line:
        yield Markup(f'<path d="M{_LEFT} {scale.y(0.0):.1f}H{right}" {line}/>')
    if chart.diagonal:
        low, high = max(scale.x_low, scale.y_low), min(scale.x_high, scale.y_high)
        ends = " ".join(f"{scale.x(value):.1f} {scale.y(value):.1f}" for value in (low, high))
        yield Markup(f'<path d="M{ends}" {line}/>')


def _curve(curve: Curve, scale: _Scale) -> Markup:
    """A group with the band, the line and the marks of a curve."""
    rows = _thinned(len(curve.x))
    x = [scale.x(curve.x[row]) for row in rows]
    y = [scale.y(curve.y[row]) for row in rows]
    parts = []
    if len(curve.low):
        low, high = ([scale.y(ends[row]) for row in rows] for ends in (curve.low, curve.high))
        if len(x) == 1:
            parts.append(f'<path d="M{x[0]:.1f} {low[0]:.1f}V{high[0]:.1f}" stroke="currentColor" stroke-width="1.5"/>')
        else:
            outline = _path([*x, *reversed(x)], [*low, *reversed(high)])
            parts.append(f'<path d="{outline}z" fill="currentColor" fill-opacity=".16"/>')
    if curve.line and len(x) > 1:
        parts.append(f'<path d="{_path(x, y)}" {_stroke(curve.place, curve.faint)}/>')
    if curve.marks or len(x) == 1:
        parts.append("".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in zip(x, y, strict=True)))
    faint = ' opacity=".6"' if curve.faint else ""
    return Markup(f'<g class="{_color(curve.place)}" fill="currentColor"{faint}>{"".join(parts)}</g>')


def _thinned(size: int) -> list[int]:
    if size <= _MAX_POINTS:
        return list(range(size))
    return sorted({round(row * (size - 1) / (_MAX_POINTS - 1)) for row in range(_MAX_POINTS)})


def _path(x: Sequence[float], y: Sequence[float]) -> str:
    """Tenths of a unit, each point relative to the one before: half the bytes of absolute coordinates."""
    points = [(round(10 * a), round(10 * b)) for a, b in zip(x, y, strict=True)]
    text = f"M{points[0][0] / 10:g} {points[0][1] / 10:g}l"
    moves = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(points, points[1:], strict=False)]
    return text + " ".join(f"{dx / 10:g} {dy / 10:g}" for dx, dy in moves)


def _color(place: int) -> str:
    return f"c{place % len(PALETTE)}"


def _stroke(place: int, faint: bool = False) -> str:
    dash = _DASHES[place // len(PALETTE) % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="currentColor" stroke-width="{1.2 if faint else 2}" stroke-linejoin="round"{dashes}'


def _clean(text: str) -> Markup:
    """Text for XML, which allows no control characters."""
    return escape("".join(character if character.isprintable() else " " for character in text))
