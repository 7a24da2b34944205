"""The evaluator means what Python means: every program is also run by Python itself, world by world."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from rewards.generated.evaluate import Evaluator, Wrong
from rewards.generated.language import Refused, check

FIELDS = {"tool": 3, "cube": 3, "gripper": 1, "joint_position": 7}
WORLDS = 17
PROGRAMS = {
    "reach and lift": """
import numpy as np
REACH = 0.1
def potential(now):
    "Reach, then lift."
    d = np.linalg.norm(now.cube - now.tool)
    reach = 1 - np.tanh(d / REACH)
    height = np.clip((now.cube[2] - 0.02) / 0.2, 0, 1)
    if d < 1.2 and now.gripper < 0.05:
        grasp = 1.0
    elif d < 2:
        grasp = 0.5
    else:
        grasp = 0.0
    return 0.3 * reach + 0.2 * grasp + 0.5 * height, {"reach": reach, "grasp": grasp, "height": height}
""",
    "early return in some worlds": """
def potential(now):
    if now.gripper > 0.06:
        return 1.0
    x = now.tool[0]
    if x > 0:
        if now.tool[1] > 0:
            return x
        x = x + 10
    return -x
""",
    "loops": """
def potential(now):
    total = 0.0
    for i in range(3):
        total += (now.tool[i] - now.cube[i]) ** 2
        for j in range(1, 3):
            if now.joint_position[j] > 0:
                total = total + i * j
    return np.sqrt(total)
""",
    "guarded division": """
def potential(now):
    x = 1 / now.gripper if now.gripper > 0.04 else 0.0
    if now.tool[0] != 0 and not now.tool[1] > 5:
        x = x + 1 / now.tool[0]
    return x
""",
    "vectors": """
def potential(now):
    a = [now.tool[0], 1, now.gripper]
    b = np.cross(a, now.cube) * now.gripper
    x, y, z = b
    c = np.array([0.5, 0.0, 0.1])
    return np.dot(b, c) + sum(now.tool[:2]) + max(now.joint_position) - min(x, y, z) + len(c) + np.mean(now.cube) \
        + (now.tool[-1] // 0.3) + abs(x % 0.7)
""",
    "functions": """
def potential(now):
    g = now.gripper
    return exp(-g) + math.log(1 + g) + log1p(g) + sin(g) * cos(g) + np.arccos(clip(g, -1, 1)) + np.arctan2(g, 2) + np.sign(g - 0.04) \
        + square(g) + float(g) + np.where(g > 0.04, 1, 2) + maximum(g, 0.05) + minimum(g, 0.05) + 2 ** (g * 3) \
        + math.pi + (1 < g * 20 < 1.5) + distance(now.tool, now.cube) \
        + np.all(now.cube > -0.5) + np.any(now.cube > 1)
""",
    "what is observed before, after and done": """
def reward(before, now, action):
    nearer = norm(before.cube - before.tool) - norm(now.cube - now.tool)
    effort = sum(square(action))
    return nearer - 0.1 * effort, {"nearer": nearer, "effort": effort}
""",
}  # fmt: skip


def observed(seed):
    stream = np.random.default_rng(seed)
    read = {name: stream.normal(size=(WORLDS, width)) for name, width in FIELDS.items()}
    read["gripper"] = stream.uniform(0, 0.08, WORLDS)
    return read


def by_python(source, world, before, now, action):
    """What Python itself says of one world, with NumPy's functions under their own names."""
    names = {
        "np": np, "math": math, "norm": np.linalg.norm, "distance": lambda a, b: np.linalg.norm(a - b), "square": np.square,
        "exp": np.exp, "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "clip": np.clip, "maximum": np.maximum, "minimum": np.minimum,
    }  # fmt: skip
    exec(source, names)
    of = lambda read: SimpleNamespace(**{k: v[world] for k, v in read.items()})  # noqa: E731
    with np.errstate(all="ignore"):
        if "reward" in names:
            told = names["reward"](of(before), of(now), action[world])
        else:
            told = names["potential"](of(now))
    return [told[0], *told[1].values()] if isinstance(told, tuple) else [told]


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_worlds_at_once_are_what_python_says_of_each(name):
    source = PROGRAMS[name]
    evaluator = Evaluator(check(source, FIELDS))
    before, now, action = observed(1), observed(2), np.random.default_rng(3).normal(size=(WORLDS, 4))
    inputs = {**{("before", k): v for k, v in before.items()}, **{("now", k): v for k, v in now.items()}, ("action", ""): action}
    expected = np.array([by_python(source, world, before, now, action) for world in range(WORLDS)]).T
    np.testing.assert_allclose(evaluator(inputs, WORLDS), expected, rtol=1e-12, atol=1e-12)
    one = {key: value[4:5] for key, value in inputs.items()}
    np.testing.assert_allclose(evaluator(one, 1), expected[:, 4:5], rtol=1e-12, atol=1e-12)


def value(*lines):
    source = "def potential(now):\n" + "".join(f"    {line}\n" for line in lines)
    inputs = {("now", k): v for k, v in observed(0).items()}
    return Evaluator(check(source, FIELDS))(inputs, WORLDS)[0]


def test_what_would_be_a_bomb_in_python_is_a_number_here():
    assert (value("return 9 ** 9 ** 9") == np.inf).all()
    assert (value("return ([0, 1] * 1000000000000)[1]") == 1e12).all()
    assert np.isnan(value("return 0 / 0")).all() and (value("return 1 / 0") == np.inf).all()


def test_what_a_world_never_set_is_not_a_number():
    found = value("if now.gripper > 0.04:", "    x = 1.0", "return x")
    assert np.array_equal(np.isnan(found), observed(0)["gripper"] <= 0.04)
    found = value("if now.gripper > 0.04:", "    return 1.0")
    assert np.array_equal(np.isnan(found), observed(0)["gripper"] <= 0.04)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["return now.tool"], "line 2: .*vector"),
        (["x = now.tool + now.joint_position", "return x[0]"], "line 2"),
        (["return now.tool[3]"], "line 2.*out of bounds"),
        (["if now.tool > 0:", "    return 1.0", "return 0.0"], "line 2: .*all"),
        (["x, y = now.tool", "return x"], "line 2: 2 names"),
        (["return dot(now.tool, 1)"], "two vectors"),
        (["return now.gripper[0]"], "only vectors"),
        (["return len(now.gripper)"], "length"),
        (["return [now.tool, 1][0]"], "made of numbers"),
        (["return sum(now.tool[2:2])"], "empty"),
    ],
)
def test_what_does_not_work_out_is_said_with_its_line(lines, said):
    with pytest.raises(Wrong, match=said):
        value(*lines)


def test_annotations_of_one_word_and_habitual_imports_mean_nothing():
    source = "import numpy as np\nimport math\ndef potential(now: State) -> float:\n    pass\n    return np.pi\n"
    assert check(source, FIELDS).parts == ()


def test_a_message_names_what_there_is():
    with pytest.raises(Refused, match=r"line 2: .*now\.cub is not observed; there are tool, cube"):
        check("def potential(now):\n    return now.cub[0]\n", FIELDS)
