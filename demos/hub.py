"""Datasets to and from the Hugging Face hub, through huggingface_hub: what is cut off goes on, and nothing half is taken for whole.

LeRobot finds a dataset by the tag of its version ("v3.0"), which `push` moves to what it sent. Nothing here reads, keeps or tells a
token: huggingface_hub takes it from HF_TOKEN or its own login.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from demos import layout, trust
from demos.dataset import Dataset
from demos.formats import lerobot_v2
from sinew.errors import DataError, InputError, MissingDependency, SinewError
from sinew.progress import SILENT, Progress
from sinew.rundir import atomic_write

KIND = "dataset"
AT_ONCE, BATCH = 4, 64
"""Files that are downloaded side by side, and that are sent before the next ones are looked at."""
PULLED = ".sinew_pull"
"""Which commit an unfinished download is of, in its folder."""
SPARE_BYTES = 1 << 30
"""Room that a download leaves on the disk."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def push(root: Path, name: str, *, public: bool = False, message: str = "", progress: Progress = SILENT) -> dict[str, Any]:
    """Send a dataset; its repository is made if it is not there, private unless told otherwise. All of it appears at once.

    Args:
        root: dataset.
        name: OWNER/NAME.
        public: whether everybody may see it.
        message: of the commit.
        progress: told of every file.

    Returns:
        {"url", "commit", "tag", "private", "files", "bytes", "removed"}.

    Raises:
        InputError: offline, no token, no permission, or the repository is public and `public` is not said.
        DataError: no dataset, or a damaged one.
    """
    data = Dataset(root, cache_bytes=0)
    _check_name(name)
    hub = _hub("sent")
    files = trust.files_of(root)
    with _told(hub, f"{name} was not sent whole", "the same command goes on: what has arrived is not sent again"):
        if hub.get_token() is None:
            raise InputError("the hub knows nobody here: set HF_TOKEN, or run hf auth login; nothing was sent")
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="sinew")
        api.create_repo(name, repo_type=KIND, private=not public, exist_ok=True)
        info = api.repo_info(name, repo_type=KIND)
        if not info.private and not public:
            raise InputError(f"{name} is there already and everybody can see it: say --public, or choose another name; nothing was sent")
        there = {e.path for e in _tree(api, name, info.sha)}
        adds = [hub.CommitOperationAdd(path_in_repo=file, path_or_fileobj=str(root / file)) for file in files]
        progress.start("files", len(adds))
        for at in range(0, len(adds), BATCH):
            api.preupload_lfs_files(name, adds[at : at + BATCH], repo_type=KIND, free_memory=False)
            progress.advance(len(adds[at : at + BATCH]))
        gone = sorted(p for p in there - set(files) if trust.is_wanted(p) and p not in trust.BESIDE)
        removals = [hub.CommitOperationDelete(path_in_repo=file) for file in gone]
        done = api.create_commit(name, [*adds, *removals], repo_type=KIND, commit_message=message or f"{data.num_episodes} episodes")
        tag = str(data.info["codebase_version"])
        with contextlib.suppress(hub.errors.RevisionNotFoundError):
            api.delete_tag(name, tag=tag, repo_type=KIND)
        api.create_tag(name, tag=tag, revision=done.oid, repo_type=KIND)
        url = f"{api.endpoint}/datasets/{name}"
    size = sum((root / file).stat().st_size for file in files)
    told = {"url": url, "commit": done.oid, "tag": tag, "private": bool(info.private)}
    return {**told, "files": len(files), "bytes": size, "removed": len(gone)}


def pull(name: str, out: Path, *, revision: str = "", progress: Progress = SILENT) -> dict[str, Any]:
    """Fetch a dataset: only files that datasets are made of, each compared with its hash; the folder gets its name when all are there.

    Args:
        name: OWNER/NAME.
        out: folder; must not exist or be empty.
        revision: branch, tag or commit; the newest tag of a version that is read, else the main branch.
        progress: told of every file.

    Returns:
        {"out", "commit", "revision", "version", "files", "bytes", "left_out"}.

    Raises:
        InputError: offline, no such repository, the folder is taken, or no room.
        DataError: it is no dataset, or what came differs from what was promised.
    """
    _check_name(name)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"--out {out} exists already; nothing is written over, choose another path")
    hub, part = _hub("fetched"), out.absolute().with_name(f".{out.name}.part")
    with _told(hub, f"{name} was not fetched whole", f"the same command goes on: what has come is kept in {part}"):
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="sinew")
        revision = revision or _newest(api, name)
        commit = str(api.repo_info(name, repo_type=KIND, revision=revision).sha)
        entries = {e.path: e for e in _tree(api, name, commit)}
        wanted = {path: entry for path, entry in entries.items() if trust.is_wanted(path)}
        sizes = {path: int(entry.size) for path, entry in wanted.items()}
        trust.check_sizes(sizes, name)
        if layout.INFO not in wanted:
            raise DataError(f"{name} at {revision} is no LeRobotDataset: it has no {layout.INFO}")
        _prepare(part, f"{name} {commit}\n")
        _check_room(part, sum(sizes.values()), name)
        _download(hub, api.endpoint, name, commit, part, wanted, progress)
    for left in (part / ".cache", part / PULLED):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    version = _checked(part)
    if out.is_dir():
        out.rmdir()
    os.replace(part, out)
    left_out = sorted(p for p in entries if p not in wanted and p != ".gitattributes")
    told = {"out": str(out), "commit": commit, "revision": revision, "version": version, "left_out": left_out}
    return {**told, "files": len(wanted), "bytes": sum(sizes.values())}


