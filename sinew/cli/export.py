"""Write a run's policy as graphs for a robot's own program: ONNX, or torch.export's .pt2, with what goes in and out beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Args:
    """Write a run's policy as graphs for a robot's own program, checked against the policy."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    out: Path
    """Folder for the graphs and export.json; must be missing or empty."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx for onnxruntime, TensorRT, OpenVINO; torch for torch.export.load, also in C++."""
    steps: int | None = None
    """Steps of a sample; the policy's own if left out."""
    seed: int = 0
    """Has no effect: a graph takes its noise as an input."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Write and check.

    Raises:
        InputError: there is no run, the folder holds something, or the policy cannot be a graph.
    """
    import policies
    from policies.export import TOLERANCE, export

    made = export(policies.load(args.run), args.out, format=args.format, steps=args.steps)
    parity = {"parity": made.parity, "tolerance": TOLERANCE}
    return {"run": str(args.run), "out": str(args.out), "format": args.format, "files": made.files, **parity}


def show(result: dict[str, Any], console: Console) -> None:
    """One line per file, then how far the graphs are from the policy."""
    for name, size in result["files"].items():
        console.print(f"{result['out']}/{name}  {size / 1e6:.2f} MB", highlight=False)
    worst = ", ".join(f"{name} {difference:.1e}" for name, difference in result["parity"].items())
    console.print(f"largest difference to the policy: {worst}; at most {result['tolerance']:g} is let through", highlight=False)
