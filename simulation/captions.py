"""What captions say: the motion, its direction, and the quantities that the first frame can't show."""

from __future__ import annotations

from collections.abc import Mapping

SIDES = {1.0: "right", -1.0: "left"}
PHRASINGS = ("quantities", "plain", "pisa")
# The one prompt of PISA's simulated training clips: github.com/vision-x-nyu/pisa-experiments, configs/dataset/psft.csv,
# commit 320aade. It says the same of every clip, and is true of falls alone.
PISA = "a video of an object dropping"


def captions(primitive: str, parameters: Mapping[str, float]) -> dict[str, str]:
    """A sentence of plain ASCII for each of `PHRASINGS`: with quantities, without, and PISA's fixed prompt.

    Args:
        primitive: a motion of `motions.KNOWN`.
        parameters: `direction` (+1 right, -1 left), `view_m`, and the quantities of the motion in SI units and degrees.
    """
    return {"quantities": caption(primitive, parameters), "plain": _plain(primitive, parameters), "pisa": PISA}


def caption(primitive: str, parameters: Mapping[str, float]) -> str:
    """The sentence with quantities, under 100 bytes; arguments as of `captions`."""
    p, side = parameters, SIDES[parameters["direction"]]
    match primitive:
        case "free_fall":
            text = "an object falls"
        case "horizontal_throw":
            text = f"an object is thrown {side} at {p['speed_mps']:.2f} m/s, floor friction {p['friction']:.2f}"
        case "parabolic_throw":
            text = (
                f"an object is thrown {side} and up {p['angle_deg']:.0f} degrees at {p['speed_mps']:.2f} m/s, "
                f"floor friction {p['friction']:.2f}"
            )
        case "ramp_down":
            ramp = f"{p['incline_deg']:.0f} degrees to the {side}"
            text = f"an object slides down a ramp of {ramp}, friction {p['friction']:.2f}"
        case "roll_down":
            text = f"a ball rolls down a ramp of {p['incline_deg']:.0f} degrees to the {side}"
        case _:
            ramp = f"{p['incline_deg']:.0f} degrees to the {side}"
            text = f"an object slides up a ramp of {ramp} at {p['speed_mps']:.2f} m/s, friction {p['friction']:.2f}"
    return f"{text}, view {p['view_m']:.2f} m"


def _plain(primitive: str, parameters: Mapping[str, float]) -> str:
    side = SIDES[parameters["direction"]]
    match primitive:
        case "free_fall":
            return "an object falls"
        case "horizontal_throw":
            return f"an object is thrown {side}"
        case "parabolic_throw":
            return f"an object is thrown {side} and up"
        case "ramp_down":
            return f"an object slides down a ramp to the {side}"
        case "roll_down":
            return f"a ball rolls down a ramp to the {side}"
        case _:
            return f"an object slides up a ramp to the {side}"
