"""Runs a policy that was exported for torch, and reads and writes its .pt2 files without a pickle.

A .pt2 is a zip of JSON and raw tensors, but torch puts the inputs that it traced with into it as a pickle. `to_zip` leaves
them out, and `open_program` refuses files that hold any, or compiled code.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from policies.onnx_runner import OnnxPolicy
from sinew.errors import DataError

CONFIG = re.compile(r"[^/]+/data/(weights|constants)/\w+_config\.json")
SAMPLE_INPUTS = re.compile(r"[^/]+/data/sample_inputs/\w+\.pt")
HARMLESS = re.compile(r"[^/]+/(models/\w+\.json|data/weights/weight_\d+|data/constants/tensor_\d+|\.data/\w+|archive_\w+|byteorder|\.\w+)")
"""Names of JSON, raw tensors and version numbers; custom objects, older formats and compiled code have other names."""


class TorchPolicy(OnnxPolicy):
    """An export for torch behind the same calls as `OnnxPolicy`.

    Args:
        folder: what `sinew export --format torch` wrote.

    Raises:
        DataError: the folder holds no such export, one of another version, or files that do not belong together.
    """

    format = "torch"

    def _open(self, path: Path) -> Any:
        return _Session(open_program(path))


class _Session:
    """A module that is called as onnxruntime's sessions are."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [value.numpy() for value in self.module({key: torch.from_numpy(value) for key, value in feed.items()})]


def to_zip(program: Any) -> bytes:
    """The .pt2 file of a torch.export.ExportedProgram, without the inputs it was traced with."""
    program._example_inputs = None  # torch would pickle them
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def open_program(path: Path | str) -> nn.Module:
    """The module in a .pt2 file. Nothing is unpickled and no library is loaded; still, a program comes from somebody you trust.

    Raises:
        DataError: it is not a .pt2 file that `to_zip` could have written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(item.file_size for item in archive.infolist())
            if unfolded > Path(path).stat().st_size:  # torch stores without compression
                raise DataError(f"{path} would unfold into {unfolded} bytes, more than it has: it is damaged or a trap")
            for item in archive.infolist():
                if not _harmless(archive, item):
                    raise DataError(
                        f"{path} holds {item.filename}, a pickle or code, which can do anything when it is opened: export it again"
                    )
        with quiet():
            return torch.export.load(str(path)).module()
    except DataError:
        raise
    except Exception as e:  # torch fails in its own ways over a file that is damaged
        raise DataError(f"{path} is not a .pt2 file: {(str(e).splitlines() or [type(e).__name__])[0]}") from None


def _harmless(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> bool:
    """Whether one file of the archive is JSON, raw numbers or empty."""
    if CONFIG.fullmatch(item.filename):
        described = json.loads(archive.read(item))["config"].values()
        return not any(tensor["use_pickle"] for tensor in described)
    if SAMPLE_INPUTS.fullmatch(item.filename):
        return item.file_size == 0
    return HARMLESS.fullmatch(item.filename) is not None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Torch's exporters warn about packages and classes that have nothing to do with the policy."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
