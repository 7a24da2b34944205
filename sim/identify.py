"""Which parameters of a simulated robot explain recorded motion: least squares over batched rollouts, with what the data leave open.

Gauss-Newton with Levenberg and Marquardt's damping, Jacobians by differences of rollouts that run side by side, begun at the best of a
handful of draws. Errors of estimation follow from the Jacobian (White's sandwich with Newey and West's weights for residuals that hang
together in time, or the plain one, whichever is wider). What moves the motion too little to be told within `LIMITS` is held at what the
model has, and said to be undetermined: source of the criterion, Gautier and Khalil 1992, Exciting Trajectories for the Identification of
Base Inertial Parameters of Robots.
"""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from sim.plant import DELAY_MAX_STEPS, Plant, Windows
from sim.randomise import KINDS
from sim.sampling import Slot
from sinew.errors import InputError, unknown

PARAMETERS = ("armature", "damping", "friction_loss", "servo_stiffness", "servo_damping", "payload", "action_delay", "servo_lag")
"""What can be identified: each of every joint, the last three of the whole robot."""
PAYLOAD_MAX_KG, LAG_MAX_S = 10.0, 0.3
SPREAD = np.log(10.0)
"""How far what multiplies is looked for to either side, natural logarithm."""
LIMITS = {True: np.log(2.0), False: 0.25}
"""Widest half of a 95 % interval that counts as determined: a factor of two, or a quarter of the range that is looked through."""
DRAWS, STARTS = 24, 3
"""Points that are tried, and those of them at most that a search begins at: there are minima where it does not belong."""
DIFFERENCE = {True: 0.02, False: 0.005}
"""Steps of differences, in units of the search."""
NORMAL_95 = 1.96
ENOUGH = 1e-3
"""Share of the squared error that a round must gain to be followed by another one."""
TRIED = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Dampings that are tried side by side, as multiples of the last one that helped."""


@dataclass(frozen=True)
class Unknown:
    """A parameter that is looked for, and where."""

    slot: Slot
    start: float
    """What the model has."""
    high: float
    """Most that is looked for, where it is not a factor of the start."""
    log: bool
    """Whether it is looked for on the scale of its logarithm."""

    def at(self, z: np.ndarray) -> np.ndarray:
        """Values from units of the search."""
        return self.start * np.exp(z) if self.log else self.high * z

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the search."""
        return (-SPREAD, SPREAD) if self.log else (0.0, 1.0)

    @property
    def origin(self) -> float:
        """The start in units of the search."""
        return 0.0 if self.log else min(self.start / self.high, 1.0)


@dataclass(frozen=True)
class Found:
    """An estimate."""

    slot: Slot
    value: float
    error: float
    """Standard error, same unit."""


@dataclass(frozen=True)
class Identified:
    """What came of it."""

    found: tuple[Found, ...]
    """Parameters that the data determine."""
    open: dict[str, str]
    """{label: why} of those that they do not; they are left as the model has them."""
    noise_rad: tuple[float, ...]
    """Standard deviation of what is left, of each joint."""
    fitted_rad: tuple[float, float]
    """Root mean square error of positions over what was fitted, before and after."""
    held_out_rad: tuple[float, float] | None
    """The same over windows that were not fitted."""


def unknowns(plant: Plant, kinds: Sequence[str], payload: int = -1) -> list[Unknown]:
    """What is looked for.

    Args:
        plant: the robot.
        kinds: names of `PARAMETERS`.
        payload: number of the body that stands for it.

    Raises:
        InputError: no such parameter; near ones are offered.
    """
    model, made = plant.model, []
    data = mujoco.MjData(model)
    data.qpos[:] = model.qpos0
    mujoco.mj_forward(model, data)

    def add(what: str, name: str, index: int, start: float, high: float, log: bool) -> None:
        slot = Slot(
            what=what, name=name, part="", index=index, entry=len(made), low=0.0, high=high, usual=start, factor=False, log=log, stream=0
        )  # fmt: skip
        made.append(Unknown(slot, start, high, log))

    for what in dict.fromkeys(kinds):
        if what not in PARAMETERS:
            raise unknown("parameter to identify", what, PARAMETERS)
        if what == "payload":
            add(what, "", payload, 0.0, PAYLOAD_MAX_KG, False)
        elif what == "action_delay":
            add(what, "", -1, 0.0, DELAY_MAX_STEPS, False)
        elif what == "servo_lag":
            add(what, "", -1, 0.0, LAG_MAX_S, False)
        else:
            _add_of_joints(plant, what, data, add)
    return made


