"""Evaluates checked code for all worlds at once, straight from the syntax tree: nothing is compiled, nothing of Python is reachable.

A value is a NumPy array: of no axis for a constant, (N,) for a number per world, (N, K) for a vector per world. Where worlds go
different ways at an `if`, both ways are evaluated and each world keeps its own. What a world never set is NaN.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewards.generated.language import CONSTANTS, FORMS, Program, dotted, loop_bound

Inputs = Mapping[tuple[str, str], np.ndarray]
"""(argument, field) → (N,) or (N, K) float64."""


class Wrong(Exception):  # noqa: N818
    """The code does not work out: vectors that do not fit, an index beyond the end; the message has the line."""


class Evaluator:
    """A program, ready to be evaluated.

    Args:
        program: from `language.check`.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._variables: dict[str, np.ndarray] = {}
        self._inputs: Inputs = {}
        self._mask: np.ndarray | None = None
        self._open = np.zeros(0, bool)
        self._result = np.zeros((0, 0))

    def __call__(self, inputs: Inputs, worlds: int) -> np.ndarray:
        """Value and parts of N worlds.

        Args:
            inputs: what `program.uses` names.
            worlds: N.

        Returns:
            (1 + parts, N) float64; NaN where a world returned nothing. May hold what is not finite.

        Raises:
            Wrong: see there.
        """
        self._inputs, self._variables, self._mask = inputs, {}, None
        self._open = np.ones(worlds, bool)
        self._result = np.full((1 + len(self.program.parts), worlds), np.nan)
        with np.errstate(all="ignore"):
            self._block([*self.program.constants, *self.program.body])
        return self._result

    # ------------------------------------------------------------ statements

    def _block(self, body: list[Any]) -> None:
        for node in body:
            if not self._open.any():
                return
            try:
                getattr(self, f"_do_{type(node).__name__}")(node)
            except (ValueError, IndexError, TypeError, OverflowError) as e:
                raise Wrong(f"line {node.lineno}: {str(e)[:200]}") from None

    def _do_Pass(self, node: ast.Pass) -> None: ...

    def _do_Expr(self, node: ast.Expr) -> None: ...

    def _do_Assign(self, node: ast.Assign) -> None:
        value, target = self._value(node.value), node.targets[0]
        if isinstance(target, ast.Name):
            self._set(target.id, value)
            return
        assert isinstance(target, ast.Tuple)
        if value.ndim != 2 or value.shape[1] != len(target.elts):
            raise ValueError(f"{len(target.elts)} names are set from what is no vector of that length")
        for i, name in enumerate(target.elts):
            assert isinstance(name, ast.Name)
            self._set(name.id, value[:, i])

    def _do_AugAssign(self, node: ast.AugAssign) -> None:
        assert isinstance(node.target, ast.Name)
        old = self._variables.get(node.target.id)
        old = _NAN if old is None else old
        self._set(node.target.id, _arithmetic(node.op, old, self._value(node.value)))

    def _set(self, name: str, value: np.ndarray) -> None:
        if self._mask is not None:
            old = self._variables.get(name)
            value = _where(self._mask, value, _NAN if old is None else old)
        self._variables[name] = value

    def _do_If(self, node: ast.If) -> None:
        test, outer = self._truth(node.test), self._mask
        if test.ndim == 0:
            self._block(node.body if test else node.orelse)
            return
        for body, way in ((node.body, test), (node.orelse, ~test)):
            self._mask = way if outer is None else way & outer
            if body and (self._mask & self._open).any():
                self._block(body)
        self._mask = outer

    def _do_For(self, node: ast.For) -> None:
        assert isinstance(node.iter, ast.Call) and isinstance(node.target, ast.Name)
        for i in range(*(loop_bound(a) or 0 for a in node.iter.args)):
            self._variables[node.target.id] = np.float64(i)  # type: ignore[assignment]
            self._block(node.body)

    def _do_Return(self, node: ast.Return) -> None:
        value, parts = node.value, []
        if isinstance(value, ast.Tuple) and isinstance(value.elts[-1], ast.Dict):
            value, parts = value.elts[0], value.elts[-1].values
        assert value is not None
        here = self._open if self._mask is None else self._open & self._mask
        for row, each in zip(self._result, (value, *parts), strict=True):
            found = _number(self._value(each))
            if found.ndim > 1:
                raise ValueError("what is returned is a vector; return one number")
            np.copyto(row, found, where=here)
        self._open = self._open & ~here

    # ------------------------------------------------------------ expressions

    def _value(self, node: ast.expr) -> np.ndarray:
        return getattr(self, f"_get_{type(node).__name__}")(node)

    def _truth(self, node: ast.expr) -> np.ndarray:
        value = self._value(node)
        if value.ndim > 1:
            raise ValueError("a vector is neither true nor false; use all() or any()")
        return value if value.dtype == bool else value != 0

    def _get_Constant(self, node: ast.Constant) -> np.ndarray:
        return np.float64(node.value)  # type: ignore[arg-type, return-value]

    def _get_Name(self, node: ast.Name) -> np.ndarray:
        if node.id == "action" and "action" in FORMS[self.program.form]:
            return self._inputs["action", ""]
        found = self._variables.get(node.id)
        return found if found is not None else np.float64(CONSTANTS.get(node.id, np.nan))  # type: ignore[return-value]

    def _get_Attribute(self, node: ast.Attribute) -> np.ndarray:
        name = dotted(node)
        if name in CONSTANTS:
            return np.float64(CONSTANTS[name])  # type: ignore[return-value]
        assert isinstance(node.value, ast.Name)
        return self._inputs[node.value.id, node.attr]

    def _get_BinOp(self, node: ast.BinOp) -> np.ndarray:
        return _arithmetic(node.op, self._value(node.left), self._value(node.right))

    def _get_UnaryOp(self, node: ast.UnaryOp) -> np.ndarray:
        if isinstance(node.op, ast.Not):
            return ~self._truth(node.operand)
        value = _number(self._value(node.operand))
        return -value if isinstance(node.op, ast.USub) else value

    def _get_Compare(self, node: ast.Compare) -> np.ndarray:
        left, whole = self._value(node.left), None
        for op, other in zip(node.ops, node.comparators, strict=True):
            right = self._value(other)
            found = _COMPARISONS[type(op)](*_aligned(left, right))
            whole = found if whole is None else whole & found
            left = right
        assert whole is not None
        return whole

    def _get_BoolOp(self, node: ast.BoolOp) -> np.ndarray:
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        whole = self._truth(node.values[0])
        for each in node.values[1:]:
            whole = join(whole, self._truth(each))
        return whole

    def _get_IfExp(self, node: ast.IfExp) -> np.ndarray:
        return _where(self._truth(node.test), self._value(node.body), self._value(node.orelse))

    def _get_Tuple(self, node: ast.Tuple | ast.List) -> np.ndarray:
        values = [_number(self._value(each)) for each in node.elts]
        if any(v.ndim > 1 for v in values):
            raise ValueError("a vector is made of numbers, not of vectors")
        return np.stack([np.atleast_1d(v) for v in np.broadcast_arrays(*values)], axis=1)

    _get_List = _get_Tuple  # noqa: N815

    def _get_Subscript(self, node: ast.Subscript) -> np.ndarray:
        value = self._value(node.value)
        if value.ndim != 2:
            raise ValueError("only vectors have elements")
        if isinstance(node.slice, ast.Slice):
            part = value[:, self._index(node.slice.lower) : self._index(node.slice.upper)]
            if not part.shape[1]:
                raise ValueError("the slice is empty")
            return part
        return value[:, self._index(node.slice)]

    def _index(self, node: ast.expr | None) -> Any:
        if node is None:
            return None
        return int(self._variables[node.id]) if isinstance(node, ast.Name) else loop_bound(node)

    def _get_Call(self, node: ast.Call) -> np.ndarray:
        return _CALLS[dotted(node.func)](*(_number(self._value(each)) for each in node.args))


