"""Figures of a policy server, in the text format that Prometheus reads (prometheus.io, exposition formats, version 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of the latency histogram's buckets."""
SAMPLES = (1, 2, 4, 8, 16, 32, 64)
"""Upper bounds of the batch-size histogram's buckets."""

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms; every call may come from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._histograms: dict[tuple[str, Labels], tuple[Sequence[float], list[int], list[float]]] = {}

    def count(self, name: str, **labels: str) -> None:
        """One more of something."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += 1

    def observe(self, name: str, value: float, bounds: Sequence[float], **labels: str) -> None:
        """One more value of a histogram with these upper bounds."""
        with self._lock:
            _, buckets, total = self._histograms.setdefault((name, tuple(sorted(labels.items()))), (bounds, [0] * (len(bounds) + 1), [0.0]))
            buckets[next((i for i, bound in enumerate(bounds) if value <= bound), len(bounds))] += 1
            total[0] += value

    def value(self, name: str, **labels: str) -> int:
        """A counter, over all labels that are not given."""
        wanted = set(labels.items())
        with self._lock:
            return sum(n for (found, given), n in self._counts.items() if found == name and wanted <= set(given))

    def text(self, gauges: Mapping[str, Iterable[tuple[Mapping[str, str], float]]]) -> str:
        """Everything, with values of the moment besides.

        Args:
            gauges: {name: [(labels, value)]}.
        """
        lines: list[str] = []
        with self._lock:
            for name in sorted({name for name, _ in self._counts}):
                lines.append(f"# TYPE {name} counter")
                lines += [f"{name}{_shown(labels)} {n}" for (found, labels), n in sorted(self._counts.items()) if found == name]
            for name in sorted({name for name, _ in self._histograms}):
                lines.append(f"# TYPE {name} histogram")
                for (found, labels), (bounds, buckets, total) in sorted(self._histograms.items()):
                    if found == name:
                        lines += _histogram(name, labels, bounds, buckets, total[0])
        for name, values in gauges.items():
            lines.append(f"# TYPE {name} gauge")
            lines += [f"{name}{_shown(tuple(labels.items()))} {value:g}" for labels, value in values]
        return "\n".join(lines) + "\n"


def _histogram(name: str, labels: Labels, bounds: Sequence[float], buckets: Sequence[int], total: float) -> list[str]:
    lines, below = [], 0
    for bound, n in zip((*bounds, float("inf")), buckets, strict=True):
        below += n
        edge = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f"{name}_bucket{_shown((*labels, ('le', edge)))} {below}")
    return [*lines, f"{name}_sum{_shown(labels)} {total:.9g}", f"{name}_count{_shown(labels)} {below}"]


def _shown(labels: Labels) -> str:
    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{key}="{quoted(value)}"' for key, value in labels) + "}" if labels else ""
