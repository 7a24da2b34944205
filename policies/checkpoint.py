"""Policies on disk: policy.json says what it is, policy.safetensors holds every tensor. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from policies.base import PolicyModule
from policies.catalog import check_spec, register_all, registry, type_name
from policies.ration import Ration
from sinew.config import from_json, to_json
from sinew.errors import DataError, SinewError
from sinew.rundir import RunDir, atomic_write, read_json
from sinew.specs import PolicySpec

FORMAT_VERSION = 1
JSON_NAME = "policy.json"
TENSORS_NAME = "policy.safetensors"
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")
"""Endings of files that are usually pickles."""
_DIGEST = "sinew_policy_json_sha256"

_log = logging.getLogger(__name__)


def save(policy: PolicyModule, run: RunDir | Path | str) -> None:
    """Write policy.safetensors and policy.json into a run directory; each file is replaced whole.

    Raises:
        InputError: the class is not registered, or the disk is full.
        DataError: a parameter is not finite; the files that are there stay.
    """
    folder = run.path if isinstance(run, RunDir) else Path(run)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    _check_finite(tensors, "policy to be saved")
    text = json.dumps({"format_version": FORMAT_VERSION, **_describe(policy)}, indent=2) + "\n"
    atomic_write(folder / TENSORS_NAME, to_bytes(tensors, {_DIGEST: _digest(text)}))
    atomic_write(folder / JSON_NAME, text)


def load(run: RunDir | Path | str) -> PolicyModule:
    """The policy of a run, in evaluation mode on the CPU.

    Raises:
        InputError: there is no run.
        DataError: the files are missing, truncated, foreign, of another version, or do not belong together.
    """
    folder = (run if isinstance(run, RunDir) else RunDir.open(run)).path
    refuse_pickles(folder)
    described = read_json(folder / JSON_NAME)
    version = described.get("format_version") if isinstance(described, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{folder / JSON_NAME} has format version {version!r}, this Sinew reads {FORMAT_VERSION}: "
            "train again, or use the Sinew that wrote it"
        )
    _check_types(described, str(folder / JSON_NAME))
    tensors, metadata = read_tensors(folder / TENSORS_NAME)
    if _DIGEST not in metadata:
        raise DataError(f"{folder / TENSORS_NAME} does not hold a policy of Sinew")
    if metadata[_DIGEST] != _digest((folder / JSON_NAME).read_text()):
        raise DataError(f"{folder / JSON_NAME} was changed after {TENSORS_NAME} was saved: restore both from one save, or train again")
    with Ration((folder / TENSORS_NAME).stat().st_size, str(folder / JSON_NAME)):
        policy = _build(described, str(folder / JSON_NAME))
    check_tensors(tensors, policy.state_dict(), str(folder / TENSORS_NAME))
    policy.load_state_dict(tensors)
    return policy.eval()


def refuse_pickles(folder: Path) -> None:
    """Refuse a checkpoint folder that holds a file which is made to be unpickled: opening one can run any code.

    Raises:
        DataError: names the first such file.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in PICKLES:
            raise DataError(f"{path} is a pickle, which can run any code when it is opened: remove it, or convert it to safetensors")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file.

    Raises:
        DataError: it is missing, truncated or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as e:
        raise DataError(f"{path} is truncated or not a safetensors file: {str(e).splitlines()[0]}") from None


def check_tensors(tensors: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> None:
    """Check names, shapes and types of `tensors` against `wanted`, and that all are finite.

    Raises:
        DataError: names the first tensor that differs.
    """
    if set(tensors) != set(wanted):
        name = min(set(tensors) ^ set(wanted))
        raise DataError(f"{where}: tensor {name!r} is {'missing' if name in wanted else 'unknown'}; it belongs to another policy")
    for name, tensor in wanted.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            have, want = f"{tuple(found.shape)} {found.dtype}", f"{tuple(tensor.shape)} {tensor.dtype}"
            raise DataError(f"{where}: tensor {name!r} is {have}, expected {want}")
    _check_finite(tensors, where)


def _check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"{where}: tensor {name!r} holds values that are not finite")


def _describe(policy: PolicyModule) -> dict[str, Any]:
    return {
        "type": type_name(policy),
        "spec": to_json(policy.spec),
        "config": to_json(policy.config),
        "bases": [_describe(base) for base in policy.bases()],
        **({"assets": dict(assets)} if (assets := policy.assets()) else {}),
    }


def _check_types(described: Any, where: str) -> None:
    """Check that a description, and those inside it, have the fields they need and name types that exist."""
    if not isinstance(described, dict) or not isinstance(described.get("bases"), list):
        raise DataError(f"{where} does not describe a policy: an object with type, spec, config and bases is expected")
    name = described.get("type")
    register_all(name if isinstance(name, str) else None)
    if not isinstance(name, str) or name not in registry:
        raise DataError(f"{where}: policy type {name!r} is unknown; known are {', '.join(registry)}")
    for base in described["bases"]:
        _check_types(base, where)


def _build(described: dict[str, Any], where: str) -> PolicyModule:
    """The policy that a description names, with fresh weights."""
    name = described["type"]
    cls = registry.get(name)
    bases = [_build(base, where) for base in described["bases"]]
    try:
        spec = from_json(PolicySpec, described.get("spec"), f"{where}: spec")
        check_spec(spec)
        policy = cls.rebuild(spec, from_json(cls.Config, described.get("config"), f"{where}: config"), bases)
        policy.take_assets(_assets(described, where))
    except SinewError as e:
        raise e if isinstance(e, DataError) else DataError(f"{where}: {e}") from None
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as e:
        raise DataError(f"{where} does not describe a {name} policy: {str(e).splitlines()[0]}") from None
    if to_json(policy.spec) != described.get("spec"):
        raise DataError(f"{where}: the spec is not that of a {name} policy with this config")
    return policy


def _assets(described: dict[str, Any], where: str) -> dict[str, str]:
    assets = described.get("assets", {})
    if not isinstance(assets, dict) or not all(isinstance(text, str) for text in assets.values()):
        raise DataError(f"{where}: assets must be an object of texts")
    return assets


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
