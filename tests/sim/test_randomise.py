"""The file of ranges, what is drawn from it, and what becomes of a model: consistent, repeatable, refused in one line."""

import json
from pathlib import Path

import mujoco
import numpy as np
import pytest

import sim
from sim.model_fields import ModelFields
from sim.randomise import KINDS, Parameter, Randomisation, load_randomisation
from sim.randomised import randomiser_of
from sim.sampling import Sampler
from sinew.errors import InputError

LIFT = "lift"


def file(folder: Path, *parameters: dict, **more: object) -> Path:
    path = folder / "ranges.json"
    path.write_text(json.dumps({"parameters": list(parameters), **more}))
    return path


def made(*parameters: Parameter, task: str = LIFT) -> tuple[Sampler, ModelFields]:
    interface, randomiser = randomiser_of(sim.make_interface(task), Randomisation(parameters=parameters))
    assert randomiser is not None
    return randomiser.sampler, ModelFields(interface.scene.model, randomiser.sampler.slots)


def test_numbers_stay_in_their_ranges_in_the_unit_that_is_kept(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        {"what": "mass", "of": ["cube"], "range": [100, 400], "unit": "g"},
        {"what": "action_delay", "range": [25, 100], "unit": "ms"},
        {"what": "servo_stiffness", "of": ["joint1"], "range": [0.1, 10], "unit": "factor", "spacing": "log"},
        {"what": "armature", "of": ["joint2"], "centre": 0.1, "width": 0.02, "unit": "kg m^2"},
        {"what": "payload", "centre": 0.2, "width": 0.5, "unit": "kg"},
    )
    _, randomiser = randomiser_of(sim.make_interface(LIFT), load_randomisation(path))
    assert randomiser is not None
    assert randomiser.names == ("mass.cube", "action_delay", "servo_stiffness.joint1", "armature.joint2", "payload.tool")
    values = randomiser.draw(range(4000)).values
    low, high = values.min(0), values.max(0)
    np.testing.assert_allclose(low, [0.1, 0.5, 0.1, 0.08, 0.0], atol=2e-3)  # 25 ms at 20 Hz; a payload cannot be below 0
    np.testing.assert_allclose(high, [0.4, 2.0, 10.0, 0.12, 0.7], atol=2e-2)
    assert abs(np.median(values[:, 2]) - 1.0) < 0.1, "the middle of a logarithmic range is its geometric one"
    correlation = np.corrcoef(np.log(values.T + 1e-9)) - np.eye(values.shape[1])
    assert np.abs(correlation).max() < 0.08, "draws do not depend on each other"


def test_a_number_depends_on_its_seed_and_on_what_it_is_for_alone() -> None:
    mass = Parameter(what="mass", of=("cube",), range=(0.5, 2.0), unit="factor")
    damping = Parameter(what="damping", range=(0.5, 2.0), unit="factor")
    alone, among = made(mass)[0], made(damping, mass)[0]
    many = among.draw(range(100))
    assert np.array_equal(alone.draw(range(100))[:, 0], many[:, among.names.index("mass.cube")])
    assert np.array_equal(alone.draw([77]), alone.draw(range(100))[77:78]), "nor on how many are drawn"
    together = made(Parameter(what="damping", range=(0.5, 2.0), unit="factor", together=True))[0].draw(range(5))
    assert (together == together[:, :1]).all() and not (many[:, 0] == many[:, 1]).any()


def test_what_follows_from_a_mass_follows() -> None:
    sampler, fields = made(Parameter(what="mass", of=("cube",), range=(2.0, 2.0), unit="factor"))
    base, model = fields.model, fields.write(sampler.draw([0])[0])
    cube = base.body("cube").id
    assert model.body_mass[cube] == 2 * base.body_mass[cube] and np.array_equal(model.body_inertia[cube], 2 * base.body_inertia[cube])
    np.testing.assert_allclose(model.body_subtreemass[0], base.body_subtreemass[0] + base.body_mass[cube])
    np.testing.assert_allclose(model.body_invweight0[cube], base.body_invweight0[cube] / 2)
    again = fields.write(np.array([1.0]))
    assert all(np.array_equal(getattr(again, name), getattr(base, name)) for name in fields.names), "nothing is left of the last episode"


