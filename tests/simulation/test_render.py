"""The renderer's truth against its own pixels, and the split of the world."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError
from newtonrewards.simulation import raycast
from newtonrewards.simulation.motions import PRIMITIVES, RAMPS
from newtonrewards.simulation.ranges import default_ranges, quantities, shifts_of
from newtonrewards.simulation.render import render, truth_of
from newtonrewards.simulation.scene import sample_scene


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [render(sample_scene(11, index)) for index in range(10)]


def test_soft_mask_centroid_follows_the_track(clips: list[Clip]) -> None:
    for clip in clips:
        assert clip.masks is not None and clip.truth is not None
        size = clip.frames.shape[-1]
        grid = (torch.arange(size) + 0.5) / size
        weight = clip.masks / clip.masks.sum((1, 2), keepdim=True)
        centroid = torch.stack(
            [(weight * grid[None, None, :]).sum((1, 2)), (weight * grid[None, :, None]).sum((1, 2))], 1
        )
        # perspective shows a little of top or side, so the silhouette's centre isn't exactly the body's
        offset = (centroid - clip.truth.position) * size
        assert offset.abs().max() < 1.0
        assert (offset - offset.mean(0)).abs().max() < 0.5


def test_flow_carries_each_frame_into_the_next(clips: list[Clip]) -> None:
    for clip in clips:
        assert clip.masks is not None and clip.truth is not None and clip.truth.flow is not None
        moved, still = [], []
        for t in range(0, clip.num_frames - 1, 3):
            inside = clip.masks[t] > 0.99
            warped = _fetched(clip.frames[t + 1], clip.truth.flow[t])
            moved.append((warped - clip.frames[t])[:, inside].abs().mean())
            still.append((clip.frames[t + 1] - clip.frames[t])[:, inside].abs().mean())
        assert torch.stack(moved).mean() < 0.5 * torch.stack(still).mean() + 0.01


def test_flow_of_the_object_is_the_change_of_its_position(clips: list[Clip]) -> None:
    for clip in clips:
        assert clip.masks is not None and clip.truth is not None and clip.truth.flow is not None
        step = (clip.truth.position[1:] - clip.truth.position[:-1]) * clip.frames.shape[-1]
        for t in range(clip.num_frames - 1):
            inside = clip.masks[t] > 0.99
            # the near side of a body looks larger: up to half its depth over the camera's distance, under 6 %
            assert torch.allclose(clip.truth.flow[t][:, inside].mean(1), step[t], rtol=0.08, atol=0.02)


def test_image_acceleration_is_constant_between_events(clips: list[Clip]) -> None:
    for clip in clips:
        assert clip.truth is not None and clip.valid is not None
        inside = clip.truth.position[clip.valid].double()
        jerk = inside.diff(n=3, dim=0)
        assert jerk.abs().max() < 1e-5


def test_background_stays_where_neither_object_nor_shadow_is(clips: list[Clip]) -> None:
    for clip in clips:
        assert clip.masks is not None
        upper = clip.frames[:, :, :20]
        away = (clip.masks[:, :20].amax(0) == 0) & (upper.amax((0, 1)) >= 0)
        assert away.any()
        assert (upper - upper[:1])[:, :, away].abs().max() == 0


def test_same_arguments_give_the_same_clip_and_others_another() -> None:
    first, again, other = (render(sample_scene(seed, 3)) for seed in (5, 5, 6))
    assert torch.equal(first.frames, again.frames) and first.caption == again.caption
    assert not torch.equal(first.frames, other.frames)


def test_test_split_shares_no_family_with_training() -> None:
    drawn = {split: [sample_scene(1, i, split=split) for i in range(60)] for split in ("train", "val", "test")}
    for part in ("shape", "object_surface", "wall"):
        seen = {
            split: {str(getattr(getattr(s, part), "texture", getattr(s, part))) for s in scenes}
            for split, scenes in drawn.items()
        }
        assert not seen["test"] & (seen["train"] | seen["val"])
        assert len(seen["train"]) > 1


@given(st.sampled_from(PRIMITIVES), st.integers(0, 500), st.data())
@settings(max_examples=40, deadline=None)
def test_quantities_lie_in_the_ranges_of_their_shift(primitive: str, index: int, data: st.DataObject) -> None:
    shift = data.draw(st.sampled_from(shifts_of(primitive)))
    scene = sample_scene(2, index, split="test", shift=shift, primitive=primitive)
    for name, (low, high) in quantities(primitive, shift).items():
        assert low <= scene.parameters[name] <= high
    assert np.abs(scene.centres()[:, 0]).max() + max(scene.half_size[:2]) <= scene.view_m / 2 + 1e-9


def test_shifted_ranges_do_not_overlap_the_ones_in_distribution() -> None:
    for table in default_ranges().primitives.values():
        for shift, shifted in table.items():
            for name, value in shifted:
                if shift != "id" and value is not None:
                    low, high = getattr(table["id"], name)
                    assert value[0] >= high or value[1] <= low


def test_nothing_round_is_put_on_a_ramp() -> None:
    scenes = [sample_scene(4, i, primitive=primitive) for primitive in RAMPS for i in range(40)]
    assert "sphere" not in {scene.shape for scene in scenes}


def test_a_rolling_ball_turns_by_as_much_as_it_travels_and_says_what_it_is() -> None:
    for index in range(10):
        scene = sample_scene(4, index, primitive="roll_down", split="test")
        way = np.linalg.norm(np.diff(scene.centres(), axis=0), axis=1).sum()
        turned = scene.tilts()[-1] - scene.tilts()[0]
        assert abs(turned) * scene.half_size[0] == pytest.approx(way)
        assert np.sign(turned) == -scene.parameters["direction"], "clockwise to the right"
        clip = render(scene)
        assert "rolls" in clip.caption and scene.shape == "sphere" and clip.truth is not None
        assert clip.truth.primitive == "roll_down" and clip.truth.pieces().max() == 0


def test_bounces_are_events_and_each_piece_between_them_obeys_one_law() -> None:
    ranges = default_ranges()
    bouncing = ranges.model_copy(update={"world": ranges.world.model_copy(update={"restitution": (0.6, 0.8)})})
    scene = sample_scene(11, 0, ranges=bouncing)
    clip = render(scene)
    assert clip.truth is not None and clip.valid is not None
    assert {"land", "land_2"} <= clip.truth.events.keys() and 0.6 <= clip.truth.parameters["restitution"] <= 0.8
    pieces = clip.truth.pieces()
    assert torch.equal(pieces == 0, clip.valid)
    for piece in pieces.unique():
        inside = clip.truth.position[pieces == piece].double()
        if len(inside) > 3:
            assert inside.diff(n=3, dim=0).abs().max() < 1e-5
    assert (clip.truth.position.double().diff(n=3, dim=0).abs() > 1e-3).any(), "but not across them"


def test_imperfect_clips_move_wrongly_and_say_so() -> None:
    scenes = [sample_scene(9, i, imperfect=1.0) for i in range(60)]
    assert {scene.imperfection for scene in scenes} == {"factor", "constant_speed", "wobble"}
    for scene in scenes:
        right = truth_of(sample_scene(9, scene.index))
        assert truth_of(scene).parameters["imperfection"] == scene.imperfection
        if scene.rejections == ():
            assert not np.allclose(truth_of(scene).position, right.position, atol=1e-4)


def test_captions_state_what_the_first_frame_cannot_show() -> None:
    scene = sample_scene(0, 2)
    assert f"{scene.parameters['speed_mps']:.2f} m/s" in scene.caption
    assert f"{scene.parameters['angle_deg']:.0f} degrees" in scene.caption
    assert ("right" if scene.parameters["direction"] > 0 else "left") in scene.caption
    assert all(len(sample_scene(0, i).caption.encode()) < 110 for i in range(50))


def test_unknown_words_are_named() -> None:
    with pytest.raises(InputError, match="ood_friction"):
        sample_scene(0, 0, primitive="free_fall", shift="ood_friction")
    with pytest.raises(InputError, match="split"):
        sample_scene(0, 0, split="valid")


def test_valid_frames_end_at_the_first_event() -> None:
    for index in range(20):
        scene = sample_scene(21, index)
        clip = render(scene)
        assert clip.truth is not None and clip.valid is not None
        first = min(clip.truth.events.values(), default=math.inf)
        assert clip.valid.tolist() == [t <= first + 1e-6 for t in range(clip.num_frames)]


def test_a_turning_body_keeps_its_centre_and_its_flow_carries_its_texture() -> None:
    ranges = default_ranges()
    world = ranges.world.model_copy(update={"spin_rad_s": (4.0, 6.0)})
    for index in (0, 1, 2):
        still, turning = (
            sample_scene(11, index, ranges=r) for r in (ranges, ranges.model_copy(update={"world": world}))
        )
        assert turning.spin != 0 and turning == replace(still, spin=turning.spin), "nothing else of the scene changes"
        clip = render(turning)
        assert clip.masks is not None and clip.valid is not None and clip.truth is not None
        assert clip.truth.flow is not None and torch.equal(clip.truth.position, render(still).truth.position)  # type: ignore[union-attr]
        warped, plain = [], []
        for t in range(int(clip.valid.sum()) - 1):
            inside = clip.masks[t] > 0.99
            for errors, flow in ((warped, clip.truth.flow[t]), (plain, render(still).truth.flow[t])):  # type: ignore[union-attr,index]
                errors.append((_fetched(clip.frames[t + 1], flow) - clip.frames[t])[:, inside].abs().mean())
        assert torch.stack(warped).mean() < 0.6 * torch.stack(plain).mean()


def _fetched(frame: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """The frame read where the flow leads from each pixel."""
    size = frame.shape[-1]
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    grid = (torch.stack([xs, ys], -1) + flow.permute(1, 2, 0) + 0.5) / size * 2 - 1
    return torch.nn.functional.grid_sample(frame[None], grid[None].float(), align_corners=False)[0]


def test_a_change_of_the_kernels_reaches_what_is_compiled_with_them() -> None:
    folder = Path(raycast.__file__).parent
    names = ("backdrop.py", "shapes.py", "solids.py")
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()
    assert digest[:8] == raycast.COMPILED_WITH, f'write COMPILED_WITH = "{digest[:8]}" in raycast.py'
