"""Isaac Gym in a process of its own, whose Python is 3.6 to 3.8: worlds are made and stepped at the word of `sim.isaac_gym`.

It is run as a script by that Python, so it imports nothing of ours, and is written in what Python 3.6 understands. The two talk in frames
over a pair of sockets: lengths, a JSON object, then the bytes of arrays; nothing that is received is ever executed.
"""
# Isaac Gym is not installed where types are checked.
# pyright: reportMissingImports=false

import json
import os
import socket
import struct
import sys
import tempfile
from collections import namedtuple
from typing import Any

import numpy as np

HEADER = struct.Struct("<II")
"""Bytes of the JSON object and of the arrays that follow it."""
Made = namedtuple("Made", "handle dofs")
"""An asset, and the names of its joints in Isaac Gym's order."""


def send(link: socket.socket, message: dict, **arrays: np.ndarray) -> None:
    """Send a JSON object and named arrays."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    head = json.dumps(dict(message, arrays=described)).encode()
    body = b"".join(array.tobytes() for array in arrays.values())
    link.sendall(HEADER.pack(len(head), len(body)) + head + body)


def receive(link: socket.socket) -> tuple:
    """(JSON object, {name: array}) that was sent; EOFError where the other side has gone."""
    head, body = HEADER.unpack(_exactly(link, HEADER.size))
    message, rest = json.loads(_exactly(link, head).decode()), _exactly(link, body)
    arrays, at = {}, 0
    for name, kind, shape in message.pop("arrays"):
        dtype = np.dtype(kind)
        if dtype.hasobject:
            raise ValueError(f"array {name} holds objects")
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(rest, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return message, arrays


def _exactly(link: socket.socket, count: int) -> bytes:
    parts, missing = [], count
    while missing:
        part = link.recv(min(missing, 1 << 20))
        if not part:
            raise EOFError("the other side has gone")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


class Worlds:
    """N worlds of the actors that a message describes."""

    def __init__(self, message: dict) -> None:
        from isaacgym import gymapi, gymtorch  # isort: skip - before torch, which Isaac Gym insists on
        import torch  # isort: skip

        self.api, self.tensors, self.torch = gymapi, gymtorch, torch
        self.num_envs, self.device = message["num_envs"], message["device"]
        self.gym = gymapi.acquire_gym()
        self.sim = self._simulation(message)
        assets = [self._asset(actor) for actor in message["actors"]]
        self.dofs = [asset.dofs for asset in assets]
        """Names of the joints of each actor, as they lie in the state."""
        numbers = self._environments(message["actors"], assets)
        self.free = [i for i, actor in enumerate(message["actors"]) if not actor["fixed"]]
        self.roots, self.jointed = numbers[:, self.free], numbers[:, [i for i, asset in enumerate(assets) if asset.dofs]]
        """(N, F) and (N, J) numbers of the actors that move about, and of those with joints."""
        if not self.gym.prepare_sim(self.sim):
            raise RuntimeError("Isaac Gym could not prepare the simulation")
        # Views that live as long as the simulation does; what they show is as old as the last refresh.
        self.root_state = gymtorch.wrap_tensor(self.gym.acquire_actor_root_state_tensor(self.sim)).view(self.num_envs, -1, 13)
        self.dof_state = gymtorch.wrap_tensor(self.gym.acquire_dof_state_tensor(self.sim)).view(self.num_envs, -1, 2)

    def _simulation(self, message: dict) -> Any:
        api, params = self.api, self.api.SimParams()
        on_gpu = self.device.startswith("cuda")
        params.dt, params.substeps = message["timestep_s"], message["solver_substeps"]
        params.up_axis, params.gravity = api.UP_AXIS_Z, api.Vec3(*message["gravity"])
        params.use_gpu_pipeline = params.physx.use_gpu = on_gpu
        for name, value in message["physx"].items():
            setattr(params.physx, name, value)
        number = int(self.device.partition(":")[2] or 0)
        sim = self.gym.create_sim(number, -1, api.SIM_PHYSX, params)
        if sim is None:
            raise RuntimeError(f"Isaac Gym could not create a simulation on {self.device}")
        return sim

    def _asset(self, actor: dict) -> Made:
        options = self.api.AssetOptions()
        options.fix_base_link, options.disable_gravity = actor["fixed"], not actor["gravity"]
        options.collapse_fixed_joints, options.use_physx_armature = False, True
        options.linear_damping = options.angular_damping = options.armature = 0.0
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "actor.xml"), "w") as file:
                file.write(actor["mjcf"])
            handle = self.gym.load_asset(self.sim, folder, "actor.xml", options)
        if handle is None:
            raise RuntimeError(f"Isaac Gym could not load actor {actor['name']}")
        names = list(self.gym.get_asset_dof_names(handle))
        wanted = [dof["name"] for dof in actor["dofs"]]
        if sorted(names) != sorted(wanted):
            raise RuntimeError(f"Isaac Gym read joints {names} of actor {actor['name']}, which has {wanted}")
        return Made(handle, names)

    def _environments(self, actors: list, assets: list) -> np.ndarray:
        """Make all worlds; (N, A) number of each actor in the simulation."""
        api, gym = self.api, self.gym
        low, high, numbers = api.Vec3(-1.0, -1.0, 0.0), api.Vec3(1.0, 1.0, 1.0), []
        for world in range(self.num_envs):
            env = gym.create_env(self.sim, low, high, max(int(self.num_envs**0.5), 1))
            row = []
            for actor, asset in zip(actors, assets):
                handle = gym.create_actor(env, asset.handle, api.Transform(), actor["name"], world, 0, 0)
                if asset.dofs:
                    gym.set_actor_dof_properties(env, handle, self._drives(env, handle, actor, asset))
                gym.set_actor_rigid_shape_properties(env, handle, self._shapes(env, handle, actor, asset))
                row.append(gym.get_actor_index(env, handle, api.DOMAIN_SIM))
            numbers.append(row)
        return np.array(numbers, dtype=np.int32)

    def _drives(self, env: Any, handle: int, actor: dict, asset: Made) -> np.ndarray:
        modes = {"position": self.api.DOF_MODE_POS, "velocity": self.api.DOF_MODE_VEL}
        properties = self.gym.get_actor_dof_properties(env, handle)
        wanted = {dof["name"]: dof for dof in actor["dofs"]}
        for i, name in enumerate(asset.dofs):
            properties["driveMode"][i] = int(modes[wanted[name]["mode"]])
            for field in ("stiffness", "damping", "armature", "friction", "effort"):
                properties[field][i] = wanted[name][field]
        return properties

    def _shapes(self, env: Any, handle: int, actor: dict, asset: Made) -> list:
        properties = self.gym.get_actor_rigid_shape_properties(env, handle)
        bodies = self.gym.get_asset_rigid_body_names(asset.handle)
        for body, part in zip(bodies, self.gym.get_asset_rigid_body_shape_indices(asset.handle)):
            wanted = actor["shapes"].get(body, [])
            if part.count != len(wanted):
                raise RuntimeError(f"Isaac Gym read {part.count} shapes of body {body}, which has {len(wanted)}")
            for i, shape in enumerate(wanted):
                properties[part.start + i].friction = shape["friction"]
                properties[part.start + i].filter = shape["filter"]
        return properties

    def state(self) -> dict:
        """(N, F, 13) roots of the actors that move about, and (N, D, 2) joints, as they are now."""
        self.gym.refresh_actor_root_state_tensor(self.sim)
        self.gym.refresh_dof_state_tensor(self.sim)
        return {"roots": self.root_state[:, self.free].cpu().numpy(), "dofs": self.dof_state.cpu().numpy()}

    def step(self, worlds: np.ndarray, roots: np.ndarray, dofs: np.ndarray, targets: np.ndarray) -> None:
        """Put some worlds where they shall be, then move all.

        Args:
            worlds: (n,) numbers of the worlds that are put somewhere.
            roots: (n, F, 13) position, quaternion xyzw, velocity and angular velocity of every actor that moves about.
            dofs: (n, D, 2) position and velocity of every joint.
            targets: (S, N, D) where the drives pull in each physics step.
        """
        if len(worlds):
            self._put(self._there(worlds).long(), roots, dofs)
        for wanted in self._there(targets):
            wanted = wanted.contiguous()  # it must outlive `simulate`: Isaac Gym keeps its address only
            self.gym.set_dof_position_target_tensor(self.sim, self.tensors.unwrap_tensor(wanted))
            self.gym.simulate(self.sim)
            if not self.device.startswith("cuda"):
                self.gym.fetch_results(self.sim, True)

    def _put(self, worlds: Any, roots: np.ndarray, dofs: np.ndarray) -> None:
        """Each setter is called once between two simulations at most: a second call would replace the first on a GPU."""
        self.root_state[worlds[:, None], self._there(np.array(self.free)).long()] = self._there(roots)
        self.dof_state[worlds] = self._there(dofs)
        free, jointed = (self._there(numbers)[worlds].flatten() for numbers in (self.roots, self.jointed))
        self.put = free, jointed  # they must outlive `simulate`, as above
        unwrap = self.tensors.unwrap_tensor
        if len(free):
            self.gym.set_actor_root_state_tensor_indexed(self.sim, unwrap(self.root_state.view(-1, 13)), unwrap(free), len(free))
        if len(jointed):
            self.gym.set_dof_state_tensor_indexed(self.sim, unwrap(self.dof_state.view(-1, 2)), unwrap(jointed), len(jointed))

    def _there(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(array.copy()).to(self.device)


def serve(link: socket.socket) -> None:
    """Make the worlds that the first message describes, then step them until the other side goes."""
    worlds = Worlds(receive(link)[0])
    send(link, {"dofs": worlds.dofs})
    while True:
        worlds.step(**receive(link)[1])
        send(link, {}, **worlds.state())


def main() -> None:
    """Serve the socket whose number is the one argument."""
    link = socket.socket(fileno=int(sys.argv[1]))
    try:
        serve(link)
    except EOFError:
        pass
    except ImportError as e:
        send(link, {"missing": " ".join(str(e).split())})
    except Exception as e:  # told on the other side, in one line
        send(link, {"failed": f"{type(e).__name__}: {' '.join(str(e).split())}"})


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose names are not for that Python
    main()
