"""What generated code may say: a small part of Python, checked before anything of it is evaluated.

It is arithmetic on named numbers of the environment: assignments, `if`, loops over a constant range, calls of listed functions,
`return value` or `return value, {"part": value, ...}`. There are no strings, no attributes but those of what is observed, no
containers beyond vectors, nothing that could name an object of the interpreter. What is not listed is refused.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

MAX_SOURCE = 20_000
"""Characters."""
MAX_DEPTH = 40
"""Nesting of the syntax tree."""
MAX_COST = 4000
"""Steps of evaluation, loops unrolled."""
MAX_ROUNDS = 64
"""Rounds of one loop."""
MAX_PARTS = 16
"""Named parts of the result."""
MAX_ELEMENTS = 64
"""Elements of a vector."""
FORMS: Mapping[str, tuple[str, ...]] = {"potential": ("now",), "reward": ("before", "now", "action")}
"""Name of the function → its arguments, all of them."""
FUNCTIONS: Mapping[str, tuple[int, int]] = {
    "abs": (1, 1), "min": (1, 8), "max": (1, 8), "sum": (1, 1), "mean": (1, 1), "float": (1, 1), "len": (1, 1), "exp": (1, 1),
    "log": (1, 1), "log1p": (1, 1), "tanh": (1, 1), "sqrt": (1, 1), "square": (1, 1), "norm": (1, 1), "clip": (3, 3), "dot": (2, 2),
    "cross": (2, 2), "sin": (1, 1), "cos": (1, 1), "arccos": (1, 1), "arctan2": (2, 2), "sign": (1, 1), "where": (3, 3),
    "minimum": (2, 2), "maximum": (2, 2), "array": (1, 1), "distance": (2, 2), "all": (1, 1), "any": (1, 1),
}  # fmt: skip
"""Functions that may be called, with the least and the most arguments."""
CONSTANTS: Mapping[str, float] = {"pi": 3.141592653589793}
_PREFIXES = ("np.linalg.", "numpy.linalg.", "np.", "numpy.", "math.")
_IMPORTS = {("numpy", "np"), ("numpy", None), ("math", None)}
_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.Mod, ast.FloorDiv)
_UNARY = (ast.USub, ast.UAdd, ast.Not)
_COMPARE = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


class Refused(Exception):  # noqa: N818
    """The code says something that it may not; the message has the line and what is allowed."""


@dataclass(frozen=True)
class Program:
    """Code that was checked."""

    form: str
    """Name of the function: potential or reward."""
    constants: tuple[ast.Assign, ...]
    """Assignments before the function."""
    body: tuple[ast.stmt, ...]
    """Of the function."""
    uses: tuple[tuple[str, str], ...]
    """What is read: (argument, field); the field of `action` is empty."""
    parts: tuple[str, ...]
    """Names of the parts of the result."""


def check(source: str, fields: Mapping[str, int]) -> Program:
    """The program in a text.

    Args:
        source: Python.
        fields: what is observed: names with lengths.

    Raises:
        Refused: it is no Python, or says what it may not.
    """
    if len(source) > MAX_SOURCE:
        raise Refused(f"the code has {len(source)} characters; {MAX_SOURCE} are allowed")
    if not source.isascii():
        raise Refused("the code has characters beyond ASCII; write names and numbers plainly")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        raise Refused(f"line {getattr(e, 'lineno', None) or 1}: this is no Python: {getattr(e, 'msg', None) or 'too deep'}") from None
    if _depth(tree) > MAX_DEPTH:
        raise Refused(f"the code is nested more than {MAX_DEPTH} deep; use intermediate variables")
    return _Checker(fields).program(tree)


def dotted(node: ast.expr) -> str:
    """`np.linalg.norm` of the tree as "norm"; "" where it is no such name."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    name = ".".join([node.id, *reversed(names)])
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _depth(tree: ast.AST) -> int:
    """Deepest nesting, found without recursion."""
    deepest, waiting = 0, [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        if deepest > 4 * MAX_DEPTH:
            break
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]
    return deepest


