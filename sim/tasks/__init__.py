"""Tasks, one file each; importing this package registers them all."""

from sim.tasks import lift as lift
from sim.tasks.base import TASKS as TASKS
from sim.tasks.base import Phase as Phase
from sim.tasks.base import Task as Task
from sim.tasks.base import View as View
