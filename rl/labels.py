"""Late labels: whether an episode succeeded, and when, said after the fact, and said otherwise again later.

A label is a line of a file, `{"episode": 12, "step": 31, "success": true}`, so that a person at the keyboard, a reviewer of
videos and a reward classifier all speak alike, and nothing that was said is lost with a crash. `Labels.settle` reads the new
lines and rewrites reward and termination in the replay before anything is sampled: an update never sees a success that was not
yet said next to one that was. n-step returns are made when sampling, so they follow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rl.replay import Ring
from sinew.errors import DataError, InputError
from sinew.rundir import atomic_write

LEFT_OUT = 128
"""Bit of `source`: no transition starts at this step any more, since it came after what was said to be the end."""
Assess = Callable[[int, int, bool, bool], "Sequence[float] | None"]
"""(time of an episode's first step, its steps, whether the last one succeeded, whether it terminated) → rewards of these steps; None
where nobody remembers what was observed."""


@dataclass
class Episode:
    """An episode of the replay."""

    number: int
    """Of all episodes that were begun in this run, from 0 on."""
    world: int
    begin: int
    """Time, in steps of the ring, of its first step."""
    steps: int = 0
    """Steps so far."""
    over: bool = False
    """Whether it has ended."""
    was: dict[str, Any] | None = None
    """What stood in the replay before it was labelled, to take labels back."""
    won: float | None = None
    """What success alone paid for its last step, once other rewards stand in the replay; None before."""


class Labels:
    """The episodes of a ring by number, and what was said of them.

    Args:
        ring: the replay.
        path: file of labels, one JSON object a line; anybody may append. `{"episode": E, "undo": true}` takes the last one back.
        assess: rewards of an episode that is over, where success is not all that is rewarded.
    """

    def __init__(self, ring: Ring, path: Path, assess: Assess | None = None) -> None:
        self.ring, self.path, self.assess = ring, Path(path), assess
        self.episodes: dict[int, Episode] = {}
        self.next = 0
        """Number of the next episode."""
        self.version = 0
        """Counts rewrites, for those who keep what they worked out of the replay."""
        self.refused: list[str] = []
        """Lines that could not be used, each told with its reason; whoever shows them takes them away."""
        self._seen = ring.count
        self._offset = 0
        self._said: dict[int, list[tuple[int | None, bool]]] = {}

    # ------------------------------------------------------------ saying

    def say(self, success: bool, *, episode: int | None = None, step: int | None = None) -> int:
        """Write a label; the replay is rewritten with the next `settle`.

        Args:
            success: whether the goal was reached.
            episode: which; the newest that has ended if left out.
            step: at which of its steps, from 0 on; the last one if left out.

        Returns:
            Number of the episode.

        Raises:
            InputError: there is no such episode.
        """
        number = self._number(episode)
        self._append({"episode": number, "step": step, "success": bool(success)})
        return number

    def undo(self, episode: int | None = None) -> int:
        """Take the last label of an episode back; of the episode labelled last if left out. Returns its number."""
        self._take_up()
        if episode is None:
            said = [number for number, labels in self._said.items() if labels]
            if not said:
                raise InputError("no label to take back: none was given yet")
            episode = said[-1]
        number = self._number(episode)
        self._append({"episode": number, "undo": True})
        return number

    def outcome(self, episode: int) -> bool | None:
        """What was said last of an episode; None for nothing."""
        said = self._said.get(episode)
        return said[-1][1] if said else None

    def _number(self, episode: int | None) -> int:
        self.scan()
        if episode is None:
            ended = [e.number for e in self.episodes.values() if e.over]
            if not ended:
                raise InputError("no episode has ended yet that a label could be for")
            return max(ended)
        if episode not in self.episodes:
            held = f"{min(self.episodes)} to {max(self.episodes)}" if self.episodes else "none"
            raise InputError(f"episode {episode} is not in the replay, which holds {held}")
        return episode

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.path, "ab") as f:
            f.write(json.dumps(line).encode() + b"\n")

    # ------------------------------------------------------------ the episodes of the ring

    def scan(self) -> None:
        """Take notice of the steps that were added; to be called at least once per `ring.window` steps."""
        ring, N = self.ring, self.ring.num_envs
        first = max(self._seen, ring.count - min(ring.count, ring.window))
        running = {e.world: e for e in self.episodes.values() if not e.over}
        for time in range(first, ring.count):
            low = (time % ring.length) * N
            begins = (ring.episode_step[low : low + N] == 0).tolist()
            ends = (ring.terminated[low : low + N] | ring.truncated[low : low + N]).tolist()
            for world in range(N):
                if begins[world]:
                    running[world] = self.episodes[self.next] = Episode(self.next, world, time)
                    self.next += 1
                if world in running and not running[world].over:
                    running[world].steps += 1
                    running[world].over = bool(ends[world])
        self._seen = ring.count
        # `cut` ends an episode at a step that was seen before
        for e in self.episodes.values():
            if not e.over:
                slot = self._slot(e, e.steps - 1)
                e.over = bool(ring.terminated[slot] | ring.truncated[slot])
        oldest = ring.count - min(ring.count, ring.window)
        for number in [n for n, e in self.episodes.items() if e.begin < oldest]:
            del self.episodes[number]
            self._said.pop(number, None)

    def _slot(self, episode: Episode, step: int) -> int:
        return ((episode.begin + step) % self.ring.length) * self.ring.num_envs + episode.world

    # ------------------------------------------------------------ rewriting

    def settle(self) -> int:
        """Rewrite the replay after every label that is new; what runs on waits for its end. Returns how many episodes changed."""
        self.scan()
        self._take_up()
        changed = 0
        for number in list(self._said):
            e = self.episodes.get(number)
            if e is not None and e.over:
                changed += self._rewrite(e, self._said[number][-1] if self._said[number] else None)
        for e in self.episodes.values():
            if self.assess is not None and e.over and e.won is None:
                self._pay(e, self.assess)
        self.version += bool(changed)
        return changed

    def pay_running(self) -> None:
        """Reward what was done so far of episodes that run, for a checkpoint; once they are over they are rewarded again."""
        for e in self.episodes.values():
            if self.assess is not None and not e.over and e.steps:
                self._pay(e, self.assess)
                e.won = None

    def _take_up(self) -> None:
        """Read the lines that were appended since."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1  # a line that is being written is not whole yet
        for line in data[self._offset : end].splitlines():
            if line.strip():
                self._take_line(line)
        self._offset = max(self._offset, end)

    def _take_line(self, line: bytes) -> None:
        try:
            label = json.loads(line)
            number, step, undo = label["episode"], label.get("step"), bool(label.get("undo", False))
            success = None if undo else label["success"]
            if type(number) is not int or (step is not None and type(step) is not int) or not (undo or isinstance(success, bool)):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            self.refused.append(f"{self.path}: {line[:80]!r} is no label; write {{'episode': 12, 'step': 31, 'success': true}} as JSON")
            return
        e = self.episodes.get(number)
        if e is None or (step is not None and not 0 <= step < max(e.steps, 1)):
            self.refused.append(
                f"{self.path}: episode {number} step {step} is not in the replay any more, or not yet; the label is ignored"
            )
            return
        said = self._said.pop(number, [])  # the one labelled last comes last
        if undo:
            said = said[:-1]
        else:
            said.append((step, bool(success)))
        self._said[number] = said

    def _rewrite(self, e: Episode, label: tuple[int | None, bool] | None) -> bool:
        """Make an episode what its last label says, or what it was without one. Whether anything changed."""
        last = e.steps - 1
        at, success = (last if label is None or label[0] is None else label[0]), label[1] if label else None
        wanted = None if label is None else [at, success]
        if wanted == (None if e.was is None else e.was["label"]):
            return False
        self._take_pay_back(e)
        self._put_back(e)
        if success is None:
            return True
        ring = self.ring
        slots = torch.tensor([self._slot(e, at), self._slot(e, last)], device=ring.device)
        e.was = {
            "label": [at, success],
            "reward": ring.reward[slots].tolist(),
            "terminated": ring.terminated[slots].tolist(),
            "truncated": ring.truncated[slots].tolist(),
        }
        later = torch.tensor([self._slot(e, step) for step in range(at + 1, e.steps)], dtype=torch.int64, device=ring.device)
        if success:
            ring.source[later] |= LEFT_OUT
            ring.relabel(slots[:1], reward=1.0, terminated=True, truncated=False)
        elif e.was["reward"][1] > 0:  # not reached after all: the state after the last step is one like others, and bootstraps
            ring.relabel(slots[1:], reward=0.0, terminated=False, truncated=True)
        return True

    def _pay(self, e: Episode, assess: Assess) -> None:
        """Put the rewards of an episode in place of success alone, up to where it ends by what was said last."""
        ring, last = self.ring, e.steps - 1
        at = last if e.was is None or not e.was["label"][1] else e.was["label"][0]
        end = self._slot(e, at)
        e.won = float(ring.reward[self._slot(e, last)])
        terminated = bool(ring.terminated[end])
        paid = assess(e.begin, at + 1, terminated and bool(ring.reward[end] > 0), terminated)
        if paid is not None:
            slots = [self._slot(e, step) for step in range(at + 1)]
            ring.reward[slots] = torch.tensor(list(paid), dtype=ring.reward.dtype, device=ring.device)
        elif e.was is not None:
            self.refused.append(f"episode {e.number}: what was observed in it is not remembered any more; success alone tells there")

    def _take_pay_back(self, e: Episode) -> None:
        if e.won is None:
            return
        self.ring.reward[[self._slot(e, step) for step in range(e.steps)]] = 0.0
        self.ring.reward[self._slot(e, e.steps - 1)] = e.won
        e.won = None

    def _put_back(self, e: Episode) -> None:
        if e.was is None:
            return
        ring, at = self.ring, e.was["label"][0]
        for place, step in enumerate((at, e.steps - 1)):
            slot = torch.tensor([self._slot(e, step)], device=ring.device)
            ring.relabel(slot, reward=e.was["reward"][place], terminated=e.was["terminated"][place], truncated=e.was["truncated"][place])
        later = torch.tensor([self._slot(e, step) for step in range(at + 1, e.steps)], dtype=torch.int64, device=ring.device)
        ring.source[later] &= ~LEFT_OUT & 255
        e.was = None

    # ------------------------------------------------------------ saving

    def save(self, path: Path) -> None:
        """Write what a resumed run needs beside the ring; after the ring was saved."""
        state = {
            "seen": self._seen,
            "next": self.next,
            "episodes": [[e.number, e.world, e.begin, e.steps, e.over, e.was, e.won] for e in self.episodes.values()],
        }
        atomic_write(path, json.dumps(state))

    def load(self, path: Path) -> None:
        """Go on where `save` was called, with the ring already restored; labels of episodes that were lost are dropped.

        Raises:
            DataError: the file is damaged, or of a later state than the ring.
        """
        try:
            state = json.loads(path.read_text())
            self._seen, self.next = int(state["seen"]), int(state["next"])
            self.episodes = {row[0]: Episode(*row) for row in state["episodes"]}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(f"{path} cannot be read: {e}; without it labels cannot find their episodes") from None
        if self._seen > self.ring.count:
            raise DataError(f"{path} knows {self._seen} steps, the replay holds {self.ring.count}: they are of different times")
        self.scan()
        self._drop_lost()
        self._offset, self._said = 0, {}
        self._take_up()
        self.refused.clear()  # of episodes that have left the replay since

    def _drop_lost(self) -> None:
        """Keep the lines of episodes that are older than the next one: others were lost with the interruption."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_bytes().splitlines():
            try:
                if json.loads(line)["episode"] < self.next:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        atomic_write(self.path, b"".join(line + b"\n" for line in kept))