class _Checker:
    """Walks a tree; whatever it has no method for is refused."""

    def __init__(self, fields: Mapping[str, int]) -> None:
        self.fields = fields
        self.arguments: tuple[str, ...] = ()
        self.known: set[str] = set()
        self.loops: set[str] = set()
        self.uses: dict[tuple[str, str], None] = {}
        self.parts: tuple[str, ...] | None = None
        self.cost = 0
        self.rounds = 1

    def program(self, tree: ast.Module) -> Program:
        """The whole text."""
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        if len(functions) != 1 or functions[0].name not in FORMS:
            raise Refused(f"give exactly one function, named {' or '.join(FORMS)}")
        function, constants = functions[0], []
        for node in tree.body:
            if isinstance(node, ast.Assign):
                self.statement(node)
                constants.append(node)
            elif not (node is function or _is_text(node) or _is_harmless_import(node)):
                raise self._no(node, "outside the function only constants are set")
        self._signature(function)
        self.block(function.body)
        if self.parts is None:
            raise self._no(function, "the function returns nothing")
        return Program(function.name, tuple(constants), tuple(function.body), tuple(self.uses), self.parts)

    def _signature(self, function: ast.FunctionDef) -> None:
        given, wanted = function.args, FORMS[function.name]
        names = tuple(a.arg for a in given.args)
        others = [*given.posonlyargs, *given.kwonlyargs, *given.defaults, *given.kw_defaults, given.vararg, given.kwarg]
        notes = [*(a.annotation for a in given.args), function.returns]
        if names != wanted or any(others) or function.decorator_list or getattr(function, "type_params", []):
            raise self._no(function, f"write def {function.name}({', '.join(wanted)}): and nothing more on that line")
        if any(note is not None and not isinstance(note, ast.Name) for note in notes):
            raise self._no(function, "leave the annotations out")
        self.arguments = wanted

    # ------------------------------------------------------------ statements

    def block(self, body: list[ast.stmt]) -> None:
        for node in body:
            self.statement(node)

    def statement(self, node: ast.stmt) -> None:
        self._spend(node)
        if isinstance(node, ast.Assign):
            self.expression(node.value)
            if len(node.targets) != 1:
                raise self._no(node, "set one variable at a time")
            self._target(node.targets[0])
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, _BINARY):
            if not isinstance(node.target, ast.Name):
                raise self._no(node, "only variables are changed")
            self._name(ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target))
            self._target(node.target)
            self.expression(node.value)
        elif isinstance(node, ast.If):
            self.expression(node.test)
            self.block(node.body)
            self.block(node.orelse)
        elif isinstance(node, ast.For):
            self._loop(node)
        elif isinstance(node, ast.Return):
            self._result(node)
        elif not (isinstance(node, ast.Pass) or _is_text(node)):
            raise self._no(node, "statements are assignments, if, for over a constant range, and return")

    def _target(self, node: ast.expr) -> None:
        names = node.elts if isinstance(node, ast.Tuple) else [node]
        for name in names:
            if not isinstance(name, ast.Name):
                raise self._no(node, "only variables are set")
            if name.id.startswith("_") or name.id in self.loops or name.id in FUNCTIONS or name.id in (*self.arguments, "np", "math"):
                raise self._no(node, f"{name.id!r} cannot be set; choose another name")
            self.known.add(name.id)

    def _loop(self, node: ast.For) -> None:
        call = node.iter
        good = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range" and not call.keywords
        if not good or node.orelse or not isinstance(node.target, ast.Name):
            raise self._no(node, "loops are `for i in range(3):`")
        assert isinstance(call, ast.Call) and isinstance(node.target, ast.Name)
        bounds = [loop_bound(a) for a in call.args]
        if not 1 <= len(bounds) <= 2 or any(b is None for b in bounds) or len(rounds := range(*bounds)) > MAX_ROUNDS:  # type: ignore[arg-type]
            raise self._no(node, f"a loop's range has one or two constants and at most {MAX_ROUNDS} rounds")
        self._target(node.target)
        self.loops.add(node.target.id)
        outer, self.rounds = self.rounds, self.rounds * max(1, len(rounds))
        self.block(node.body)
        self.rounds = outer
        self.loops.discard(node.target.id)

    def _result(self, node: ast.Return) -> None:
        value, parts = node.value, ()
        if isinstance(value, ast.Tuple) and len(value.elts) == 2 and isinstance(value.elts[1], ast.Dict):
            value, told = value.elts
            assert isinstance(told, ast.Dict)
            parts = tuple(key.value if isinstance(key, ast.Constant) else None for key in told.keys)
            if not all(isinstance(name, str) and name.isidentifier() and len(name) <= 40 for name in parts):
                raise self._no(node, "names of parts are plain words in quotes")
            if len(set(parts)) != len(parts) or len(parts) > MAX_PARTS:
                raise self._no(node, f"at most {MAX_PARTS} parts, each with a name of its own")
            for each in told.values:
                self.expression(each)
        if value is None or isinstance(value, ast.Dict):
            raise self._no(node, "return a number, or a number and a dict of its parts")
        self.expression(value)
        if self.parts not in (None, parts):
            raise self._no(node, f"every return names the same parts; before they were {', '.join(self.parts or ()) or 'none'}")
        self.parts = parts  # type: ignore[assignment]

    # ------------------------------------------------------------ expressions

    def expression(self, node: ast.expr) -> None:
        self._spend(node)
        if isinstance(node, ast.Constant):
            self._number(node)
        elif isinstance(node, ast.Name):
            self._name(node)
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, _BINARY):
            self._each(node.left, node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, _UNARY):
            self.expression(node.operand)
        elif isinstance(node, ast.Compare) and all(isinstance(op, _COMPARE) for op in node.ops):
            self._each(node.left, *node.comparators)
        elif isinstance(node, ast.BoolOp):
            self._each(*node.values)
        elif isinstance(node, ast.IfExp):
            self._each(node.test, node.body, node.orelse)
        elif isinstance(node, (ast.Tuple, ast.List)) and 1 <= len(node.elts) <= MAX_ELEMENTS:
            self._each(*node.elts)
        elif isinstance(node, ast.Subscript):
            self.expression(node.value)
            self._index(node.slice)
        elif isinstance(node, ast.Call):
            self._call(node)
        else:
            raise self._no(node, "only arithmetic on what is observed is allowed")

    def _each(self, *nodes: ast.expr) -> None:
        for node in nodes:
            self.expression(node)

    def _number(self, node: ast.Constant) -> None:
        if type(node.value) not in (int, float, bool) or not abs(node.value) <= 1e12:  # type: ignore[arg-type]
            raise self._no(node, "constants are numbers up to 1e12")

    def _name(self, node: ast.Name) -> None:
        if node.id == "action" and "action" in self.arguments:
            self.uses["action", ""] = None
        elif node.id not in self.known and node.id not in CONSTANTS:
            raise self._no(node, f"{node.id!r} is not known; observed is {self._observed()}")

    def _attribute(self, node: ast.Attribute) -> None:
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if dotted(node) in CONSTANTS:
            return
        if owner not in ("before", "now") or owner not in self.arguments:
            raise self._no(node, f"attributes are only those of {' and '.join(n for n in self.arguments if n != 'action') or 'now'}")
        if node.attr not in self.fields:
            raise self._no(node, f"{owner}.{node.attr} is not observed; there are {', '.join(self.fields)}")
        self.uses[owner, node.attr] = None

    def _index(self, node: ast.expr) -> None:
        ends = [node.lower, node.upper] if isinstance(node, ast.Slice) and node.step is None else [node]
        for end in ends:
            if end is not None and loop_bound(end) is None and not (isinstance(end, ast.Name) and end.id in self.loops):
                raise self._no(node, "an index is a constant, a slice of constants, or the variable of a loop")

    def _call(self, node: ast.Call) -> None:
        name = dotted(node.func)
        if name not in FUNCTIONS or (isinstance(node.func, ast.Name) and node.func.id in self.known):
            raise self._no(node, f"{name or 'this'} cannot be called; functions are {', '.join(FUNCTIONS)}")
        least, most = FUNCTIONS[name]
        if node.keywords or not least <= len(node.args) <= most or any(isinstance(a, ast.Starred) for a in node.args):
            raise self._no(node, f"{name} takes {least if least == most else f'{least} to {most}'} plain arguments")
        self._each(*node.args)

    # ------------------------------------------------------------ budget and words

    def _spend(self, node: ast.AST) -> None:
        self.cost += self.rounds
        if self.cost > MAX_COST:
            raise self._no(node, f"the code takes more than {MAX_COST} steps to evaluate; make loops shorter")

    def _observed(self) -> str:
        return ", ".join(f"now.{name}" for name in self.fields)

    def _no(self, node: ast.AST, allowed: str) -> Refused:
        return Refused(f"line {getattr(node, 'lineno', 1)}: {type(node).__name__} is refused: {allowed}")


def loop_bound(node: ast.expr) -> int | None:
    """A constant integer between -1000 and 1000; None for anything else."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value <= 1000:
        return sign * node.value
    return None


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_harmless_import(node: ast.stmt) -> bool:
    """`import numpy as np` and `import math`, which are out of habit and import nothing here."""
    return isinstance(node, ast.Import) and all((a.name, a.asname) in _IMPORTS for a in node.names)
