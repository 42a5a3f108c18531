"""The two pages, self-contained: no script, no font, no request but their own."""

import inspect
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from prefork import __version__
from prefork.apps.hello.trace import Step, Trace

_HERE = Path(__file__).parent
_ONION = Template((_HERE / "onion.html").read_text("utf-8"))
_INDEX = Template((_HERE / "index.html").read_text("utf-8"))
_STYLE = (_HERE / "style.css").read_text("utf-8")

TO_TRY = (
    ("/onion", "the layers of this application, drawn and timed as you ask"),
    ("/json?name=you", "JSON, from a dict"),
    ("/stream", "ten lines, one every fifth of a second"),
    ("/file", "this application's source, sent by the kernel"),
    ("/blocking", "a function that blocks, in a thread"),
    ("/throw?status=418", "an error meant for you"),
    ("/error", "a bug: 500 for you, the traceback in the error log"),
)


def upload_command(origin: str) -> str:
    return f"curl -T README.md {origin}/upload"


def index_text(pid: int, origin: str) -> str:
    """The first thing that `curl` shows."""
    lines = "\n".join(f"  {path:<18} {what}" for path, what in TO_TRY)
    return (
        f"Hello from prefork {__version__}, worker {pid}.\n\n{lines}\n\n"
        f"  PUT /upload        counts and digests a body:\n"
        f"                     {upload_command(origin)}\n"
    )


def index_page(pid: int, origin: str) -> str:
    items = "\n".join(
        f'<li><a href="{escape(path)}"><code>{escape(path)}</code></a> {escape(what)}</li>'
        for path, what in TO_TRY
    )
    return _INDEX.substitute(
        style=_STYLE,
        version=__version__,
        pid=pid,
        items=items,
        upload=escape(upload_command(origin)),
    )


# The picture. Rings are 44 apart around a core of 62, in a frame of 940 by 520.
_CX, _CY, _CORE, _GAP = 470, 262, 62, 44
_LANE = 15  # half the distance between the way in and the way out


def onion_page(
    trace: Trace, layers: Sequence[Callable[..., Any]], core: Callable[..., Any], origin: str
) -> str:
    """The onion with its crossings in their order, a table of them, and the layers' source."""
    steps = trace.steps()
    return _ONION.substitute(
        style=_STYLE,
        origin=escape(origin),
        rings=_rings([layer.__name__ for layer in layers]),
        marks=_marks(steps),
        lane=_lane(),
        rows="\n".join(_row(number, step) for number, step in enumerate(steps, 1)),
        sources="\n".join(_source(layer) for layer in (*layers, core)),
        layers=f"{sum(step.microseconds for step in steps if step.way != 'core'):.1f}",
        core=f"{sum(step.microseconds for step in steps if step.way == 'core'):.0f}",
    )


def _rings(names: list[str]) -> str:
    drawn = []
    for depth, name in enumerate(names):
        radius = _CORE + _GAP * (len(names) - depth)
        drawn.append(
            f'<circle class="ring r{depth}" cx="{_CX}" cy="{_CY}" r="{radius}"/>'
            f'<text class="name" x="{_CX}" y="{_CY - radius + 27}">{escape(name)}</text>'
        )
    drawn.append(
        f'<circle class="core" cx="{_CX}" cy="{_CY}" r="{_CORE}"/>'
        f'<text class="name" x="{_CX}" y="{_CY - _CORE + 27}">core</text>'
    )
    return "\n".join(drawn)


def _lane() -> str:
    """In from the left, round in the core, and out to the left again: the way of `next()`."""
    top, bottom = _CY + 6 - _LANE, _CY + 6 + _LANE
    return f"M 20 {top} H {_CX} A {_LANE} {_LANE} 0 0 1 {_CX} {bottom} H 20"


def _marks(steps: list[Step]) -> str:
    """A number at each crossing: above on the way in, below on the way out."""
    inwards = [step for step in steps if step.way == "in"]
    depth_of = {step.ring: depth for depth, step in enumerate(inwards)}
    rings = len(inwards)
    drawn = []
    for number, step in enumerate(steps, 1):
        if step.way == "core":
            x, y = _CX + _LANE, _CY + 6
        else:
            x = _CX - _CORE - _GAP * (rings - depth_of[step.ring]) + _GAP // 2
            y = _CY + 6 + (-_LANE if step.way == "in" else _LANE)
        drawn.append(
            f'<g class="mark {step.way}"><circle cx="{x}" cy="{y}" r="10"/>'
            f'<text x="{x}" y="{y + 4}">{number}</text>'
            f"<title>{escape(step.ring)}, {_WORDS[step.way]}: "
            f"{step.microseconds:.1f} \N{MICRO SIGN}s</title></g>"
        )
    return "\n".join(drawn)


_WORDS = {"in": "on the way in", "core": "at the core", "out": "on the way out"}


def _row(number: int, step: Step) -> str:
    return (
        f'<tr class="{step.way}"><td>{number}</td><td><code>{escape(step.ring)}</code></td>'
        f"<td>{_WORDS[step.way]}</td><td>{step.microseconds:.1f}</td></tr>"
    )


def _source(layer: Callable[..., Any]) -> str:
    text = inspect.getsource(layer)
    return (
        f"<details><summary><code>{escape(layer.__name__)}</code> "
        f"{escape(inspect.getdoc(layer) or '').splitlines()[0]}</summary>"
        f"<pre>{escape(text)}</pre></details>"
    )
