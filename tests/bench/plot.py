"""A bar chart as an SVG of its own: no fonts, no scripts, light and dark by the reader's choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 760, 190, 96
BAR, STEP = 16, 24

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #24292f; }
.title { font-size: 15px; font-weight: 600; }
.panel { font-weight: 600; }
.own { font-weight: 600; }
.small, .axis { font-size: 11px; fill: #57606a; }
.grid { stroke: #d0d7de; stroke-width: 1; }
.bar { fill: #b3bcc6; }
.bar.ours { fill: #7fb1e8; }
.bar.own { fill: #0969da; }
.range { stroke: #24292f; stroke-width: 1; opacity: .55; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small, .axis { fill: #9198a1; }
  .grid { stroke: #30363d; }
  .bar { fill: #4b545e; }
  .bar.ours { fill: #35659c; }
  .bar.own { fill: #4493f8; }
  .range { stroke: #e6edf3; }
}
"""


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    lowest: float
    highest: float
    kind: str = ""  # "own": the bar the chart is about; "ours": its variants


@dataclass(frozen=True)
class Panel:
    title: str
    bars: Sequence[Bar]
    remarks: Sequence[str] = ()


def chart(title: str, unit: str, panels: Sequence[Panel], caption: Sequence[str]) -> str:
    """Horizontal bars from zero, one scale for all panels, the spread as a thin line."""
    top = max((bar.highest for panel in panels for bar in panel.bars), default=1.0) or 1.0
    ticks = _ticks(top)
    scale = (WIDTH - LEFT - RIGHT) / max(top, ticks[-1])
    y = 26.0
    body = [f'<text class="title" x="12" y="{y:g}">{escape(title)}</text>']
    for panel in panels:
        y += 32
        body.append(f'<text class="panel" x="12" y="{y:g}">{escape(panel.title)}</text>')
        y += 10
        bottom = y + STEP * len(panel.bars)
        for tick in ticks:
            x = LEFT + tick * scale
            body.append(
                f'<line class="grid" x1="{x:.1f}" y1="{y:g}" x2="{x:.1f}" y2="{bottom:g}"/>'
                f'<text class="axis" x="{x:.1f}" y="{bottom + 14:g}" text-anchor="middle">'
                f"{_short(tick)}</text>"
            )
        for bar in panel.bars:
            middle = y + STEP / 2
            own = ' class="own"' if bar.kind == "own" else ""
            end = LEFT + bar.value * scale
            body.append(
                f'<text{own} x="{LEFT - 8}" y="{middle + 4.5:g}" text-anchor="end">'
                f"{escape(bar.label)}</text>"
                f'<rect class="bar {bar.kind}" x="{LEFT}" y="{middle - BAR / 2:g}"'
                f' width="{end - LEFT:.1f}" height="{BAR}" rx="2"/>'
                f'<line class="range" x1="{LEFT + bar.lowest * scale:.1f}" y1="{middle:g}"'
                f' x2="{LEFT + bar.highest * scale:.1f}" y2="{middle:g}"/>'
                f'<text{own} x="{max(end, LEFT + bar.highest * scale) + 6:.1f}"'
                f' y="{middle + 4.5:g}">{bar.value:,.0f}</text>'
            )
            y += STEP
        y += 18
        for remark in panel.remarks:
            y += 15
            body.append(f'<text class="small" x="12" y="{y:g}">{escape(remark)}</text>')
    y += 12
    for line in (f"Unit: {unit}.", *caption):
        for piece in _wrapped(line, 118):
            y += 15
            body.append(f'<text class="small" x="12" y="{y:g}">{escape(piece)}</text>')
    height = y + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}"'
        f' width="{WIDTH}" height="{height:g}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _ticks(top: float) -> list[float]:
    """Four to eight round numbers from zero to beyond `top`."""
    step = 1.0
    while step * 8 < top:
        step *= 2.5 if str(step).startswith("2") else 2
    while step > 1e-9 and step * 4 > top:
        step /= 2
    return [step * n for n in range(int(top / step) + 2)]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
