"""`sinew data push` and `pull` through real processes and huggingface_hub, against a server that speaks the hub's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pytest

import demos
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_a_secret_word"


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(ThreadingHTTPServer):
    """The hub's protocol as far as datasets need it: repositories, commits, tags, trees, large files, downloads."""

    daemon_threads = True

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.heads: dict[str, str] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.large: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.messages: list[str] = []
        self.lies: dict[str, bytes] = {}
        """Files that are served otherwise than they are listed."""
        self.fail_after = 10**9
        """Downloads and uploads that are served before the rest is refused."""
        self.served = 0
        self.stall = threading.Event()
        self.stall.set()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, name: str, files: dict[str, bytes], tag: str | None = None) -> str:
        """A commit."""
        commit = hashlib.sha1(repr(sorted((k, git_hash(v)) for k, v in files.items())).encode()).hexdigest()
        self.commits[commit], self.heads[name] = dict(files), commit
        self.private.setdefault(name, False)
        self.tags.setdefault(name, {})
        if tag:
            self.tags[name][tag] = commit
        return commit

    def commit_of(self, name: str, revision: str) -> str | None:
        revision = unquote(revision)
        known = {"main": self.heads[name], **self.tags[name]}
        return known.get(revision, revision if revision in self.commits else None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, told: object = None, status: int = 200, headers: dict[str, str] | None = None, data: bytes | None = None) -> None:
        body = json.dumps(told).encode() if data is None else data
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def do_HEAD(self) -> None:
        self.route()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD  # noqa: N815

    def route(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") not in (f"Bearer {TOKEN}", None) or (
            self.command in ("POST", "PUT", "DELETE") and not self.path.startswith("/large/") and not self.headers.get("Authorization")
        ):
            return self.refuse(401, "Unauthorized")
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, self.path.split("?")[0])
            if found and self.command in method:
                return action(self, body, *found.groups())
        return self.refuse(404, "NoRoute")

    def served(self) -> bool:
        """Whether one more large thing may go over."""
        self.server.stall.wait(60)
        self.server.served += 1
        if self.server.served > self.server.fail_after:
            self.refuse(400, "Overloaded")  # not tried again by huggingface_hub itself, unlike a cut connection
            return False
        return True

    # ------------------------------------------------------------ what it does

    def create(self, body: bytes) -> None:
        told = json.loads(body)
        name = f"{told.get('organization') or 'anna'}/{told['name']}"
        if name in self.server.heads:
            return self.answer({"error": "exists", "url": f"{self.server.url}/datasets/{name}"}, 409)
        self.server.private[name] = bool(told.get("private")) or told.get("visibility") == "private"
        self.server.put(name, {".gitattributes": b"x"})
        return self.answer({"url": f"{self.server.url}/datasets/{name}", "name": name, "id": "1"})

    def info(self, _: bytes, name: str, revision: str | None = None) -> None:
        commit = self.server.commit_of(name, revision or "main") if name in self.server.heads else None
        if commit is None:
            return self.refuse(404, "RevisionNotFound" if name in self.server.heads else "RepoNotFound")
        return self.answer({"id": name, "sha": commit, "private": self.server.private[name], "siblings": [], "tags": [], "downloads": 0})

    def tree(self, _: bytes, name: str, revision: str) -> None:
        commit = self.server.commit_of(name, revision)
        found = []
        for path, data in self.server.commits[str(commit)].items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
            if path.endswith((".parquet", ".mp4", ".png")):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            found.append(entry)
        return self.answer(found)

    def refs(self, _: bytes, name: str) -> None:
        if name not in self.server.heads:
            return self.refuse(404, "RepoNotFound")
        tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in self.server.tags[name].items()]
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.server.heads[name]}
        return self.answer({"branches": [branch], "tags": tags, "converts": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        there = self.server.commits[self.server.heads[name]]
        files = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith((".parquet", ".mp4", ".png"))
            oid = git_hash(there[file["path"]]) if file["path"] in there and not large else None
            files.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        return self.answer({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            action = {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}
            objects.append({**each, **({} if each["oid"] in self.server.large else {"actions": action})})
        return self.answer({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        if self.served():
            assert hashlib.sha256(body).hexdigest() == oid
            self.server.large[oid] = body
            self.server.uploads.append(oid)
            self.answer({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        files = dict(self.server.commits[self.server.heads[name]])
        for line in body.splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "header":
                self.server.messages.append(value["summary"])
            elif told["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif told["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.server.put(name, files)
        return self.answer({"commitUrl": f"{self.server.url}/datasets/{name}/commit/{commit}", "commitOid": commit})

    def tag(self, body: bytes, name: str, which: str) -> None:
        if self.command == "DELETE":
            if self.server.tags[name].pop(which, None) is None:
                return self.refuse(404, "RevisionNotFound")
        else:
            self.server.tags[name][json.loads(body)["tag"]] = str(self.server.commit_of(name, which))
        return self.answer({})

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        commit = self.server.commit_of(name, revision)
        data = self.server.commits[str(commit)].get(unquote(path))
        if data is None:
            return self.refuse(404, "EntryNotFound")
        if self.command == "GET" and not self.served():
            return None
        large = path.endswith((".parquet", ".mp4", ".png"))
        etag = hashlib.sha256(data).hexdigest() if large else git_hash(data)
        data = self.server.lies.get(unquote(path), data)
        return self.answer(data=data, headers={"X-Repo-Commit": str(commit), "ETag": f'"{etag}"', "Accept-Ranges": "bytes"})

    def fine(self, _: bytes) -> None:
        return self.answer({"warnings": [], "errors": []})


_REPO = "([^/]+/[^/]+)"
ROUTES = (
    (("POST",), "/api/repos/create", Handler.create), (("POST",), "/api/validate-yaml", Handler.fine),
    (("GET",), f"/api/datasets/{_REPO}", Handler.info), (("GET",), f"/api/datasets/{_REPO}/revision/([^/]+)", Handler.info),
    (("GET",), f"/api/datasets/{_REPO}/tree/([^/]+)", Handler.tree), (("GET",), f"/api/datasets/{_REPO}/refs", Handler.refs),
    (("POST",), f"/api/datasets/{_REPO}/preupload/([^/]+)", Handler.preupload), (("PUT",), "/large/(.+)", Handler.upload),
    (("POST",), f"/datasets/{_REPO}.git/info/lfs/objects/batch", Handler.batch),
    (("POST",), f"/api/datasets/{_REPO}/commit/([^/]+)", Handler.commit),
    (("POST", "DELETE"), f"/api/datasets/{_REPO}/tag/([^/]+)", Handler.tag),
    (("GET", "HEAD"), f"/datasets/{_REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
)  # fmt: skip


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.stall.set()
    server.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub") / "data"
    image = "observation.images.front"
    observation = ObservationSpec({"observation.state": TensorSpec(shape=(2,)), image: TensorSpec(shape=(32, 48, 3), dtype="uint8")})
    action = ActionSpec(kind="joint_position", low=(-1,), high=(1,), rate_hz=20.0, names=("a",))
    with demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task="push | it <b>") as writer:
        for episode in range(3):
            for at in range(6):
                picture = np.full((32, 48, 3), 40 * episode + at, np.uint8)
                writer.add_frame({"observation.state": np.ones(2, np.float32) * at, "action": np.ones(1, np.float32), image: picture})
            writer.save_episode(success=episode > 0)
    return root


@pytest.fixture
def sinew(monkeypatch, capsys, tmp_path):
    """`sinew data …` in this process: exit code, what it prints, what it tells."""
    import huggingface_hub.constants as constants

    from sinew.cli.main import main

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)

    def run(hub: Hub | None, *arguments: object, token: str | None = TOKEN, **variables: str) -> Done:
        for name in list(os.environ):
            if name.startswith("HF_"):
                monkeypatch.delenv(name)
        for name, value in environment(hub, tmp_path, token, variables).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        capsys.readouterr()
        code = main(["data", *map(str, arguments)])
        told = capsys.readouterr()
        return Done(code, told.out, told.err)

    return run


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sinew", "data", *map(str, arguments)]


def environment(hub: Hub | None, home: Path, token: str | None, variables: dict[str, str]) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    told = {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9", "HF_HUB_DISABLE_XET": "1"}
    return {**clean, **told, "OMP_NUM_THREADS": "1", **({"HF_TOKEN": token} if token else {}), **variables}


def same(a: Path, b: Path) -> None:
    one, two = demos.Dataset(a), demos.Dataset(b)
    assert one.content_hash() == two.content_hash()


def test_there_and_back_private_with_a_card_and_lerobots_tag(sinew, hub, data, tmp_path):
    done = sinew(hub, "push", data, "anna/push-it", "--license", "cc-by-4.0", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    head = hub.heads["anna/push-it"]
    assert told["commit"] == head and hub.tags["anna/push-it"] == {"v3.0": head} and hub.private["anna/push-it"] and told["private"]
    card = hub.commits[head]["README.md"].decode()
    assert "- LeRobot" in card and "license: cc-by-4.0" in card and "2/3" in card and "push \\| it &lt;b&gt;" in card
    assert not any(name.startswith("recording") for name in hub.commits[head]) and hub.messages == ["3 episodes"]
    back = sinew(hub, "pull", "anna/push-it", "--out", tmp_path / "back")
    assert back.returncode == 0 and "v3.0" in back.stdout, back.stderr
    same(data, tmp_path / "back")
    assert not (tmp_path / "back/.cache").exists() and not list(tmp_path.glob(".back*"))
    assert TOKEN not in done.stdout + done.stderr + back.stdout + back.stderr
    again = sinew(hub, "push", data, "anna/push-it", "--json")
    assert again.returncode == 0 and len(hub.uploads) == len(set(hub.uploads))  # nothing goes over twice
    taken = sinew(hub, "pull", "anna/push-it", "--out", tmp_path / "back")
    assert taken.returncode == 2 and "exists already" in taken.stderr


def test_what_is_gone_here_goes_there_and_a_public_one_is_not_filled_by_mistake(sinew, hub, data, tmp_path):
    hub.put("anna/open", {"README.md": b"mine", "data/chunk-000/file-009.parquet": b"old", "train.py": b"theirs"})
    done = sinew(hub, "push", data, "anna/open")
    assert done.returncode == 2 and "everybody can see it" in done.stderr and len(hub.commits[hub.heads["anna/open"]]) == 3
    done = sinew(hub, "push", data, "anna/open", "--public")
    assert done.returncode == 0, done.stderr
    files = hub.commits[hub.heads["anna/open"]]
    assert "data/chunk-000/file-009.parquet" not in files and files["train.py"] == b"theirs"


def test_a_transfer_that_breaks_loses_nothing_and_the_same_command_goes_on(sinew, hub, data, tmp_path):
    hub.fail_after = 3
    done = sinew(hub, "push", data, "anna/cut")
    assert done.returncode == 2 and "the same command goes on" in done.stderr and "Traceback" not in done.stderr
    assert len(hub.commits[hub.heads["anna/cut"]]) == 1 and not hub.tags["anna/cut"]  # nothing half is there
    hub.fail_after = 10**9
    assert sinew(hub, "push", data, "anna/cut").returncode == 0 and len(hub.uploads) == len(set(hub.uploads))
    hub.fail_after, hub.served = 4, 0
    done = sinew(hub, "pull", "anna/cut", "--out", tmp_path / "back")
    assert done.returncode == 2 and "the same command goes on" in done.stderr and not (tmp_path / "back").exists()
    kept = {p for p in (tmp_path / ".back.part").rglob("*") if p.suffix in (".parquet", ".mp4", ".json", ".md")}
    hub.fail_after, hub.served = 10**9, 0
    assert kept and sinew(hub, "pull", "anna/cut", "--out", tmp_path / "back").returncode == 0
    assert hub.served <= len(hub.commits[hub.heads["anna/cut"]]) - len(kept & {p for p in kept if ".cache" not in p.parts})
    same(data, tmp_path / "back")


def test_a_killed_download_goes_on(sinew, hub, data, tmp_path):
    assert sinew(hub, "push", data, "anna/kill").returncode == 0
    hub.served, hub.fail_after = 0, 10**9
    hub.stall.clear()
    process = subprocess.Popen(
        command("pull", "anna/kill", "--out", tmp_path / "back"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment(hub, tmp_path, TOKEN, {}),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / ".back.part").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.stall.set()
    assert not (tmp_path / "back").exists()
    assert sinew(hub, "pull", "anna/kill", "--out", tmp_path / "back").returncode == 0
    same(data, tmp_path / "back")


def test_only_what_a_dataset_is_made_of_is_taken(sinew, hub, data, tmp_path):
    files = {p.relative_to(data).as_posix(): p.read_bytes() for p in data.rglob("*") if p.is_file()}
    bad = [
        *("train.py", "data/loader.py", "weights.pt", "meta/x.pkl", "../outside.json", "data/../../outside.parquet", "/etc/x.json"),
        *(".git/config", "meta/.hidden.json", "data/a b/../x.parquet", "requirements.txt", "meta/x.json.exe", "a/" * 9 + "x.json"),
    ]
    hub.put("eve/traps", {**files, **dict.fromkeys(bad, b"trap")}, "v3.0")
    done = sinew(hub, "pull", "eve/traps", "--out", tmp_path / "inside/back", "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["left_out"]) == sorted(bad)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.read_bytes() == b"trap"]


def test_what_comes_otherwise_than_listed_is_refused(sinew, hub, data, tmp_path):
    files = {p.relative_to(data).as_posix(): p.read_bytes() for p in data.rglob("*") if p.is_file()}
    hub.put("eve/lies", files, "v3.0")
    name = next(n for n in files if n.endswith(".mp4"))
    hub.lies[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    done = sinew(hub, "pull", "eve/lies", "--out", tmp_path / "back", "--json")
    assert done.returncode == 2 and "came otherwise" in done.stderr and not (tmp_path / "back").exists() and not done.stdout
    hub.put("eve/nothing", {"README.md": b"hello"})
    done = sinew(hub, "pull", "eve/nothing", "--out", tmp_path / "back")
    assert done.returncode == 2 and "is no LeRobotDataset" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("pull", "anna/x", "--out", "{}/back"), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set: nothing was fetched"),
        (("push", "{data}", "anna/x"), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set: nothing was sent"),
        (("pull", "anna/x", "--out", "{}/back"), {}, "anna/x was not fetched whole"),
        (("push", "{data}", "anna/x"), {"HF_TOKEN": ""}, "set HF_TOKEN, or run hf auth login"),
        (("push", "{data}", "../x"), {}, "is no repository: give OWNER/NAME"),
        (("push", "{}/none", "anna/x"), {}, "no dataset at"),
    ],
)
def test_without_a_network_a_token_or_a_dataset_one_line_says_so(sinew, data, tmp_path, arguments, variables, said):
    filled = [str(a).format(tmp_path, data=data) for a in arguments]
    done = sinew(None, *filled, token=None if "HF_TOKEN" in variables else TOKEN, **variables)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "back").exists() and TOKEN not in done.stderr


def test_a_token_that_is_not_known_and_a_repository_that_is_not_there(sinew, hub, data, tmp_path):
    done = sinew(hub, "push", data, "anna/x", token="hf_wrong")
    assert done.returncode == 2 and "hf_wrong" not in done.stderr and "may not do that" in done.stderr
    done = sinew(hub, "pull", "anna/none", "--out", tmp_path / "back")
    assert done.returncode == 2 and "there is no such repository" in done.stderr
