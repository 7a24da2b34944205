"""Tasks that are empty, missing, or the same as another but for a slip of the pen; outcomes that contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from demos import layout
from demos.checks.finding import Finding
from demos.dataset import Dataset
from demos.layout import columns

RARE_SHARE = 0.1
"""A text is taken for a slip if another one, alike but for a word, has so many more episodes."""
SHORTEST_WORD, MOST_LETTERS = 4, 2
"""Words that differ by a slip are so long at least, and differ by so many letters at most."""


def check_tasks(dataset: Dataset) -> Iterator[Finding]:
    """Everything that this file looks for."""
    index = dataset.column("task_index")[:, 0]
    outside = np.flatnonzero((index < 0) | (index >= len(dataset.tasks)))
    if outside.size:
        yield Finding("error", "data", f"names a task that {layout.TASKS} lacks", "task_index", *dataset.locate(int(outside[0])))
        return
    used: dict[str, list[int]] = {}
    for number in range(dataset.num_episodes):
        e = dataset.episode(number)
        for i in np.unique(index[e.start : e.start + e.length]).tolist():
            used.setdefault(str(dataset.tasks[i]), []).append(number)
    for text, episodes in used.items():
        if not text.strip():
            advice = f'say what is done: sinew data edit {dataset.root} --task "{episodes[0]}:WORDS"'
            yield Finding("warning", layout.TASKS, "the task is empty", "task", episodes[0], 0, None, "task", advice)
        usual = [t for t in used if len(episodes) <= max(1.0, RARE_SHARE * len(used[t])) and len(used[t]) > 2 and is_slip(text, t)]
        for number in episodes if usual else ():
            advice = f'if so: sinew data edit {dataset.root} --task "{number}:{usual[0]}"'
            yield Finding("warning", layout.TASKS, f"{text!r}: is {usual[0]!r} meant?", "task", number, None, None, "task", advice)
    yield from _outcomes(dataset)


def is_slip(text: str, usual: str) -> bool:
    """Whether a text is another one with other spaces, capitals or signs, or with a few letters of one long word changed."""
    words, others = (re.findall(r"\w+", t.casefold()) for t in (text, usual))
    if text == usual or len(words) != len(others):
        return "".join(words) == "".join(others) and text != usual
    pairs = [(a, b) for a, b in zip(words, others, strict=True) if a != b]
    if len(pairs) != 1:
        return not pairs
    one, other = pairs[0]
    plain = not re.search(r"\d", one + other) and min(len(one), len(other)) >= SHORTEST_WORD
    return plain and letters_apart(one, other) <= MOST_LETTERS - (min(len(one), len(other)) < 6)


def letters_apart(a: str, b: str) -> int:
    """Letters to insert, leave out, replace or swap with their neighbour to make one word of another.

    Source: optimal string alignment, Damerau 1964, Commun. ACM 7(3).
    """
    rows = [list(range(len(b) + 1))]
    for i in range(1, len(a) + 1):
        row = [i]
        for j in range(1, len(b) + 1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def _outcomes(dataset: Dataset) -> Iterator[Finding]:
    if layout.SUCCESS not in columns(dataset.info):
        return
    frames = dataset.column(layout.SUCCESS)[:, 0]
    for number in range(dataset.num_episodes):
        e = dataset.episode(number)
        there = bool(frames[e.start : e.start + e.length].any())
        if e.success is not None and e.success != there:
            message = f"is told to be a {'success' if e.success else 'failure'}, its frames say the other"
            advice = f"say which: sinew data edit {dataset.root} --success {number}, or --failure {number}"
            yield Finding("warning", "meta/episodes", message, layout.SUCCESS, number, None, None, "outcome", advice)
