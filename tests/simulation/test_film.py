"""What a shaking, blurring camera does to a clip, and that its truth goes with it."""

import numpy as np
import pytest
import torch

from newtonrewards.simulation.film import Film, film
from newtonrewards.simulation.render import pictures, render
from newtonrewards.simulation.scene import sample_scene


def test_the_perfect_camera_changes_nothing() -> None:
    scene = sample_scene(3, 0)
    assert torch.equal(film(scene, Film()).frames, render(scene).frames)


def test_an_open_shutter_smears_what_is_fast_and_nothing_else() -> None:
    scene = sample_scene(3, 1)
    sharp, blurred = render(scene), film(scene, Film(shutter=1.0))
    assert sharp.masks is not None
    away = (sharp.frames - blurred.frames).abs().amax((1, 2, 3))
    assert away[0] > 0.05  # it flies from the first frame on
    upper = sharp.masks[:, :12].amax(0) == 0
    assert (sharp.frames - blurred.frames)[:, :, :12][:, :, upper].abs().max() < 0.02


def test_a_shaking_camera_zooms_in_and_says_by_how_much() -> None:
    scene = sample_scene(3, 0)
    still, shaken = render(scene).truth, film(scene, Film(shake=0.02)).truth
    assert still is not None and shaken is not None
    zoom = still.metres_per_height / shaken.metres_per_height
    assert 1.0 < zoom < 1.2
    np.testing.assert_allclose(shaken.acceleration, zoom * still.acceleration, rtol=1e-5)


@pytest.mark.parametrize("camera", [Film(), Film(shutter=0.5), Film(shake=0.01)])
def test_frames_that_another_renderer_took_go_through_the_same_camera(camera: Film) -> None:
    scene = sample_scene(3, 1)
    ours = film(scene, camera)
    theirs = film(scene, camera, lambda seen, chosen: pictures(seen, chosen)[0] * 0.5)
    assert ours.masks is not None and theirs.masks is not None and torch.equal(ours.masks, theirs.masks)
    assert torch.allclose(theirs.frames, ours.frames * 0.5, atol=2 / 255)