def test_every_kind_reaches_the_model_or_the_pictures_as_it_says() -> None:
    sampler, fields = made(
        Parameter(what="friction", of=("cube",), range=(0.5, 0.5), unit="factor"),
        Parameter(what="friction", of=("table",), range=(0.9, 0.9), unit="1"),
        Parameter(what="damping", of=("joint3",), range=(3.0, 3.0), unit="N m s/rad"),
        Parameter(what="friction_loss", of=("joint4",), range=(0.7, 0.7), unit="N m"),
        Parameter(what="servo_stiffness", of=("joint1",), range=(0.5, 0.5), unit="factor"),
        Parameter(what="servo_damping", of=("joint1",), range=(10.0, 10.0), unit="N m s/rad"),
        Parameter(what="camera_position", of=("front",), range=(2.0, 2.0), unit="cm"),
        Parameter(what="camera_rotation", of=("front",), range=(0.0, 0.0), unit="deg"),
        Parameter(what="field_of_view", of=("front",), range=(50.0, 50.0), unit="deg"),
        Parameter(what="light_brightness", range=(2.0, 2.0), unit="factor"),
        Parameter(what="light_position", range=(0.5, 0.5), unit="m"),
        Parameter(what="colour", of=("cube",), range=(-1.0, -1.0), unit="1"),
        Parameter(what="texture", range=(3.0, 3.9), unit="number"),
        Parameter(what="payload", range=(500.0, 500.0), unit="g"),
    )
    base, model = fields.model, fields.write(sampler.draw([1])[0])
    cube, table = base.body("cube").geomadr[0], base.geom("table").id
    np.testing.assert_allclose(model.geom_friction[cube], base.geom_friction[cube] * 0.5)
    assert model.geom_friction[table, 0] == 0.9 and model.geom_friction[table, 1] == base.geom_friction[table, 1]
    assert model.dof_damping[2] == 3.0 and model.dof_frictionloss[3] == 0.7
    assert (model.actuator_gainprm[0, 0], *model.actuator_biasprm[0, 1:3]) == (550.0, -550.0, -10.0)
    np.testing.assert_allclose(model.cam_pos[base.camera("front").id], base.cam_pos[base.camera("front").id] + 0.02)
    np.testing.assert_allclose(model.cam_fovy[base.camera("front").id], 50.0)
    np.testing.assert_allclose(model.light_diffuse, 2 * base.light_diffuse)
    np.testing.assert_allclose(model.light_pos, base.light_pos + 0.5)
    assert model.geom_rgba[cube, :3].tolist() == [0, 0, 0] and model.material(int(model.geom_matid[table])).name == "pattern 3"
    assert model.body("payload tool").mass[0] == 0.5
    assert set(fields.names) >= {"body_mass", "dof_invweight0", "geom_matid"}


def test_a_payload_pulls_at_the_tool_with_its_weight() -> None:
    sampler, fields = made(Parameter(what="payload", range=(0.8, 0.8), unit="kg"))
    base, model = fields.model, fields.write(sampler.draw([0])[0])
    data, without = mujoco.MjData(model), mujoco.MjData(base)
    for one, m in ((data, model), (without, base)):
        one.qpos[:7] = (0.1, 0.6, 0.0, 1.4, 0.0, 0.8, 0.0)
        mujoco.mj_forward(m, one)
    jacobian = np.zeros((3, base.nv))
    mujoco.mj_jacSite(base, without, jacobian, None, base.site("tool").id)
    weight = jacobian.T @ np.array([0, 0, 0.8 * 9.81])
    np.testing.assert_allclose((data.qfrc_bias - without.qfrc_bias)[:7], weight[:7], atol=1e-9)


def test_patterns_are_drawn_by_whole_numbers_and_both_ends_as_often_as_others() -> None:
    sampler, _ = made(Parameter(what="texture", range=(21, 24), unit="number"))
    counts = dict(zip(*np.unique(sampler.draw(range(4000)), return_counts=True), strict=True))
    assert list(counts) == [21, 22, 23, 24] and all(900 < count < 1100 for count in counts.values())
    wide, _ = made(Parameter(what="texture", range=(0, 24), unit="number"))
    grown = wide.draw(range(1000), np.array([[0.0, 0.1]]))
    assert sorted(set(grown.ravel())) == [0, 1, 2], "ranges that have grown by a tenth"
    by_factors, _ = made(Parameter(what="texture", range=(1, 8), unit="number", spacing="log"))
    assert sorted(set(by_factors.draw(range(1000), np.ones((1, 2))).ravel())) == list(range(1, 9)), "both ends, when they are grown"


