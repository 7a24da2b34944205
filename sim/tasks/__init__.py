"""Tasks, one file each; importing this package registers them all."""

from sim.tasks import drawer as drawer
from sim.tasks import handover as handover
from sim.tasks import lift as lift
from sim.tasks import peg as peg
from sim.tasks import push as push
from sim.tasks import reach as reach
from sim.tasks.base import TASKS as TASKS
from sim.tasks.base import Phase as Phase
from sim.tasks.base import Task as Task
from sim.tasks.base import View as View