# ---------------------------------------------------------------- arithmetic


_NAN: Any = np.float64(np.nan)
_OPERATIONS: dict[type, Callable[..., Any]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide, ast.Pow: np.power, ast.Mod: np.mod,
    ast.FloorDiv: np.floor_divide,
}  # fmt: skip
_COMPARISONS: dict[type, Callable[..., Any]] = {
    ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal, ast.Eq: np.equal, ast.NotEq: np.not_equal,
}  # fmt: skip


def _number(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64) if value.dtype == bool else value


def _aligned(*values: np.ndarray) -> list[np.ndarray]:
    """Numbers per world get an axis where they meet vectors."""
    deep = max(v.ndim for v in values)
    return [v[:, None] if v.ndim == 1 and deep == 2 else v for v in values]


def _arithmetic(op: ast.operator, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return _OPERATIONS[type(op)](*_aligned(_number(left), _number(right)))


def _where(test: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    test, left, right = _aligned(test, left, right)
    return np.where(test, left, right)


def _reduced(over: Callable[..., Any]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: over(value, axis=1) if value.ndim == 2 else value


def _extreme(pair: Callable[..., Any], over: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Of one vector its extreme element, of several values each world's."""

    def call(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
        if not others:
            return _reduced(over)(first)
        for other in others:
            first = pair(*_aligned(first, other))
        return first

    return call


def _norm(value: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(value).sum(axis=1)) if value.ndim == 2 else np.abs(value)


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.ndim != 2 or right.ndim != 2:
        raise ValueError("dot takes two vectors")
    return (left * right).sum(axis=1)


def _cross(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != 3 or right.shape[1] != 3:
        raise ValueError("cross takes two vectors of 3 elements")
    return left[:, [1, 2, 0]] * right[:, [2, 0, 1]] - left[:, [2, 0, 1]] * right[:, [1, 2, 0]]


def _length(value: np.ndarray) -> np.ndarray:
    if value.ndim != 2:
        raise ValueError("only a vector has a length")
    return np.float64(value.shape[1])  # type: ignore[return-value]


def _single(value: np.ndarray) -> np.ndarray:
    if value.ndim == 2:
        raise ValueError("a vector is no single number")
    return value


_CALLS: dict[str, Callable[..., np.ndarray]] = {
    "abs": np.abs, "min": _extreme(np.minimum, np.min), "max": _extreme(np.maximum, np.max), "sum": _reduced(np.sum),
    "mean": _reduced(np.mean), "float": _single, "len": _length, "exp": np.exp, "log": np.log, "log1p": np.log1p, "tanh": np.tanh,
    "sqrt": np.sqrt, "square": np.square, "norm": _norm, "dot": _dot, "cross": _cross, "sin": np.sin, "cos": np.cos,
    "arccos": np.arccos, "sign": np.sign, "array": lambda value: value, "all": _reduced(np.all), "any": _reduced(np.any),
    "clip": lambda x, low, high: np.minimum(*_aligned(np.maximum(*_aligned(x, low)), high)),
    "arctan2": lambda y, x: np.arctan2(*_aligned(y, x)), "where": lambda test, a, b: _where(test != 0, a, b),
    "minimum": _extreme(np.minimum, np.min), "maximum": _extreme(np.maximum, np.max), "distance": lambda a, b: _norm(a - b),
}  # fmt: skip
