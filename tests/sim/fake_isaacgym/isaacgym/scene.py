"""Assets and worlds of the stand-in: what its callers described, put together for MuJoCo."""

import mujoco
import numpy as np

DOF_PROPERTIES = np.dtype(
    [("hasLimits", "?"), ("lower", "<f4"), ("upper", "<f4"), ("driveMode", "<i4"), ("velocity", "<f4"), ("effort", "<f4")]
    + [(name, "<f4") for name in ("stiffness", "damping", "friction", "armature")]
)


class Asset:
    """A file that was read; its joints lie in an order of their own, last to first."""

    def __init__(self, path, options):
        self.spec, self.options = mujoco.MjSpec.from_file(path), options
        model = self.spec.compile()
        self.bodies = [model.body(b).name for b in range(1, model.nbody)]
        counts = [int(model.body_geomnum[b]) for b in range(1, model.nbody)]
        self.ranges = [(sum(counts[:i]), count) for i, count in enumerate(counts)]
        self.shape_count = sum(counts)
        free = int(mujoco.mjtJoint.mjJNT_FREE)
        self.joints = [j for j in reversed(range(model.njnt)) if int(model.jnt_type[j]) != free]
        self.dof_names = [model.joint(j).name for j in self.joints]
        self.floats = self.spec.worldbody.first_body().first_joint() is not None
        self.limits = [(bool(model.jnt_limited[j]), *model.jnt_range[j]) for j in self.joints]

    def dof_properties(self):
        properties = np.zeros(len(self.joints), dtype=DOF_PROPERTIES)
        for row, (limited, low, high) in zip(properties, self.limits, strict=True):
            row["hasLimits"], row["lower"], row["upper"], row["effort"], row["velocity"] = limited, low, high, 1e9, 1e9
        return properties


class World:
    """One environment: a model, its state, and where each actor lies in it."""

    def __init__(self, model, actors):
        self.model, self.data, self.actors = model, mujoco.MjData(model), actors
        self.joints = [[model.joint(f"{i}/{name}") for name in actor.asset.dof_names] for i, actor in enumerate(actors)]
        self.dof_count = sum(len(joints) for joints in self.joints)
        mujoco.mj_forward(model, self.data)

    def _root(self, i):
        return self.model.body(f"{i}/{self.actors[i].asset.bodies[0]}").id

    def roots(self):
        """(A, 13): position, quaternion xyzw, velocity and angular velocity along the world's axes."""
        rows, velocity = np.zeros((len(self.actors), 13)), np.zeros(6)
        for i in range(len(self.actors)):
            body = self._root(i)
            mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_BODY, body, velocity, 0)
            rows[i, :3], rows[i, 3:7] = self.data.xpos[body], self.data.xquat[body][[1, 2, 3, 0]]
            rows[i, 7:10], rows[i, 10:13] = velocity[3:], velocity[:3]
        return rows

    def dofs(self):
        rows = [(self.data.qpos[j.qposadr[0]], self.data.qvel[j.dofadr[0]]) for joints in self.joints for j in joints]
        return np.array(rows).reshape(-1, 2)

    def set_roots(self, states, chosen):
        for i in chosen:
            if not self.actors[i].asset.floats:
                raise RuntimeError("out of order: the root of an actor that is fixed was set")
            at, dof = (int(array[self.model.body_jntadr[self._root(i)]]) for array in (self.model.jnt_qposadr, self.model.jnt_dofadr))
            row, back = states[i].astype(float), np.zeros(4)
            self.data.qpos[at : at + 7] = row[[0, 1, 2, 6, 3, 4, 5]]
            mujoco.mju_negQuat(back, self.data.qpos[at + 3 : at + 7])
            self.data.qvel[dof : dof + 3] = row[7:10]
            mujoco.mju_rotVecQuat(self.data.qvel[dof + 3 : dof + 6], row[10:13], back)

    def set_dofs(self, states, chosen):
        at = 0
        for i, joints in enumerate(self.joints):
            for joint in joints:
                if i in chosen:
                    self.data.qpos[joint.qposadr[0]], self.data.qvel[joint.dofadr[0]] = states[at]
                at += 1

    def pull(self, targets):
        names = [f"{i}/{name}" for i, actor in enumerate(self.actors) for name in actor.asset.dof_names]
        for name, target in zip(names, targets, strict=True):
            if self.model.nu and mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_ACTUATOR, name) >= 0:
                self.data.actuator(name).ctrl[0] = target


def compiled(actors, params):
    """A world of these actors."""
    spec = mujoco.MjSpec()
    spec.compiler.autolimits = True
    spec.option.timestep = params.dt / params.substeps
    spec.option.gravity = [params.gravity.x, params.gravity.y, params.gravity.z]
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone, spec.option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 20
    shapes = []
    for i, actor in enumerate(actors):
        child = actor.asset.spec.copy()
        for body in child.bodies[1:]:
            body.gravcomp = float(actor.asset.options.disable_gravity)
        geoms = [geom for body in child.bodies[1:] for geom in body.geoms]
        for k, (geom, properties) in enumerate(zip(geoms, actor.shapes, strict=True)):
            geom.name, geom.contype, geom.conaffinity = f"shape{k}", 0, 0
            shapes.append((f"{i}/shape{k}", (i, geom.parent.name), properties))
        p, r = actor.pose.p, actor.pose.r
        spec.attach(child, frame=spec.worldbody.add_frame(pos=[p.x, p.y, p.z], quat=[r.w, r.x, r.y, r.z]), prefix=f"{i}/")
        if actor.asset.options.fix_base_link == actor.asset.floats:
            raise RuntimeError("out of order: an actor floats where its base is fixed, or the other way round")
        for name, drive in zip(actor.asset.dof_names, actor.dofs, strict=True):
            _driven(spec, f"{i}/{name}", drive)
    for k, (name, body, one) in enumerate(shapes):
        for other, its, two in shapes[k + 1 :]:
            if body != its and one.filter & two.filter == 0:
                friction = 0.5 * (one.friction + two.friction)  # as PhysX combines them
                spec.add_pair(geomname1=name, geomname2=other, condim=4, friction=[friction, friction, 0.02, 1e-4, 1e-4])
    return World(spec.compile(), actors)


def _driven(spec, name, drive):
    joint, mode = spec.joint(name), int(drive["driveMode"])
    joint.damping = [float(drive["damping"]), 0.0, 0.0]
    joint.armature, joint.frictionloss = float(drive["armature"]), float(drive["friction"])
    if mode == 1:
        servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, biastype=mujoco.mjtBias.mjBIAS_AFFINE)
        servo.gainprm[0], servo.biasprm[1] = drive["stiffness"], -drive["stiffness"]
        servo.forcerange = [-float(drive["effort"]), float(drive["effort"])]
    elif mode != 2:
        raise RuntimeError(f"out of order: joint {name} has no drive")
