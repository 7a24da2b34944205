"""The folder of a run: what made it, what came of it, written so that a crash leaves the old or the new, never half."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sinew.config import to_json
from sinew.errors import DataError, InputError

FORMAT_VERSION = 1
FIRST = ("verb", "method", "algorithm")
"""Settings that say most about a run: of those that differ they are named first."""
PACKAGES = ("sinew", "torch", "numpy", "mujoco", "gymnasium", "pyarrow", "av", "cyclonedds", "rosbags")


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        InputError: the disk is full or the folder cannot be written; the old content stays.
    """
    path = Path(path)
    data = data.encode() if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.parent / f".{path.name}.{secrets.token_hex(4)}"
        fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # readable to whom the user's umask says, unlike mkstemp
    except OSError as e:
        raise InputError(f"cannot write {path}: {e.strerror or e}") from None
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except OSError as e:
        Path(tmp).unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {e.strerror or e}; free space or choose another folder") from None
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """`atomic_write` of a dataclass, mapping or list as indented JSON."""
    atomic_write(path, json.dumps(to_json(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Parse a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as e:
        raise DataError(f"{path} cannot be read as JSON: {e}") from None


class RunDir:
    """A run directory.

    Files: config.json, policy.safetensors + policy.json, best_so_far.json of what learns by doing, train_state.safetensors +
    train_state.json, metrics.jsonl, eval/*.json, videos/*.mp4, report.html, provenance.json.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """An existing run.

        Raises:
            InputError: there is none; the runs beside it are named.
        """
        path = Path(path)
        if not path.is_dir() or not any((path / f).exists() for f in ("config.json", "policy.json")):
            parent = path.parent if path.parent.is_dir() else Path()
            runs = sorted(str(p.parent) for p in parent.glob("*/config.json"))[:8]
            raise InputError(f"no run at {path}: {'runs there are ' + ', '.join(runs) if runs else 'train one with sinew train'}")
        return cls(path)

    @classmethod
    def create(
        cls, path: Path | str, config: Any, *, seeds: Mapping[str, int] | None = None, inputs: Mapping[str, str] | None = None
    ) -> RunDir:
        """Make the folder with config.json and provenance.json, or open it again if its config is the same.

        Args:
            path: folder.
            config: dataclass or mapping; compared with the config that is there.
            seeds: named random seeds, recorded.
            inputs: named content hashes of what the run reads, recorded.

        Raises:
            InputError: the folder holds a dataset, or a run with another config; the first difference is named.
        """
        run = cls(path)
        wanted = {"format_version": FORMAT_VERSION, **to_json(config)}
        run.check_free({})
        if (run / "config.json").exists():
            run.check_same(read_json(run / "config.json"), wanted)
            return run
        write_json(run / "provenance.json", provenance(seeds or {}, inputs or {}))
        write_json(run / "config.json", wanted)
        return run

    def check_free(self, config: Mapping[str, Any]) -> None:
        """Check that a run may begin here, or go on; settings that are not given are not compared.

        Raises:
            InputError: this is a file, or the folder holds a dataset, or a run with another of these settings.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; choose another folder for the run")
        if (self / "meta/info.json").exists():
            raise InputError(f"{self.path} holds a dataset; choose another folder for the run")
        if (self / "config.json").exists() and isinstance(there := read_json(self / "config.json"), Mapping):
            self.check_same({key: there.get(key) for key in config}, config)

    def check_same(self, there: Any, here: Any) -> None:
        """Check that what a run was made with is what is wanted now.

        Args:
            there: its settings, as JSON.
            here: the settings that it would go on with.

        Raises:
            InputError: the first setting that differs, with both values.
        """
        if (differs := _difference(there, here)) is not None:
            raise InputError(f"{self.path} holds another run: {differs}; choose another --out")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from working in this folder; the system lets go when this process ends, however it ends.

        Raises:
            InputError: another process works there; its number is told.
        """
        with open(self / ".lock", "ab+") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                f.seek(0)
                holder = f.read(32).decode(errors="replace").strip() or "unknown"
                raise InputError(
                    f"another process (pid {holder}) works in {self.path}; wait for it, stop it or choose another folder"
                ) from None
            f.truncate(0)
            f.write(f"{os.getpid()}\n".encode())
            f.flush()
            yield

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl; after a line that a crash tore it starts on a new one.

        Raises:
            InputError: the disk is full; the lines of before stay.
        """
        path = self / "metrics.jsonl"
        try:
            with open(path, "ab+") as f:
                if f.tell():
                    f.seek(-1, os.SEEK_END)
                    if f.read(1) != b"\n":
                        f.write(b"\n")
                f.write(json.dumps(to_json(values)).encode() + b"\n")
        except OSError as e:
            raise InputError(f"cannot write {path}: {e.strerror or e}; free space, then the same command goes on") from None

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Every whole line of metrics.jsonl, in order; lines that a crash tore are left out."""
        path = self / "metrics.jsonl"
        if path.exists():
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # of JSON and of UTF-8 alike
                    yield json.loads(line)

    def keep_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Let metrics.jsonl, where there is one, hold these lines alone."""
        text, path = "".join(json.dumps(line) + "\n" for line in lines), self / "metrics.jsonl"
        if path.exists():
            atomic_write(path, text)


def _difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first field, `FIRST` and then by name, in which two JSON objects differ, with both values; None if none does."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = sorted({*there, *here}, key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), key))
        found = (_difference(there.get(key), here.get(key), f"{name}.{key}" if name else key) for key in keys)
        return next((told for told in found if told is not None), None)
    return None if there == here else f"{name} is {there!r} there, {here!r} here"


def provenance(seeds: Mapping[str, int], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Where a result came from: commit, versions, machine, seeds and hashes of the inputs."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "commit": commit(Path(__file__).resolve().parent.parent),
        "created_unix_s": int(time.time()),
        "python": platform.python_version(),
        "packages": versions,
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "processor": processor_name()},
        "seeds": dict(seeds),
        "inputs": dict(inputs),
        "command": sys.argv[1:],
    }


def commit(root: Path) -> str:
    """Commit of the source tree at `root`; "unknown" where it is installed, not checked out, or git is not there."""
    if not (root / ".git").exists():  # an installation inside somebody else's repository is not of its commit
        return "unknown"
    try:
        git = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return git.stdout.strip() or "unknown"


def processor_name() -> str:
    """Model name of the processor, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
