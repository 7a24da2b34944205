"""Our tasks' ids in Gymnasium's registry, entered on `import sim`; nothing heavy is imported here."""

from __future__ import annotations

from gymnasium.envs.registration import register as enter
from gymnasium.envs.registration import registry

from sim import TASK_NAMES


def environment_id(task: str) -> str:
    """Gymnasium id of a task: "lift" → "sinew/Lift-v0"."""
    return f"sinew/{''.join(part.capitalize() for part in task.split('_'))}-v0"


def register() -> None:
    """Enter every built-in task in Gymnasium's registry; entering them again changes nothing.

    Also named as an entry point of the group `gymnasium.envs`, by which Gymnasium up to 1.3 finds the tasks of an installed package.
    """
    for task in TASK_NAMES:
        if environment_id(task) not in registry:
            enter(environment_id(task), entry_point="sim.gymnasium_envs:TaskEnv", kwargs={"task": task})
