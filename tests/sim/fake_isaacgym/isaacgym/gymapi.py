"""What `isaacgym.gymapi` offers, as far as worlds of ours use it; whoever calls it out of order is told."""

import os
from dataclasses import dataclass, field

import mujoco
import numpy as np

from isaacgym.scene import DOF_PROPERTIES, Asset, compiled

SIM_PHYSX, UP_AXIS_Z, DOMAIN_SIM = "SIM_PHYSX", "UP_AXIS_Z", "DOMAIN_SIM"
DOF_MODE_NONE, DOF_MODE_POS, DOF_MODE_VEL, DOF_MODE_EFFORT = range(4)


def need(condition, rule):
    """The rules of the interface."""
    if not condition:
        raise RuntimeError(f"out of order: {rule}")


@dataclass
class Vec3:
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0


@dataclass
class Quat:
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    w: float = 1.0


@dataclass
class Transform:
    p: Vec3 = field(default_factory=Vec3)
    r: Quat = field(default_factory=Quat)


class Strict:
    """Only fields that exist can be set, and with their kind of value."""

    def __setattr__(self, name, value):
        need(hasattr(type(self), name), f"{type(self).__name__} has no {name}")
        kind = type(getattr(type(self), name))
        need(kind in (object, type(None)) or isinstance(value, kind), f"{type(self).__name__}.{name} is a {kind.__name__}")
        super().__setattr__(name, value)


class PhysXParams(Strict):
    solver_type, num_position_iterations, num_velocity_iterations, num_threads, num_subscenes = 1, 4, 1, 4, 0
    contact_offset, rest_offset, bounce_threshold_velocity, max_depenetration_velocity = 0.02, 0.0, 0.2, 100.0
    use_gpu = False


class SimParams(Strict):
    dt, substeps, up_axis, gravity, use_gpu_pipeline, physx = 0.01, 2, "UP_AXIS_Y", None, False, None

    def __init__(self):
        self.gravity, self.physx = Vec3(0.0, -9.8, 0.0), PhysXParams()


class AssetOptions(Strict):
    fix_base_link, disable_gravity, collapse_fixed_joints, use_physx_armature = False, False, False, True
    linear_damping, angular_damping, armature, density, thickness = 0.0, 0.5, 0.0, 1000.0, 0.02


class RigidShapeProperties(Strict):
    friction, rolling_friction, torsion_friction, restitution, compliance = 1.0, 0.0, 0.0, 0.0, 0.0
    filter, thickness, contact_offset, rest_offset = 0, 0.0, 0.0, 0.0


@dataclass(frozen=True)
class IndexRange:
    start: int
    count: int


@dataclass(frozen=True)
class Tensor:
    """A buffer; opaque to callers."""

    buffer: np.ndarray


@dataclass
class Actor:
    asset: Asset
    pose: Transform
    index: int
    dofs: np.ndarray
    shapes: list


@dataclass
class Sim:
    params: SimParams
    envs: list = field(default_factory=list)
    actors: int = 0
    worlds: list = field(default_factory=list)
    roots: np.ndarray | None = None
    dofs: np.ndarray | None = None
    staged: dict = field(default_factory=dict)
    fetched: bool = True

    @property
    def prepared(self):
        return bool(self.worlds)


