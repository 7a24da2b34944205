"""What a keypoint reward file holds, and how it becomes a reward where it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.files import KINDS, Situation
from sinew.errors import DataError, InputError

if TYPE_CHECKING:
    from rewards.keypoint.reward import KeypointReward

WORLD, TOOL = "", "tool"
LARGEST_M = 5.0
MAX_WAYPOINTS = 16


@dataclass(frozen=True, kw_only=True)
class Place:
    """A point that keeps its place in some frame."""

    offset_m: tuple[float, float, float]
    """In that frame."""
    object: str = WORLD
    """Object whose frame it is, "tool" for the tool's, or nothing for the world's."""

    def __post_init__(self) -> None:
        if not all(-LARGEST_M <= v <= LARGEST_M for v in self.offset_m):
            raise DataError(f"offset_m {self.offset_m} is not within {LARGEST_M:g} m of its frame")


@KINDS.add("keypoint")
@dataclass(frozen=True, kw_only=True)
class KeypointSettings:
    """A keypoint that shall walk along a path, and where the tool has to take hold before."""

    function: Place
    """The point that does the task's work: its way is what is rewarded."""
    waypoints: tuple[Place, ...]
    """Its way from where it starts; places are taken as they are when an episode begins. The last one is the goal."""
    grasp: Place | None = None
    """Where the tool takes hold; None where nothing is grasped."""
    approach: tuple[Place, ...] = ()
    """The tool's way to there."""
    stray: float = 0.5
    """κ: what a metre beside the path costs, as a share of a metre along it."""
    weight: float = 1.0
    """The whole way is worth so much, where success is worth 1; it changes how fast is learned, and not what is best."""
    replace: bool = False
    """Whether 1 takes the place of the dense reward on the step that succeeds, as in KAGI; then what is best may change: a success whose
    potential is below -1 / weight would cost more than it earns."""
    confidence: float = 0.3
    """Below this certainty of where the points are, the potential is held."""
    follow: bool = False
    """Whether objects are followed in the pictures of two calibrated cameras once an episode has begun, and their poses not looked at."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.waypoints) <= MAX_WAYPOINTS or len(self.approach) > MAX_WAYPOINTS:
            raise DataError(f"{len(self.waypoints)} waypoints and {len(self.approach)} on the approach; 1 to {MAX_WAYPOINTS} can be used")
        if self.grasp is None and self.approach:
            raise DataError("there is an approach and nothing to grasp")
        if not 0 <= self.stray <= 10 or not 0 < self.weight <= 100 or not 0 <= self.confidence <= 1:
            raise DataError(f"stray {self.stray}, weight {self.weight} or confidence {self.confidence} is out of its range")

    def returns(self, gamma: float, max_episode_steps: int) -> tuple[float, float]:
        """Lowest and highest sum of rewards, as critics need to know: a sparse return minus the potential it began with."""
        deepest = self.weight * (1 + self.stray)
        return min(0.0, 1 - deepest) if self.replace else 0.0, 1 + deepest

    def moving(self) -> tuple[str, ...]:
        """Objects whose poses are needed after an episode has begun."""
        return tuple(dict.fromkeys(p.object for p in (self.function, self.grasp) if p is not None and p.object not in (WORLD, TOOL)))

    def objects(self) -> tuple[str, ...]:
        """Objects whose poses are needed."""
        places = (self.function, *self.waypoints, *self.approach, *([self.grasp] if self.grasp else []))
        return tuple(dict.fromkeys(p.object for p in places if p.object not in (WORLD, TOOL)))

    def build(self, situation: Situation) -> KeypointReward:
        """The reward for an environment whose observation tells where objects are.

        Raises:
            RewardUnavailable: the observation does not tell where things are.
            InputError: an object is not one of the environment's.
        """
        from rewards.keypoint.followed import FollowedPoses
        from rewards.keypoint.poses import Poses, StatePoses
        from rewards.keypoint.reward import KeypointReward

        unknown: Any = [o for o in self.objects() if situation.objects and o not in situation.objects]
        if unknown:
            raise InputError(f"the reward is about {unknown[0]!r}; the environment has {', '.join(situation.objects)}: propose one for it")
        poses: Poses = StatePoses(situation.observation, self.objects())
        if self.follow and situation.watch is None:
            situation.say("no two calibrated cameras that stand still see this: objects are where the observation says, and not followed")
        elif self.follow:
            poses = FollowedPoses(poses, situation)
        return KeypointReward(self, poses, situation.num_envs, situation.gamma)