def _hub(done: str) -> Any:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise InputError(f"HF_HUB_OFFLINE is set: nothing was {done}; unset it and run the same command again")
    try:
        return import_module("huggingface_hub")
    except ImportError:
        raise MissingDependency("the hub needs huggingface_hub: pip install 'sinew[hub]'") from None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(f"{name[:80]!r} is no repository: give OWNER/NAME, such as anna/lift-cube")


@contextlib.contextmanager
def _told(hub: Any, what: str, then: str) -> Iterator[None]:
    """Whatever the hub, the network or the disk says, in one line."""
    try:
        yield
    except SinewError:
        raise
    except Exception as e:  # of httpx, requests, urllib3, the hub's own
        token = hub.get_token()
        why = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        why = (why.replace(token, "…") if token else why)[:200]
        status = getattr(getattr(e, "response", None), "status_code", None)
        if status in (401, 403, 404):
            then = "there is no such repository or branch, or this token may not do that"
        raise InputError(f"{what} ({why}); {then}") from None


def _tree(api: Any, name: str, commit: str) -> list[Any]:
    """The files of a commit."""
    most = 2 * trust.MOST_FILES
    found = list(islice(api.list_repo_tree(name, recursive=True, revision=commit, repo_type=KIND), most + 1))
    if len(found) > most:
        raise DataError(f"{name} has more than {most} files and folders; no dataset has so many")
    return [entry for entry in found if getattr(entry, "blob_id", None)]


def _newest(api: Any, name: str) -> str:
    """The newest tag of a version that is read, else the main branch."""
    found = [m for ref in api.list_repo_refs(name, repo_type=KIND).tags if (m := re.fullmatch(r"v([23])\.(\d{1,3})", str(ref.name)))]
    return max(found, key=lambda m: (int(m[1]), int(m[2])))[0] if found else "main"


def _prepare(part: Path, told: str) -> None:
    """The folder of a download; what an earlier one of another commit left is dropped."""
    note = part / PULLED
    if part.exists() and not (note.is_file() and note.read_text() == told):
        shutil.rmtree(part)
    atomic_write(note, told)


def _check_room(part: Path, size: int, name: str) -> None:
    free = shutil.disk_usage(part).free
    if size + SPARE_BYTES > free + sum(p.stat().st_size for p in part.rglob("*") if p.is_file()):
        raise InputError(
            f"{name} has {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free at {part.parent}: free space or choose another --out"
        )


def _download(hub: Any, endpoint: str, name: str, commit: str, part: Path, wanted: Mapping[str, Any], progress: Progress) -> None:
    progress.start("files", len(wanted))

    def fetch(path: str) -> None:
        hub.hf_hub_download(name, path, repo_type=KIND, revision=commit, local_dir=part, endpoint=endpoint)
        _verify(part / path, wanted[path], name)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(fetch, path) for path in wanted]
        try:
            for each in running:
                each.result()
                progress.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _verify(path: Path, entry: Any, name: str) -> None:
    """Compare a file with its hash; one that differs is removed.

    Raises:
        DataError: it differs.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size or _hash_of(path, entry) != _told_hash(entry):
        path.unlink(missing_ok=True)
        raise DataError(f"{name}: {entry.path} came otherwise than the hub lists it, it was removed; run the same command again")


def _told_hash(entry: Any) -> str:
    return str(entry.lfs.sha256 if entry.lfs else entry.blob_id)


def _hash_of(path: Path, entry: Any) -> str:
    """SHA-256 of a large file; git's SHA-1 of a small one."""
    with path.open("rb") as file:
        if entry.lfs:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha1(b"blob %d\0" % path.stat().st_size + file.read(), usedforsecurity=False).hexdigest()


def _checked(part: Path) -> str:
    """Version of a dataset that was fetched.

    Raises:
        DataError: it is none.
    """
    if lerobot_v2.is_it(part):
        return "v2"
    return str(Dataset(part, cache_bytes=0).info["codebase_version"])


__all__ = ["pull", "push"]