def test_a_dressed_scene_moves_as_the_bare_one() -> None:
    draw = (Parameter(what="texture", range=(0, 9), unit="number"), Parameter(what="payload", range=(0, 0), unit="kg"))
    bare, dressed = sim.make_vec(LIFT, 2), sim.make_vec(LIFT, 2, randomisation=Randomisation(parameters=draw))
    expert = sim.make_expert(LIFT, num_envs=2)
    seen, other = bare.reset([4, 5]), dressed.reset([4, 5])
    expert.reset(seeds=[4, 5])
    for _ in range(20):
        action = expert.act(seen)
        seen, other = bare.step(action)[0], dressed.step(action)[0]
    assert all(np.allclose(seen[key], other[key], atol=1e-6) for key in seen)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"what": "masss", "range": [1, 2], "unit": "kg"}, "unknown parameter 'masss': did you mean 'mass'"),
        ({"what": "mass", "range": [2, 1], "unit": "kg"}, "reversed"),
        ({"what": "mass", "range": [1, 2]}, "mass has no unit; it takes 'factor', 'kg', 'g'"),
        ({"what": "mass", "range": [1, 2], "unit": "lb"}, "mass has unit 'lb'; it takes 'factor', 'kg', 'g'"),
        ({"what": "mass", "range": [-1, 2], "unit": "kg"}, "out of what makes sense"),
        ({"what": "mass", "unit": "kg"}, "give either a range"),
        ({"what": "mass", "range": [1, 2], "centre": 1, "width": 1, "unit": "kg"}, "give either a range"),
        ({"what": "mass", "range": [1, 2, 3], "unit": "kg"}, "expected 2 values"),
        ({"what": "mass", "range": [0.0, float("inf")], "unit": "kg"}, "finite"),
        ({"what": "image_noise", "range": [0, 2], "unit": "levels", "spacing": "log"}, "logarithm"),
        ({"what": "action_delay", "of": ["joint1"], "range": [0, 2], "unit": "steps"}, "leave out 'of'"),
        ({"what": "mass", "range": [1, 2], "unit": "kg", "off": ["cube"]}, "unknown field 'off'"),
    ],
)
def test_files_that_cannot_be_are_refused_in_a_line(tmp_path: Path, entry: dict, said: str) -> None:
    path = file(tmp_path, entry)
    with pytest.raises(InputError) as caught:
        load_randomisation(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        (Parameter(what="mass", of=("cubee",), range=(1, 2), unit="kg"), "unknown body for mass 'cubee': did you mean 'cube'"),
        (Parameter(what="damping", of=("finger1",), range=(1, 2), unit="N m s/rad"), "'finger1', a slide, is in 'N s/m' or 'factor'"),
        (Parameter(what="friction_loss", of=("joint1",), range=(0.5, 2), unit="factor"), "is 0 in this scene"),
        (Parameter(what="colour", of=("table",), range=(0, 1), unit="1"), "comes from a material"),
        (Parameter(what="texture", range=(0, 99), unit="number"), "there are 24 patterns"),
        (Parameter(what="texture", range=(0.5, 3), unit="number", spacing="log"), "a logarithm has no 0"),
        (Parameter(what="exposure", of=("rear",), range=(0, 1), unit="stops"), "unknown camera for exposure 'rear'"),
    ],
)
def test_names_that_a_scene_does_not_have_are_refused_in_a_line(parameter: Parameter, said: str) -> None:
    with pytest.raises(InputError, match=said):
        made(parameter)


def test_a_thing_is_drawn_once_and_other_worlds_are_left_alone(tmp_path: Path) -> None:
    twice = Parameter(what="mass", of=("cube",), range=(1, 2), unit="kg")
    with pytest.raises(InputError, match=r"draws mass\.cube twice"):
        made(twice, twice)
    with pytest.raises(InputError, match="no parameters"):
        load_randomisation(file(tmp_path))
    with pytest.raises(InputError, match="is not JSON"):
        (tmp_path / "bad.json").write_text("{")
        load_randomisation(tmp_path / "bad.json")
    with pytest.raises(InputError, match="No such file"):
        load_randomisation(tmp_path / "none.json")


def test_every_kind_says_what_it_is() -> None:
    assert all(kind.text and kind.units and kind.low < kind.high for kind in KINDS.values())
