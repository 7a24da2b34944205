"""What a model is asked when it is to write a reward, and the code in its answer.

The parts of the question follow Text2Reward (Xie et al. 2023, arXiv:2309.11489: the environment as typed names, a person's words
about an earlier attempt) and Eureka (Ma et al. 2023, arXiv:2310.12931: what each part of the reward did in training); the words and
the language are our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.generated.language import FUNCTIONS, MAX_PARTS, MAX_ROUNDS

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\r?\n(.*?)```", re.DOTALL)
_FORMS = {
    "potential": """Write `def potential(now):`. It says how far the task is done in a state: 0 at the start, 1 when it is done, growing
steadily in between, also where nothing is grasped yet. Return the value and a dict of its parts. The learner is paid for changes of
this value, so it must depend on the state alone.""",
    "reward": """Write `def reward(before, now, action):`. It says how good one step is, from -1 to 1, by the states before and after it and
the action. It must be largest where the task is being finished and must not pay for waiting in a good place. Return the value and a
dict of its parts.""",
}
_LANGUAGE = """The code is run by an interpreter that knows a small part of Python and nothing else:
- assignments, `if`/`elif`/`else`, conditional expressions, `for i in range(3):` with constants (at most {rounds} rounds), `return`;
- numbers, + - * / ** % //, comparisons, and/or/not, [a, b, c] for a vector, v[0] and v[:2];
- these functions, bare or as np.: {functions};
- no other functions, methods, imports, strings, classes, comprehensions, keyword arguments, while loops or annotations.
The last line of every way through it is like `return value, {{"reach": reach, "lift": lift}}`, with at most {parts} parts of the same
names. A vector of n numbers is one value; norm, sum, min, max and mean make a number of it. Positions are metres in the world frame,
z up. Guard every division."""


def question(
    task_text: str, environment: str, form: str, *, earlier: str = "", feedback: Sequence[str] = (), figures: str = "", training: str = ""
) -> str:
    """What is asked.

    Args:
        task_text: what is to be done.
        environment: from `fields.described`.
        form: potential or reward.
        earlier: code to be improved.
        feedback: a person's words about it.
        figures: what it did on recorded episodes.
        training: what it did in training, from `training_figures`.
    """
    language = _LANGUAGE.format(rounds=MAX_ROUNDS, functions=", ".join(FUNCTIONS), parts=MAX_PARTS)
    blocks = [
        "You write reward functions for a robot arm that learns by trial and error.",
        f"Task: {task_text.strip()}",
        f"What is observed:\n{environment}",
        _FORMS[form],
        language,
    ]
    if earlier:
        blocks.append(f"An earlier attempt, to be improved:\n```python\n{earlier.strip()}\n```")
    if figures:
        blocks.append(f"What it did on recorded episodes:\n{figures}")
    if training:
        blocks.append(
            f"What it did in training, in equal stretches from first to last:\n{training}\n"
            "A part that hardly changes teaches nothing: rescale, rewrite or drop it. A part that grows while success does not is being "
            "exploited: change what it pays for."
        )
    blocks += [f"A person who watched says: {words.strip()}" for words in feedback]
    blocks.append("Think briefly, then give the whole code once, in one ```python block.")
    return "\n\n".join(blocks)


def corrected(asked: str, code: str, problem: str) -> str:
    """The question again, with what was wrong with the answer."""
    return f"{asked}\n\nYour answer was:\n```python\n{code.strip()}\n```\nIt cannot be used: {problem}\nGive the whole code again, mended."


def code_in(answer: str) -> str:
    """The code of an answer: its last fenced block that holds a function, or all of it where nothing is fenced."""
    blocks = [block for block in _FENCE.findall(answer) if "def " in block]
    return (blocks[-1] if blocks else answer.replace("```python", "").replace("```", "")).strip() + "\n"


def training_figures(tenths: Mapping[str, Sequence[Mapping[str, float]]], success: Sequence[float]) -> str:
    """Lines for a model: each part's least, mean and largest value in equal stretches of training, and the success rates."""

    def row(values: Sequence[float]) -> str:
        return ", ".join(f"{v:.3g}" for v in values)

    lines = [f"{name} {which}: {row([t[which] for t in found])}" for name, found in tenths.items() for which in ("max", "mean", "min")]
    return "\n".join([*lines, *([f"success rate: {row(success)}"] if success else [])])


def success_curve(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Success rates that a run's gate measured, in order."""
    measured = [line for line in lines if isinstance(line.get("k"), int) and isinstance(line.get("n"), int) and line["n"] > 0]
    return [line["k"] / line["n"] for line in measured]
