"""A critic of noise that is fitted to the critics of actions through a frozen policy: noise aliasing.

Pairs of noise and chunk are had for nothing where the policy made a chunk anyway: in the worlds, and in the critics' target.
Only for some noise of the prior is the policy asked once more, so that no part of the box is forgotten.

Source: DSRL-NA, Wagenmaker et al. 2025, arXiv:2506.15799; sharing the chunks is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from rl.batch import DEMO, HUMAN, Batch
from rl.critic import Critic
from rl.engine import make_engine
from rl.learner import Frames, Judge, Learner

EXECUTED = "executed"
"""Frame key of the chunk that was executed, (B, stride * A)."""
OWN = "own"
"""Frame key of whether the policy made that chunk of the stored noise, (B,): 1, or 0 where somebody took over or demonstrated."""
FRESH = 0.25
"""Part of every fit that is noise of the prior, for which the policy is asked; the rest costs nothing."""


def with_executed(batch: Batch) -> Batch:
    """The batch with its action in one vector, and that vector beside the noise it came of."""
    executed = batch.action.flatten(1)
    own = ((batch.source & (HUMAN | DEMO)) == 0).to(executed)
    return replace(batch, action=executed, frames={**batch.frames, EXECUTED: executed, OWN: own})


class NoiseJudge(Judge):
    """What the actor climbs: values of noise.

    Args:
        critic: of features and noise.
        learning_rate: of its optimiser.
        decode: (frames, u) → the chunk, (B, stride * A).
    """

    def __init__(self, critic: Critic, learning_rate: float, decode: Callable[[Frames, Tensor], Tensor]) -> None:
        super().__init__(critic, make_engine(critic.net), lambda frames, u: torch.cat((frames["features"], u), -1))
        self.optimizer = torch.optim.Adam(critic.parameters(), lr=learning_rate, fused=True)
        self._decode = decode
        self._decoded: tuple[Tensor, Tensor, Tensor] | None = None

    def decode(self, frames: Frames, u: Tensor) -> Tensor:
        """The chunk of `u`, remembered for the fit that follows."""
        action = self._decode(frames, u)
        self._decoded = (frames["features"], u, action)
        return action

    def fit(self, learner: Learner, frames: Frames) -> None:
        """One step towards what the critics say of chunks whose noise is known; all noise is within the actor's box."""
        features, executed, own = frames["features"], frames[EXECUTED], frames[OWN]
        fresh = round(len(features) * FRESH)
        half = (len(features) - fresh) // 2
        rows = [(features[:half], frames["u"][:half], executed[:half])]
        weight = [own[:half], own.new_ones(len(features) - half)]
        if self._decoded is not None:
            rest = len(features) - half - fresh
            seen, u, chunk = self._decoded
            rows.append((seen[:rest], u[:rest], chunk[:rest]))
        few = {key: value[len(value) - fresh :] for key, value in frames.items()}
        normal = torch.randn(fresh, learner.actor.size, generator=learner.generator).to(features)  # type: ignore[arg-type]
        normal = normal.clamp(-learner.actor.bound, learner.actor.bound)  # type: ignore[operator]
        with torch.no_grad():
            rows.append((few["features"], normal, self._decode(few, normal)))
            seen, u, chunk = (torch.cat(parts) for parts in zip(*rows, strict=True))
            out = learner.engine.evaluate(learner.critic_input({**frames, "features": seen}, chunk))
            wanted = learner.critic.head.value(out).clone()[..., None]
        error = (self.engine.forward(torch.cat((seen, u), -1)) - wanted) * torch.cat(weight)[: len(seen), None]
        self.engine.backward(error * (2.0 / error.numel()), parameters=True, inputs=False)
        self.optimizer.step()

    def modules(self) -> dict[str, nn.Module]:
        """The critic of noise."""
        return {"noise_critic": self.critic}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Its optimiser."""
        return {"noise_optimizer": self.optimizer}
