"""A small policy from nothing, how often it wins, its learner, and rollouts that nobody made."""

import point_mass
import torch
from torch import nn

from rl.critic import Critic
from rl.ppo_update import GaussianActor, PpoLearner, PpoUpdateConfig
from rl.rollout import Rollout
from rl.running_norm import NormalisedActor


class Tanh(nn.Module):
    """Features → action."""

    def __init__(self, seed: int = 0, width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, features):
        return torch.tanh(self.layers(features))


def make_actor(std: float = 0.5) -> GaussianActor:
    return GaussianActor(NormalisedActor(Tanh(), 4), 2, std)


def make_learner(**settings) -> PpoLearner:
    return PpoLearner(make_actor(), Critic(4, (16,), 1, generator=torch.Generator().manual_seed(0)), PpoUpdateConfig(**settings), 0.9, 0.95)


def made_up(learner: PpoLearner, T: int = 16, N: int = 8, seed: int = 0) -> Rollout:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(T, N, 4, generator=g)
    with torch.no_grad():
        u = learner.actor(features) + learner.actor.log_std.exp() * torch.randn(T, N, 2, generator=g)
    reward, over = -u.square().sum(-1), torch.rand(T, N, generator=g) < 0.2
    final = torch.randn(int(over.sum()), 4, generator=g)
    return Rollout({"features": features, "u": u}, reward, over & (reward > -1), over, {"features": features[0]}, {"features": final})


def success(actor: nn.Module, episodes: int = 100) -> float:
    """Share of fixed episodes that the actor alone wins."""
    env = point_mass.PointMass(episodes, radius_m=0.12)
    obs = env.reset(list(range(5_000_000, 5_000_000 + 1000 * episodes, 1000)))
    done, won = torch.zeros(episodes, dtype=torch.bool), torch.zeros(episodes, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        with torch.no_grad():
            action = actor(obs[point_mass.STATE])
        obs, _, terminated, truncated, _ = env.step(env.action_spec.denormalize(action))
        won |= terminated & ~done
        done |= terminated | truncated
    return float(won.float().mean())