class Gym:
    def create_sim(self, compute_device=0, graphics_device=0, type="SIM_FLEX", params=None):
        need(type == SIM_PHYSX and isinstance(params, SimParams), "create_sim(int, int, SIM_PHYSX, SimParams)")
        need(params.up_axis == UP_AXIS_Z, "MJCF files are upright where the z axis points up")
        need(params.use_gpu_pipeline == params.physx.use_gpu, "the pipeline on the GPU needs physics there")
        return Sim(params)

    def load_asset(self, sim, rootpath, filename, options=None):
        need(not sim.prepared, "load_asset after prepare_sim")
        return Asset(os.path.join(rootpath, filename), options or AssetOptions())

    def get_asset_dof_names(self, asset):
        return list(asset.dof_names)

    def get_asset_rigid_body_names(self, asset):
        return list(asset.bodies)

    def get_asset_rigid_body_shape_indices(self, asset):
        return [IndexRange(start, count) for start, count in asset.ranges]

    def create_env(self, sim, lower, upper, per_row):
        need(not sim.prepared and isinstance(lower, Vec3) and isinstance(upper, Vec3) and per_row > 0, "create_env(sim, Vec3, Vec3, int)")
        sim.envs.append((sim, []))
        return sim.envs[-1]

    def create_actor(self, env, asset, pose, name=None, group=-1, filter=-1, segmentationId=0):
        sim, actors = env
        need(env is sim.envs[-1], "actors of an environment are created before the next environment")
        need(group == len(sim.envs) - 1, "environments must not collide: each is a group of its own")
        shapes = [RigidShapeProperties() for _ in range(asset.shape_count)]
        actors.append(Actor(asset, pose, sim.actors, asset.dof_properties(), shapes))
        sim.actors += 1
        return len(actors) - 1

    def get_actor_index(self, env, handle, domain):
        need(domain == DOMAIN_SIM, "tensors are indexed in DOMAIN_SIM")
        return env[1][handle].index

    def get_actor_dof_properties(self, env, handle):
        return env[1][handle].dofs.copy()

    def set_actor_dof_properties(self, env, handle, properties):
        need(properties.dtype == DOF_PROPERTIES and not env[0].prepared, "set_actor_dof_properties takes the array of get_")
        env[1][handle].dofs = properties.copy()
        return True

    def get_actor_rigid_shape_properties(self, env, handle):
        return env[1][handle].shapes

    def set_actor_rigid_shape_properties(self, env, handle, properties):
        need(len(properties) == len(env[1][handle].shapes), "set_actor_rigid_shape_properties takes all shapes")
        env[1][handle].shapes = properties
        return True

    def prepare_sim(self, sim):
        need(sim.envs and not sim.prepared, "prepare_sim once, after the environments are made")
        for _, actors in sim.envs:
            sim.worlds.append(compiled(actors, sim.params))
        sim.roots = np.full((sim.actors, 13), np.nan, dtype=np.float32)
        sim.dofs = np.full((sum(world.dof_count for world in sim.worlds), 2), np.nan, dtype=np.float32)
        return True

    def acquire_actor_root_state_tensor(self, sim):
        need(sim.prepared, "acquire_actor_root_state_tensor before prepare_sim")
        return Tensor(sim.roots)

    def acquire_dof_state_tensor(self, sim):
        need(sim.prepared, "acquire_dof_state_tensor before prepare_sim")
        return Tensor(sim.dofs)

    def refresh_actor_root_state_tensor(self, sim):
        need(sim.fetched, "fetch_results before refresh_ where the pipeline is on the CPU")
        sim.roots[:] = np.concatenate([world.roots() for world in sim.worlds])
        return True

    def refresh_dof_state_tensor(self, sim):
        need(sim.fetched, "fetch_results before refresh_ where the pipeline is on the CPU")
        sim.dofs[:] = np.concatenate([world.dofs() for world in sim.worlds])
        return True

    def set_actor_root_state_tensor_indexed(self, sim, states, indices, count):
        return self._stage(sim, "roots", states, indices, count, (sim.actors, 13))

    def set_dof_state_tensor_indexed(self, sim, states, indices, count):
        return self._stage(sim, "dofs", states, indices, count, sim.dofs.shape)

    def _stage(self, sim, what, states, indices, count, shape):
        need(what not in sim.staged, f"{what} are set once between two simulations; a second call replaces the first")
        need(states.buffer.shape == shape and states.buffer.dtype == np.float32, f"the full state {shape} is given")
        need(indices.buffer.dtype == np.int32 and indices.buffer.shape == (count,), "indices are int32, as many as said")
        sim.staged[what] = (states.buffer, indices.buffer)
        return True

    def set_dof_position_target_tensor(self, sim, targets):
        need(targets.buffer.size == len(sim.dofs) and targets.buffer.dtype == np.float32, "a target of every joint in the simulation")
        sim.staged["targets"] = (targets.buffer.reshape(-1), None)
        return True

    def simulate(self, sim):
        need(sim.prepared and sim.fetched, "simulate after prepare_sim, and fetch_results between")
        at_actor = at_dof = 0
        targets = sim.staged.pop("targets", (None, None))[0]
        for (_, actors), world in zip(sim.envs, sim.worlds, strict=True):
            for what, begin, size in (("roots", at_actor, len(actors)), ("dofs", at_dof, world.dof_count)):
                if what in sim.staged:
                    states, indices = sim.staged[what]
                    chosen = [i for i, actor in enumerate(actors) if actor.index in indices]
                    getattr(world, f"set_{what}")(states[begin : begin + size], chosen)
            if targets is not None:
                world.pull(targets[at_dof : at_dof + world.dof_count])
            mujoco.mj_step(world.model, world.data, sim.params.substeps)
            at_actor, at_dof = at_actor + len(actors), at_dof + world.dof_count
        sim.staged.clear()
        sim.fetched = False

    def fetch_results(self, sim, wait):
        need(wait is True, "fetch_results(sim, True)")
        sim.fetched = True


def acquire_gym(*_):
    return Gym()
