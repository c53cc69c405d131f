"""What objects are made of: it changes how they shine, and nothing that is true of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from newtonrewards.core.errors import InputError
from newtonrewards.simulation.looks import Material, Surface
from newtonrewards.simulation.photo import Photo, describe
from newtonrewards.simulation.ranges import Ranges, default_ranges
from newtonrewards.simulation.render import render, truth_of
from newtonrewards.simulation.scene import sample_scene

NAMES = ("matte", "glossy", "metallic")


def world(*materials: str, **changes: object) -> Ranges:
    ranges = default_ranges()
    return ranges.model_copy(update={"world": ranges.world.model_copy(update={"materials": materials, **changes})})


@pytest.mark.parametrize("name", NAMES)
def test_only_the_shading_of_objects_depends_on_it(name: str) -> None:
    for index in range(5):
        plain = sample_scene(7, index, ranges=world(bystanders=1, camera_yaw_deg=(10.0, 10.0)))
        scene = sample_scene(7, index, ranges=world(name, bystanders=1, camera_yaw_deg=(10.0, 10.0)))
        material = scene.object_surface.material
        assert material is not None and material.name == name
        assert replace(scene, object_surface=replace(scene.object_surface, material=None), bystanders=()) == replace(
            plain, bystanders=()
        )
        painted, made = render(plain), render(scene)
        assert painted.truth is not None and made.truth is not None and painted.masks is not None
        assert torch.equal(made.masks, painted.masks)  # type: ignore[arg-type]
        for channel in ("flow", "depth", "position", "visible"):
            assert torch.equal(getattr(made.truth, channel), getattr(painted.truth, channel)), channel
        (other,), (same,) = made.truth.bystanders, painted.truth.bystanders
        assert other.masks is not None and same.masks is not None and torch.equal(other.masks, same.masks)
        changed = (made.frames != painted.frames).any(1)
        assert changed.any() and not changed[(painted.masks + same.masks) == 0].any()


def test_each_is_drawn_from_its_ranges_and_recorded() -> None:
    drawn = [truth_of(sample_scene(3, i, ranges=world(*NAMES, bystanders=1))) for i in range(40)]
    limits = default_ranges().materials
    assert limits is not None
    for truth in drawn:
        for parameters in (truth.parameters, truth.bystanders[0].parameters):
            low, high = limits[parameters["material"]].roughness
            assert low <= parameters["roughness"] <= high
            assert parameters["metallic"] == (parameters["material"] == "metallic")
    assert {truth.parameters["material"] for truth in drawn} == set(NAMES)
    assert (
        len({truth.parameters["material"] == t.parameters["material"] for truth in drawn for t in truth.bystanders})
        == 2
    )
    assert "material" not in truth_of(sample_scene(3, 0)).parameters
    with pytest.raises(InputError, match="velvet.*Choose from matte"):
        sample_scene(3, 0, ranges=world("velvet"))


def ball(material: Material | None) -> torch.Tensor:
    """A frame of a grey ball in mid-air, and where its highlight must be, in px."""
    scene = sample_scene(3, 0, ranges=world(size_px=256))
    grey = Surface("two_tone", ((0.5, 0.5, 0.5),) * 2, 0.5, 7, material)
    return render(replace(scene, shape="sphere", half_size=(0.4,) * 3, object_surface=grey, num_frames=2)).frames[0]


def test_a_highlight_lies_where_a_mirror_would_show_the_lamp_and_is_sharper_on_what_is_smooth() -> None:
    scene = sample_scene(3, 0, ranges=world(size_px=256))
    centre = np.array([*scene.centres()[0], 0.0])
    to_viewer = scene.camera.place() - centre
    normal = np.array(scene.light) + to_viewer / np.linalg.norm(to_viewer)
    expected = scene.camera.to_image((centre + 0.4 * normal / np.linalg.norm(normal))[None])[0] * 256
    paint, areas = ball(None), []
    for roughness in (0.3, 0.5):
        gleam = (ball(Material("smooth", roughness, 0.0)) - paint)[0].clamp(min=0).numpy()
        row, column = (np.average(axis, weights=gleam**4) + 0.5 for axis in np.indices(gleam.shape))
        assert abs(row - expected[1]) < 1.5 and abs(column - expected[0]) < 1.5
        areas.append((gleam > gleam.max() / 2).sum())
    assert areas[1] > 3 * areas[0]
    steel = ball(Material("steel", 0.3, 1.0))
    assert steel.max() > paint.max() and steel.median() <= paint.median()


def test_blender_is_told_and_without_a_material_what_it_always_was(tmp_path: Path) -> None:
    def told(ranges: Ranges) -> dict[str, float]:
        describe(sample_scene(5, 1, ranges=ranges), tmp_path, np.array([0]), Photo())
        body: dict[str, float] = json.loads((tmp_path / "scene.json").read_text())["bodies"]["body0"]
        return body

    plain, steel = told(world()), told(world("metallic"))
    assert (plain["roughness"], plain["metallic"]) == (0.4, 0.0)
    assert steel["metallic"] == 1 and steel["roughness"] != 0.4
