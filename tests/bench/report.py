"""What was measured, as tables for a terminal; and the targets, reached or missed."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """`value` against `bound`; `value` None when there was nothing to measure."""

    what: str
    value: float | None
    bound: float
    unit: str = ""
    at_least: bool = True
    by_cpu: float | None = None  # the same ratio from CPU per request

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def row(self) -> tuple[str, str, str, str, str]:
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[self.reached]
        sign = "≥" if self.at_least else "≤"
        value = "" if self.value is None else f"{self.value:.2f}{self.unit}"
        by_cpu = "" if self.by_cpu is None else f"{self.by_cpu:.2f}"
        return self.what, value, by_cpu, f"{sign} {self.bound:g}{self.unit}", verdict

    def as_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "value": self.value,
            "bound": self.bound,
            "unit": self.unit.strip(),
            "at_least": self.at_least,
            "by_cpu": self.by_cpu,
            "reached": self.reached,
        }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned first column, right-aligned others; a row of two cells is a remark."""
    lines = [list(head), *([*row] for row in rows)]
    full = [line for line in lines if len(line) == len(head)]
    widths = [max(len(line[n]) for line in full) for n in range(len(head))]
    widths[0] = max(len(line[0]) for line in lines)
    out = []
    for line in lines:
        if len(line) < len(head):
            out.append(f"{line[0]:<{widths[0]}}  {line[1]}")
            continue
        cells = [f"{line[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
        out.append("  ".join(cells).rstrip())
    out.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(out)


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def paired_ratio(
    results: Sequence[Mapping[str, Any]],
    scenario: str,
    one: str,
    other: str,
    key: str = "per_second",
) -> float | None:
    """Median over the rounds of (requests per second of `one`) / (of `other`) in that round."""
    speeds: dict[tuple[str, int], float] = {
        (r["server"], r["round"]): r[key] for r in results if r["scenario"] == scenario
    }
    ratios = [
        speed / speeds[other, number]
        for (name, number), speed in speeds.items()
        if name == one and speeds.get((other, number))
    ]
    return median(ratios) if ratios else None


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each scenario and server, medians over the rounds, fastest first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["scenario"], result["server"]), []).append(result)
    entries = []
    for (scenario, server), group in groups.items():
        speeds = [r["per_second"] for r in group]
        middle = median(speeds)
        entries.append(
            {
                "scenario": scenario,
                "server": server,
                "rounds": len(group),
                "per_second": middle,
                "lowest": min(speeds),
                "highest": max(speeds),
                "spread": (max(speeds) - min(speeds)) / middle if middle else float("nan"),
                "cpu_us": median([r["cpu_us"] for r in group]),
                "busy": median([r["busy"] for r in group]),
                "p50_ms": median([r["p50_ms"] for r in group]),
                "p99_ms": median([r["p99_ms"] for r in group]),
                "errors": sum(r["errors"] for r in group),
                "to_nginx": paired_ratio(results, scenario, server, "nginx"),
                "prefork_to_it": paired_ratio(results, scenario, "prefork", server),
            }
        )
    return sorted(entries, key=lambda e: (e["scenario"], -e["per_second"]))


def throughput_table(
    entries: Sequence[Mapping[str, Any]], absent: Mapping[str, str], labels: Mapping[str, str]
) -> str:
    """The entries of one scenario, then those who could not take part, with the reason.

    `busy` is the share of its core the server used: far below 100 % the measurement was disturbed
    (or the client was the slower one), and only the CPU column can be believed.
    """

    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows: list[Sequence[str]] = [
        (
            labels[e["server"]],
            f"{e['per_second']:,.0f}",
            f"±{e['spread'] * 50:.0f} %",
            ratio(e["to_nginx"]),
            ratio(e["prefork_to_it"]),
            f"{e['cpu_us']:.2f}",
            f"{e['busy'] * 100:.0f} %",
            f"{e['p50_ms']:.2f}",
            f"{e['p99_ms']:.2f}",
            f"{e['errors']}" if e["errors"] else "",
        )
        for e in entries
    ]
    rows += [(labels[name], f"not measured: {why}") for name, why in absent.items()]
    head = ("server", "req/s", "spread", "x nginx", "prefork x", "CPU us", "busy")
    return table((*head, "p50 ms", "p99 ms", "errors"), rows)


def throughput_targets(results: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Two async onion layers, one worker, access log off, against the others in the same run."""

    def against(scenario: str, other: str, bound: float, one: str = "prefork") -> Target:
        name = {"bare-64": "bare", "browser-64": "browser headers"}[scenario]
        value = paired_ratio(results, scenario, one, other)
        # Less CPU is better: the other way round.
        by_cpu = paired_ratio(results, scenario, other, one, "cpu_us")
        return Target(f"{name}: {one} / {other}", value, bound, by_cpu=by_cpu)

    return [
        against("bare-64", "nginx", 0.52),
        against("bare-64", "granian", 1.15),
        against("bare-64", "uvicorn", 1.8),
        against("bare-64", "koa", 2.0),
        against("browser-64", "nginx", 0.45),
        against("browser-64", "bjoern", 0.9),
        against("browser-64", "granian", 1.2),
        against("bare-64", "granian-wsgi", 0.9, "prefork-wsgi"),
        against("bare-64", "gunicorn", 10.0, "prefork-wsgi"),
        against("bare-64", "gunicorn", 3.0, "prefork-wsgi-4"),
        against("bare-64", "prefork", 0.92, "prefork-log"),
        against("browser-64", "prefork", 0.92, "prefork-log"),
    ]


def target_table(targets: Sequence[Target]) -> str:
    rows = [target.row() for target in targets]
    head = ("target", "measured", "by CPU", "to reach", "verdict")
    if not any(row[2] for row in rows):  # the column would be empty
        return table(head[:2] + head[3:], [row[:2] + row[3:] for row in rows])
    return table(head, rows)
