"""The closed forms against laws that they don't contain: energy, work, numerical integration, and geometry."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from newtonrewards.simulation.motions import (
    GRAVITY,
    RESTING,
    Trajectory,
    flight,
    grip,
    roll_down,
    slide_down,
    slide_up,
    straight_line,
)

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


# ---- against independent numerical integration ----------------------------------------------------------------------

Array = NDArray[np.float64]
TIGHT = {"method": "DOP853", "rtol": 1e-9, "atol": 1e-11}


def integrated_flight(height: float, v: tuple[float, float], mu: float, e: float, times: Array) -> Array:
    """Positions (N, 2) by integrating Newton's law and finding the contacts as roots; impulses by conservation."""

    def contact(_: float, state: Array) -> float:
        return float(state[1])

    contact.terminal, contact.direction = True, -1.0  # type: ignore[attr-defined]
    state, start, found = np.array([0.0, height, *v]), 0.0, np.zeros((len(times), 2))
    flying = True
    while start < times[-1]:

        def law(_: float, s: Array, flying: bool = flying, side: float = np.sign(state[2])) -> list[float]:
            return [s[2], s[3], 0.0 if flying else -mu * GRAVITY * side, -GRAVITY if flying else 0.0]

        def stops(_: float, s: Array) -> float:
            return float(s[2])

        stops.terminal = True  # type: ignore[attr-defined]
        watch = contact if flying else stops if abs(state[2]) > 0 else None
        run = solve_ivp(law, (start, times[-1]), state, events=watch, dense_output=True, **TIGHT)
        end = run.t[-1]
        inside = (times >= start) & (times <= end)
        if inside.any():
            found[inside] = run.sol(times[inside])[:2].T
        state, start = run.y[:, -1].copy(), end
        if run.status != 1:
            break
        if flying:
            down = -state[3]
            up = e * down if e * down > RESTING else 0.0
            state[2] = np.sign(state[2]) * max(0.0, abs(state[2]) - mu * (down + up))
            state[1], state[3], flying = 0.0, up, up > 0
        else:
            state[2] = 0.0
    return found


def close(motion: Trajectory, times: Array, positions: Array) -> None:
    mine = motion.at(times)[0]
    assert np.abs(mine - positions).max() <= 1e-6 * np.abs(mine).max()


@given(heights, st.floats(-4, 4), st.floats(0, 4), st.floats(0.05, 0.6), st.sampled_from([0.0, 0.3, 0.6]))
@settings(max_examples=10, deadline=None)
def test_flights_and_bounces_follow_newtons_law(height: float, vx: float, vy: float, mu: float, e: float) -> None:
    times = np.linspace(0, 2.5, 101)
    close(flight(height, (vx, vy), mu, restitution=e), times, integrated_flight(height, (vx, vy), mu, e, times))


@given(angles, frictions, st.floats(0, 6), st.sampled_from([-1.0, 1.0]))
@settings(max_examples=15, deadline=None)
def test_ramps_follow_newtons_law(th: float, mu: float, speed: float, side: float) -> None:
    """Along the slope, with friction against the motion, or as large as it takes to hold a body at rest."""
    times = np.linspace(0, 1.5, 61)

    def law(_: float, s: Array) -> list[float]:
        pull, most = -GRAVITY * math.sin(th), mu * GRAVITY * math.cos(th)
        if s[1] == 0:  # at rest: it stays where friction holds it
            return [0.0, min(0.0, pull + most)]
        return [s[1], pull - math.copysign(most, s[1])]

    def turns(_: float, s: Array) -> float:
        return float(s[1])

    turns.terminal = True  # type: ignore[attr-defined]
    way, start, state = np.zeros(len(times)), 0.0, np.array([0.0, speed])
    if speed > 0:
        run = solve_ivp(law, (0, times[-1]), state, events=turns, dense_output=True, **TIGHT)
        way[times <= run.t[-1]] = run.sol(times[times <= run.t[-1]])[0]
        start, state = run.t[-1], np.array([run.y[0, -1], 0.0])
    if start < times[-1]:
        if law(0, state)[1] == 0:
            way[times >= start] = state[0]
        else:
            state[1] = -1e-13  # off the point of rest, where the law would look at the sign of nothing
            run = solve_ivp(law, (start, times[-1]), state, dense_output=True, **TIGHT)
            way[times >= start] = run.sol(times[times >= start])[0]
    if speed > 0:
        close(slide_up(th, mu, speed, side), times, way[:, None] * [side * math.cos(th), math.sin(th)])
    else:
        close(slide_down(th, mu, -side), times, way[:, None] * [side * math.cos(th), math.sin(th)])


@given(angles, st.floats(0.02, 0.5))
def test_a_rolling_ball_follows_newtons_and_eulers_laws(th: float, radius: float) -> None:
    """Acceleration and friction from force, torque and the condition of rolling, solved anew at every step."""
    mass, inertia = 1.7, 0.4 * 1.7 * radius**2
    # m a + f = m g sin th; I a / r - f r = 0
    accelerate, hold = np.linalg.solve([[mass, 1], [inertia / radius, -radius]], [mass * GRAVITY * math.sin(th), 0])
    times = np.linspace(0, 1.5, 31)
    run = solve_ivp(lambda _, s: [s[1], accelerate], (0, 1.5), [0.0, 0.0], t_eval=times, **TIGHT)
    close(roll_down(th, 1.0), times, run.y[0][:, None] * [math.cos(th), -math.sin(th)])
    assert hold / (mass * GRAVITY * math.cos(th)) == pytest.approx(grip(th)), "the friction that rolling needs"


def test_a_bounce_reaches_the_square_of_the_restitution() -> None:
    motion = flight(1.0, (0.0, 0.0), 0.0, restitution=0.8)
    land, again = motion.events["land"], motion.events["land_2"]
    top = motion.at(np.array([(land + again) / 2]))[0][0, 1]
    assert top == pytest.approx(0.64)
    assert "land" in motion.events and motion.first_break() == land
    energies = [v[0, 1] ** 2 for v in (motion.at(np.array([t + 1e-9]))[1] for t in motion.events.values())]
    assert all(later < earlier for earlier, later in itertools.pairwise(energies))
