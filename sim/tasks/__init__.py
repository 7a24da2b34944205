"""Tasks, one module each, which is named as the task is; importing this package registers them all."""

import importlib

from sim import TASK_NAMES
from sim.tasks.base import TASKS as TASKS
from sim.tasks.base import Phase as Phase
from sim.tasks.base import Task as Task
from sim.tasks.base import View as View

for _name in TASK_NAMES:
    importlib.import_module(f"sim.tasks.{_name}")
