"""Which parameters of a simulated robot explain recorded motion: least squares over batched rollouts, with what the data leave open.

Gauss-Newton with Levenberg and Marquardt's damping, Jacobians by differences of rollouts that run side by side, each joint measured in what
is left of it so far, begun at the best delay. Joints that stick and slip make minima beside the best one, so the search begins anew to
both sides along what is known least, and minima that explain the motion about as well count in the errors. What a model has counts as a
weak prior (`PRIOR`), so that directions in which nothing moves stay where they are while all others are found: of a last joint, whose
inertia, friction and gains can all be multiplied by the same number without moving otherwise, the ratios are found. Errors of estimation
are those of the posterior (Laplace's approximation, with White's sandwich and Newey and West's weights for residuals that hang together in
time, or without, whichever is wider), so that what is not known of one parameter counts in the others. What is not known within `LIMITS`
is said to be undetermined: source of the question, Gautier and Khalil 1992, Exciting Trajectories for the Identification of Base Inertial
Parameters of Robots.
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
PAYLOAD_MAX_KG, LAG_MAX_S = 10.0, 0.15
SPREAD = np.log(10.0)
"""How far what multiplies is looked for to either side, natural logarithm."""
PRIOR = {True: SPREAD / 2, False: 0.5}
"""Standard deviation of what is looked for about what the model has: it may well be off by a factor of ten, or by the whole range."""
LIMITS = {True: np.log(2.0), False: 0.1}
"""Widest half of a 95 % interval that counts as determined: a factor of two, or a tenth of the range that is looked through."""
DIFFERENCE = {True: 1e-3, False: 2.5e-4}
"""Steps of differences, in units of the search: far below standard errors, since where columns nearly cancel, the little that a long step
is off by curvature leads astray."""
ALIKE = 0.9
"""Correlation from which one parameter cannot be told from another."""
NORMAL_95, NORMAL_50 = 1.96, 0.6745
ROUNDS = 30
ENOUGH, ROUGHLY = 0.01, 0.5
"""Squared error, in units of what is left of each joint, that a round must gain to be followed by another one: a step of a tenth of the
standard errors; and of seven tenths where it only matters whether another minimum is better."""
RESTARTS = 6
"""Directions along which the search begins anew to both sides, those that are known least: twice as many searches more, rough ones."""
RESTART_SD = 4.0
"""How far off it begins anew, in standard errors along the direction."""
DAMPINGS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""That are tried side by side in every round."""


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
class Open:
    """A parameter that is not determined."""

    slot: Slot
    value: float
    """The one nearest to what the model has that goes with all others."""
    why: str


@dataclass(frozen=True)
class Identified:
    """What came of it."""

    found: tuple[Found, ...]
    """Parameters that the data determine."""
    open: tuple[Open, ...]
    """Those that they do not."""
    noise_rad: tuple[float, ...]
    """Standard deviation of what is left, of each joint."""
    fitted_rad: tuple[float, float]
    """Root mean square error of positions over what was fitted, before and after."""
    held_out_rad: tuple[float, float] | None
    """The same over windows that were not fitted."""
    bursts: float
    """Root mean square of what is left over what half of it stays below, 1 for normal noise: large where the robot was touched."""


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
            strength = float(model.actuator_forcerange[actuator, 1]) if model.actuator_forcelimited[actuator] else np.inf
            add(what, name, int(joint), float(model.dof_frictionloss[dof]), min(0.05 * stiffness, strength), False)
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
    tell: Callable[[str], None] = lambda text: None,
    restarts: int = RESTARTS,
) -> Identified:
    """Find parameters with which the plant moves as was recorded.

    Args:
        plant: the robot.
        wanted: what is looked for.
        fitted: windows that are explained.
        held_out: windows that tell how well others are explained; None for none.
        lead: steps at the beginning of each window that do not count, while what is not known of its beginning dies away; some
            multiples of `LAG_MAX_S` more where a lag is looked for.
        tell: is told how it goes.
        restarts: directions along which the search begins anew.

    Raises:
        InputError: the robot diverges as the model has it.
    """
    problem = _Problem(plant, list(wanted), fitted, lead)
    z, beside = problem.best(problem.descended(problem.begun(), tell), tell, restarts)
    error, correlation = problem.spread(z)
    error = np.hypot(error, beside)
    found, left = [], []
    for i, u in enumerate(wanted):
        value = float(u.at(z[i]))
        if NORMAL_95 * error[i] <= LIMITS[u.log]:
            found.append(Found(u.slot, value, float(error[i] * (value if u.log else u.high))))
        else:
            near = int(np.abs(correlation[i]).argmax())
            alike = abs(correlation[i, near]) > ALIKE
            why = f"cannot be told from {wanted[near].slot.label}" if alike else "these motions hardly depend on it"
            left.append(Open(u.slot, value, why))
    return Identified(
        tuple(found),
        tuple(left),
        tuple(problem.noise(z).tolist()),
        (problem.rms(problem.origin), problem.rms(z)),
        None if held_out is None else (problem.rms(problem.origin, held_out), problem.rms(z, held_out)),
        _bursts(problem.errors_of(z[None])[0]),
    )