def _add_of_joints(plant: Plant, what: str, data: mujoco.MjData, add: Callable[..., None]) -> None:
    model = plant.model
    for name, joint, actuator in zip(plant.joints, plant.joint_ids, plant.actuator_ids, strict=True):
        dof = int(model.jnt_dofadr[joint])
        stiffness, inertia = float(model.actuator_gainprm[actuator, 0]), float(model.dof_M0[dof])
        if stiffness <= 0:
            raise InputError(f"joint {name!r} has no position servo, so that commands of positions tell nothing of it")
        critical = 2.0 * np.sqrt(stiffness * inertia)
        if what == "armature":
            add(what, name, int(joint), max(float(model.dof_armature[dof]), 0.01 * inertia), 0.0, True)
        elif what == "damping":
            add(what, name, int(joint), float(model.dof_damping[dof]), critical, False)
        elif what == "friction_loss":
            add(what, name, int(joint), float(model.dof_frictionloss[dof]), 0.05 * stiffness, False)
        elif what == "servo_stiffness":
            add(what, name, int(actuator), stiffness, 0.0, True)
        else:
            add(what, name, int(actuator), max(-float(model.actuator_biasprm[actuator, 2]), 0.05 * critical), 0.0, True)


def identify(
    plant: Plant,
    wanted: Sequence[Unknown],
    fitted: Windows,
    held_out: Windows | None,
    lead: int,
    *,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> Identified:
    """Find parameters with which the plant moves as was recorded.

    Args:
        plant: the robot.
        wanted: what is looked for.
        fitted: windows that are explained.
        held_out: windows that tell how well others are explained; None for none.
        lead: steps at the beginning of each window that do not count, while what is not known of its beginning dies away.
        seed: of the draws that the search begins among.
        tell: is told how it goes.

    Raises:
        InputError: the robot diverges as the model has it.
    """
    problem = _Problem(plant, list(wanted), fitted, lead)
    free, told = np.ones(len(wanted), dtype=bool), {}
    z = min((problem.descended(start, free, tell) for start in problem.begun(seed)), key=problem.rms)
    problem.scale = problem.noise(z)  # from here on each joint counts by how well it is explained
    z = problem.descended(z, free, tell)
    for _ in range(len(wanted)):
        loose = _loosest(problem, z, free)
        if not loose:
            break
        for index, why in loose:
            free[index], z[index] = False, wanted[index].origin
            told[wanted[index].slot.label] = why
        tell(f"{len(told)} parameters cannot be told from these motions; the others are looked for once more")
        z = problem.descended(z, free, tell)
        problem.scale = problem.noise(z)
    error = problem.errors(z, free)[0]
    found = tuple(
        Found(u.slot, float(u.at(z[i])), float(error[i] * (u.at(z[i]) if u.log else u.high))) for i, u in enumerate(wanted) if free[i]
    )
    start = problem.origin
    return Identified(
        found,
        told,
        tuple(problem.noise(z).tolist()),
        (problem.rms(start), problem.rms(z)),
        None if held_out is None else (problem.rms(start, held_out), problem.rms(z, held_out)),
    )


def _loosest(problem: _Problem, z: np.ndarray, free: np.ndarray) -> list[tuple[int, str]]:
    """Parameters to hold, (number, why): one after the other, always the least determined one, until all others are determined."""
    free, held = free.copy(), []
    problem.scale = problem.noise(z)
    jacobian, residual = problem.jacobian(z, free, central=True)
    while free.any():
        error, correlation = problem.spread(jacobian, residual, free)
        ratio = np.where(free, NORMAL_95 * error / problem.limits, 0.0)
        worst = int(ratio.argmax())
        if ratio[worst] <= 1.0:
            break
        near = int(np.abs(correlation[worst]).argmax())
        label = problem.wanted[near].slot.label
        apart = f"cannot be told from {label}" if abs(correlation[worst, near]) > 0.9 else "these motions hardly depend on it"
        held.append((worst, apart))
        free[worst] = False
    return held


class _Problem:
    """Residuals of positions as a function of what is looked for."""

    def __init__(self, plant: Plant, wanted: list[Unknown], given: Windows, lead: int) -> None:
        self.plant, self.wanted, self.given, self.lead = plant, wanted, given, lead
        self.slots = [u.slot for u in wanted]
        self.low, self.high = np.array([u.bounds for u in wanted]).T
        self.origin = np.array([u.origin for u in wanted])
        self.limits = np.array([LIMITS[u.log] for u in wanted])
        self.steps = np.array([DIFFERENCE[u.log] for u in wanted])
        start = self.errors_of(self.origin[None])[0]
        if not np.isfinite(start).all():
            raise InputError("the simulated robot diverges on the recorded commands: are they of this robot, in rad?")
        self.scale = np.full(start.shape[-1], np.sqrt((start**2).mean()) + 1e-9)
        """(J,) rad, what residuals are measured in: the same for all joints at first, then what is left of each."""

    def errors_of(self, zs: np.ndarray, given: Windows | None = None) -> np.ndarray:
        """(C, W, T, J) rad, simulated less measured position of candidates (C, P)."""
        given = self.given if given is None else given
        values = np.stack([u.at(zs[:, i]) for i, u in enumerate(self.wanted)], axis=1)
        seen = self.plant.follow(self.slots, values, given)
        return (seen - given.position[None])[:, :, self.lead + 1 :]

    def costs(self, zs: np.ndarray) -> np.ndarray:
        """(C,) mean of squared residuals; infinite where a candidate diverges."""
        cost = ((self.errors_of(zs) / self.scale) ** 2).mean((1, 2, 3))
        return np.where(np.isfinite(cost), cost, np.inf)

    def begun(self, seed: int) -> list[np.ndarray]:
        """The best of some draws, which are the model as it is, some delays, and points of the middle half of what is looked through."""
        draws = np.random.default_rng(seed).uniform(0.25, 0.75, (DRAWS, len(self.wanted)))
        candidates = [self.origin, *(self.low + draws * (self.high - self.low))]
        for i, u in enumerate(self.wanted):
            if u.slot.what == "action_delay":
                for steps in np.arange(0.5, DELAY_MAX_STEPS, 0.5):
                    candidates.append(np.where(np.arange(len(self.wanted)) == i, steps / u.high, self.origin))
        costs = self.costs(np.stack(candidates))
        return [candidates[i] for i in np.argsort(costs)[:STARTS] if costs[i] <= 10.0 * costs.min()]

    def jacobian(self, z: np.ndarray, free: np.ndarray, central: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(W, T, J, P) and (W, T, J): derivatives of residuals, and residuals, both in units of `scale`."""
        which = np.flatnonzero(free)
        up = np.where(z + self.steps > self.high, -self.steps, self.steps)
        down = np.where(central & (z - up >= self.low) & (z - up <= self.high), -up, 0.0)
        zs = np.stack([z] + [z + step[i] * np.eye(len(z))[i] for step in (up, down) for i in which])
        seen = self.errors_of(zs) / self.scale
        jacobian = np.zeros((*seen.shape[1:], len(z)))
        for k, i in enumerate(which):
            jacobian[..., i] = (seen[1 + k] - seen[1 + len(which) + k]) / (up[i] - down[i])
        return np.nan_to_num(jacobian), np.nan_to_num(seen[0])

    def descended(self, z: np.ndarray, free: np.ndarray, tell: Callable[[str], None], rounds: int = 40) -> np.ndarray:
        """The nearest minimum over the free ones."""
        z, damping, central = z.copy(), 1e-2, False
        for round_ in range(rounds):
            jacobian, residual = self.jacobian(z, free, central)
            tell(f"round {round_ + 1}: error {1e3 * np.sqrt(((residual * self.scale) ** 2).mean()):.4g} mrad")
            flat, r = jacobian.reshape(-1, len(z))[:, free], residual.ravel()
            gram, slope, cost = flat.T @ flat, flat.T @ r, (residual**2).mean()
            candidates = np.tile(z, (len(TRIED), 1))
            for candidate, factor in zip(candidates, TRIED, strict=True):
                candidate[free] += _bounded_step(gram, slope, damping * factor, (self.low - z)[free], (self.high - z)[free])
            errors = self.errors_of(candidates)
            costs = np.nan_to_num(((errors / self.scale) ** 2).mean((1, 2, 3)), nan=np.inf)
            best = int(costs.argmin())
            gained = 1.0 - costs[best] / cost
            if gained > 0:
                z, damping = candidates[best], max(damping * TRIED[best], 1e-8)
            elif central:
                damping *= 100.0
            if central and (damping > 1e4 or 0 < gained < ENOUGH):
                break
            central |= gained < 0.1  # one-sided differences are biased by curvature, which leads nowhere in a narrow valley
        return z

    def noise(self, z: np.ndarray) -> np.ndarray:
        """(J,) standard deviation of residuals, rad."""
        return _deviation(self.errors_of(z[None])[0])

    def rms(self, z: np.ndarray, given: Windows | None = None) -> float:
        """Root mean square error of all positions, rad."""
        return float(np.sqrt((self.errors_of(z[None], given)[0] ** 2).mean()))

    def errors(self, z: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(P,) standard errors and (P, P) correlations, in units of the search."""
        self.scale = self.noise(z)
        return self.spread(*self.jacobian(z, free, central=True), free)

    def spread(self, jacobian: np.ndarray, residual: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same from derivatives and residuals; 0 for what is held."""
        which, part = np.flatnonzero(free), jacobian[..., free]
        flat = part.reshape(-1, len(which))
        inverse = np.linalg.inv(flat.T @ flat + 1e-9 * np.eye(len(which)))
        scores = np.einsum("wtjp,wtj->wtp", part, residual)
        meat = np.einsum("wtp,wtq->pq", scores, scores)
        reach = max(1, round(0.3 * self.plant.rate_hz))
        for lag in range(1, min(reach + 1, scores.shape[1])):
            cross = np.einsum("wtp,wtq->pq", scores[:, lag:], scores[:, :-lag])
            meat += (1 - lag / (reach + 1)) * (cross + cross.T)
        robust = inverse @ meat @ inverse
        variance = np.maximum(np.diag(inverse), np.diag(robust))
        error, correlation = np.zeros(len(free)), np.zeros((len(free), len(free)))
        error[which] = np.sqrt(np.maximum(variance, 0.0))
        deviation = np.sqrt(np.diag(inverse))
        correlation[np.ix_(which, which)] = inverse / np.outer(deviation, deviation) - np.eye(len(which))
        return error, correlation


def _deviation(errors: np.ndarray) -> np.ndarray:
    """(J,) root mean squares of errors (W, T, J)."""
    return np.sqrt((errors**2).mean((0, 1))) + 1e-9


def _bounded_step(gram: np.ndarray, slope: np.ndarray, damping: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A damped Gauss-Newton step; what it would carry beyond a bound goes to the bound, and the others are solved for anew."""
    step, inside = np.zeros(len(slope)), np.ones(len(slope), dtype=bool)
    for _ in range(len(slope)):
        damped = gram + damping * np.diag(np.diag(gram) + 1e-9)
        rest = slope[inside] + damped[np.ix_(inside, ~inside)] @ step[~inside]
        step[inside] = -np.linalg.solve(damped[np.ix_(inside, inside)], rest)
        out = inside & ((step < low) | (step > high))
        if not out.any():
            break
        step[out], inside = np.clip(step, low, high)[out], inside & ~out
        if not inside.any():
            break
    return step


def unit_of(model: mujoco.MjModel, slot: Slot) -> str:
    """Unit of a value in a file of `sim.randomise`."""
    units = list(KINDS[slot.what].units)
    if slot.what == "action_delay":
        return "steps"
    if KINDS[slot.what].scope not in ("joint", "servo"):
        return units[0]
    joint = slot.index if KINDS[slot.what].scope == "joint" else int(model.actuator_trnid[slot.index, 0])
    return units[1] if int(model.jnt_type[joint]) == int(mujoco.mjtJoint.mjJNT_HINGE) else units[2]
