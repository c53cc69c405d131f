"""The closed forms against laws that they don't contain: energy, work, numerical integration, and geometry."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from newtonrewards.simulation.motions import GRAVITY, flight, slide_down, slide_up, straight_line

angles = st.floats(math.radians(5), math.radians(60))
frictions = st.floats(0.0, 0.6)
speeds = st.floats(0.5, 6.0)
heights = st.floats(0.1, 4.0)


@given(heights, st.floats(-4, 4), st.floats(0, 4), frictions)
def test_flight_conserves_energy_until_it_lands(height: float, vx: float, vy: float, mu: float) -> None:
    motion = flight(height, (vx, vy), mu)
    times = np.linspace(0, motion.events["land"] * 0.999, 20)
    position, velocity, _ = motion.at(times)
    energy = GRAVITY * position[:, 1] + (velocity**2).sum(1) / 2
    assert np.allclose(energy, energy[0], rtol=1e-9, atol=1e-9)
    assert position[:, 1].min() > 0


def test_fall_of_one_second_is_half_g() -> None:
    motion = flight(GRAVITY / 2, (0.0, 0.0), 0.3)
    assert motion.events == {"land": pytest.approx(1.0)}
    assert motion.at(np.array([0.5]))[0][0] == pytest.approx([0.0, GRAVITY / 2 - GRAVITY / 8])
    assert motion.at(np.array([5.0]))[0][0] == pytest.approx([0.0, 0.0])


@given(heights, st.floats(0.2, 4), st.floats(0.05, 0.6))
def test_friction_work_on_the_floor_equals_the_speed_lost(height: float, vx: float, mu: float) -> None:
    motion = flight(height, (vx, 0.0), mu)
    land = motion.events["land"]
    after = max(0.0, vx - mu * GRAVITY * land)  # Coulomb impulse: mu times the vertical speed that the floor takes
    _, velocity, _ = motion.at(np.array([land + 1e-9]))
    assert velocity[0, 0] == pytest.approx(after, abs=1e-6)
    if after > 0:
        start, rest = motion.at(np.array([land, motion.events["stop"] + 1.0]))[0]
        assert mu * GRAVITY * (rest[0] - start[0]) == pytest.approx(after**2 / 2, rel=1e-6)


@given(angles, frictions, speeds, st.sampled_from([-1.0, 1.0]))
def test_slide_up_turns_or_stays(th: float, mu: float, speed: float, side: float) -> None:
    motion = slide_up(th, mu, speed, side)
    slides_back = math.tan(th) > mu
    time = motion.events["turn" if slides_back else "stop"]
    assert time == pytest.approx(speed / (GRAVITY * (math.sin(th) + mu * math.cos(th))))
    position, velocity, acceleration = motion.at(np.array([0.0, time, time + 0.7]))
    assert velocity[0] @ [side * math.cos(th), math.sin(th)] == pytest.approx(speed)
    assert np.allclose(velocity[1], 0, atol=1e-9)
    back = GRAVITY * (math.sin(th) - mu * math.cos(th)) if slides_back else 0.0
    assert np.linalg.norm(acceleration[2]) == pytest.approx(back, abs=1e-9)
    assert position[2, 1] <= position[1, 1] + 1e-12


@given(angles, frictions)
def test_a_block_slides_down_only_if_the_incline_beats_friction(th: float, mu: float) -> None:
    position, _, acceleration = slide_down(th, mu, 1.0).at(np.array([0.0, 1.0]))
    expected = max(0.0, GRAVITY * (math.sin(th) - mu * math.cos(th)))
    assert np.linalg.norm(position[1] - position[0]) == pytest.approx(expected / 2)
    assert acceleration[0] == pytest.approx([expected * math.cos(th), -expected * math.sin(th)])


@given(heights, st.floats(-3, 3), st.floats(0, 3))
def test_integrating_the_acceleration_gives_the_position(height: float, vx: float, vy: float) -> None:
    motion = flight(height, (vx, vy), 0.3)
    times = np.linspace(0, motion.events["land"] + 0.5, 4001)
    position, velocity, _ = motion.at(times)
    steps = np.diff(times)[:, None]
    # trapezoids are exact inside a phase; the impact, a jump of velocity, falls into at most one step
    integrated = position[0] + np.concatenate(
        [np.zeros((1, 2)), np.cumsum((velocity[1:] + velocity[:-1]) / 2 * steps, axis=0)]
    )
    assert np.abs(integrated - position).max() < 2 * steps.max() * np.abs(velocity).max()


def test_a_straight_line_ends_where_the_truth_breaks() -> None:
    truth = flight(1.5, (2.0, 0.0), 0.3)
    land = truth.events["land"]
    wrong = straight_line(truth, 0.8)
    _, velocity, acceleration = wrong.at(np.array([0.0, land / 2]))
    assert np.allclose(velocity[0], velocity[1]) and np.allclose(acceleration, 0)
    assert wrong.at(np.array([land]))[0] == pytest.approx(truth.at(np.array([land]))[0], abs=1e-6)