class _Problem:
    """Residuals of positions as a function of what is looked for."""

    def __init__(self, plant: Plant, wanted: list[Unknown], given: Windows, lead: int) -> None:
        self.plant, self.wanted, self.given, self.lead = plant, wanted, given, lead
        self.slots = [u.slot for u in wanted]
        self.low, self.high = np.array([u.bounds for u in wanted]).T
        self.origin = np.array([u.origin for u in wanted])
        self.steps = np.array([DIFFERENCE[u.log] for u in wanted])
        for i, u in enumerate(wanted):
            if u.slot.what == "servo_lag":  # what is shorter than a physics step is none, and shows no slope
                self.steps[i] = plant.model.opt.timestep / u.high
        self.weight = np.array([PRIOR[u.log] for u in wanted]) ** -2.0
        """(P,) of the prior."""

    def errors_of(self, zs: np.ndarray, given: Windows | None = None) -> np.ndarray:
        """(C, W, T, J) rad, simulated less measured position of candidates (C, P)."""
        given = self.given if given is None else given
        values = np.stack([u.at(zs[:, i]) for i, u in enumerate(self.wanted)], axis=1)
        seen = self.plant.follow(self.slots, values, given)
        return (seen - given.position[None])[:, :, self.lead + 1 :]

    def costs(self, zs: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(C,) squared errors in units of `scale` (J,), and the prior's; infinite where a candidate diverges."""
        cost = ((self.errors_of(zs) / scale) ** 2).sum((1, 2, 3)) + (self.weight * (zs - self.origin) ** 2).sum(1)
        return np.where(np.isfinite(cost), cost, np.inf)

    def begun(self) -> np.ndarray:
        """The model as it is, with the best delay."""
        start = self.errors_of(self.origin[None])[0]
        if not np.isfinite(start).all():
            raise InputError("the simulated robot diverges on the recorded commands: are they of this robot, in rad?")
        candidates = [self.origin]
        for i, u in enumerate(self.wanted):
            if u.slot.what == "action_delay":
                here = np.arange(len(self.wanted)) == i
                candidates += [np.where(here, steps / u.high, self.origin) for steps in np.arange(0.5, DELAY_MAX_STEPS, 0.5)]
        return candidates[int(self.costs(np.stack(candidates), _deviation(start)).argmin())]

    def jacobian(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(W, T, J, P) and (W, T, J): derivatives of residuals, and residuals, rad."""
        steps = np.where(z + self.steps > self.high, -self.steps, self.steps)
        seen = self.errors_of(np.stack([z, *(z + np.diag(steps))]))
        slopes = (seen[1:] - seen[0]) / steps[:, None, None, None]
        return np.nan_to_num(np.moveaxis(slopes, 0, -1)), np.nan_to_num(seen[0])

    def descended(self, z: np.ndarray, tell: Callable[[str], None], enough: float = ENOUGH) -> np.ndarray:
        """The nearest minimum; `enough` is what a round must gain to be followed by another one."""
        for round_ in range(ROUNDS):
            jacobian, residual = self.jacobian(z)
            scale = _deviation(residual)
            tell(f"round {round_ + 1}: error {1e3 * np.sqrt((residual**2).mean()):.4g} mrad")
            flat, r = (jacobian / scale[:, None]).reshape(-1, len(z)), (residual / scale).ravel()
            gram, slope = flat.T @ flat + np.diag(self.weight), flat.T @ r + self.weight * (z - self.origin)
            steps = np.stack([_bounded_step(gram, slope, damping, self.low - z, self.high - z) for damping in DAMPINGS])
            costs = self.costs(np.stack([z, *(z + steps)]), scale)
            best = int(costs[1:].argmin())
            gained = costs[0] - costs[1 + best]
            if gained > 0:
                z = z + steps[best]
            if gained < enough:
                break
        return z

    def best(self, z: np.ndarray, tell: Callable[[str], None], restarts: int) -> tuple[np.ndarray, np.ndarray]:
        """(P,) the best of the minima about one, and (P,) how far off the others are: root mean square, each by how likely it is."""
        scale = self.noise(z)
        size, direction = np.linalg.eigh(self._posterior(z, scale))
        far = RESTART_SD * (np.sqrt(size) * direction).T[::-1][:restarts]
        minima = [z]
        for off in (*far, *-far):
            tell(f"begins anew, {len(minima)} of {2 * len(far)}")
            start = np.clip(z + off, self.low, self.high)
            minima.append(self.descended(start, lambda text: None, ROUGHLY))
        found = np.stack(minima)
        costs = self.costs(found, scale)
        best = self.descended(found[costs.argmin()], tell)
        likely = np.exp((costs.min() - costs) / 2)
        return best, np.sqrt(likely @ (found - best) ** 2 / likely.sum())

    def _posterior(self, z: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(P, P) covariance by Laplace's approximation."""
        flat = (self.jacobian(z)[0] / scale[:, None]).reshape(-1, len(z))
        return np.linalg.inv(flat.T @ flat + np.diag(self.weight))

    def noise(self, z: np.ndarray) -> np.ndarray:
        """(J,) standard deviation of residuals, rad."""
        return _deviation(self.errors_of(z[None])[0])

    def rms(self, z: np.ndarray, given: Windows | None = None) -> float:
        """Root mean square error of all positions, rad."""
        return float(np.sqrt((self.errors_of(z[None], given)[0] ** 2).mean()))

    def spread(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(P,) standard errors and (P, P) correlations, 0 with itself, in units of the search."""
        jacobian, residual = self.jacobian(z)
        scale = _deviation(residual)
        jacobian, residual = jacobian / scale[:, None], residual / scale
        flat, prior = jacobian.reshape(-1, len(z)), np.diag(self.weight)
        inverse = np.linalg.inv(flat.T @ flat + prior)
        scores = np.einsum("wtjp,wtj->wtp", jacobian, residual)
        meat = np.einsum("wtp,wtq->pq", scores, scores) + prior
        reach = max(1, round(0.3 * self.plant.rate_hz))
        for lag in range(1, min(reach + 1, scores.shape[1])):
            cross = np.einsum("wtp,wtq->pq", scores[:, lag:], scores[:, :-lag])
            meat += (1 - lag / (reach + 1)) * (cross + cross.T)
        error = np.sqrt(np.maximum(np.diag(inverse), np.diag(inverse @ meat @ inverse)))
        deviation = np.sqrt(np.diag(inverse))
        return error, inverse / np.outer(deviation, deviation) - np.eye(len(z))


def _deviation(errors: np.ndarray) -> np.ndarray:
    """(J,) root mean squares of errors (W, T, J)."""
    return np.sqrt((errors**2).mean((0, 1))) + 1e-9


def _bursts(errors: np.ndarray) -> float:
    """Largest ratio, over joints, of the root mean square of errors (W, T, J) to the deviation that their median tells of normal ones."""
    return float((_deviation(errors) / (np.median(np.abs(errors), axis=(0, 1)) / NORMAL_50 + 1e-9)).max())


def _bounded_step(gram: np.ndarray, slope: np.ndarray, damping: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A damped Gauss-Newton step; what it would carry beyond a bound goes to the bound, and the others are solved for anew."""
    step, inside = np.zeros(len(slope)), np.ones(len(slope), dtype=bool)
    for _ in range(len(slope)):
        damped = gram + damping * np.diag(np.diag(gram))
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
