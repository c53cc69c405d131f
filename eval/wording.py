"""From numbers to plain sentences: what an evaluation says, also when it says nothing or something bad.

The main measures are those of motion, velocity and acceleration error; place, overlap and size are what they must not
cost.
"""

from __future__ import annotations

from collections.abc import Iterator

from newtonrewards.eval.results import ALL, OOD, Change, Number, Summary

MAIN = ("rmse_v", "rmse_a")
GUARDED = ("l2", "iou")
WATCHED = (
    ("area_ratio", "Size of the object over its true size:"),
    ("presence", "Share of frames in which the object is there:"),
)
SHIFTS = {"id": "in distribution", OOD: "out of distribution"}


def label(name: str) -> str:
    """`more_fine_tuning` as `more fine-tuning`."""
    words = {"fine tuned": "fine-tuned", "fine tuning": "fine-tuning", "post trained": "post-trained"}
    text = name.replace("_", " ")
    for plain, better in words.items():
        text = text.replace(plain, better)
    return text


def percent(number: Number) -> str:
    """`-25.8 % [-32, -20]`, without brackets where there is no interval."""
    if number.value is None:
        return "–"
    text = f"{_signed(number.value, 1)} %"
    if number.low is None or number.high is None:
        return text
    digits = 0 if max(abs(number.low), abs(number.high)) >= 10 else 1
    return f"{text} [{_signed(number.low, digits)}, {_signed(number.high, digits)}]"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def headline(summary: Summary) -> str:
    """One sentence: did the last arm beat the arms it is compared with on the main measures?"""
    changes = _main_changes(summary)
    arm = label(summary.arms[-1].name)
    if not changes:
        return f"There is nothing to compare {arm} with."
    others = _listed([label(name) for name in dict.fromkeys(change.baseline for change in changes)])
    better = sum(change.verdict == "better" for change in changes)
    worse = sum(change.verdict == "worse" for change in changes)
    total = len(changes)
    model = f"The {arm} model moves"
    if better == total:
        return f"{model} closer to the truth than {others}, on all {total} main comparisons."
    if worse == total:
        return f"{model} further from the truth than {others}, on all {total} main comparisons."
    if not better and not worse:
        return f"{model} no differently from {others}, as far as these clips can tell."
    rest = total - better - worse
    counts = [f"better on {better}"] * bool(better) + [f"worse on {worse}"] * bool(worse)
    counts += [f"too close to call on {rest}"] * bool(rest)
    return f"Against {others}, the {arm} model's motion is {_listed(counts)} of {total} main comparisons."


def statements(summary: Summary) -> list[str]:
    """One sentence for each baseline, newest first: the main measures with their intervals."""
    changes = _main_changes(summary)
    result = []
    for baseline in reversed(dict.fromkeys(change.baseline for change in changes)):
        parts = [
            f"{SHIFTS[shift]} the "
            + _listed(
                [_clause(summary, change) for change in changes if (change.baseline, change.shift) == (baseline, shift)]
            )
            for shift in SHIFTS
            if any((change.baseline, change.shift) == (baseline, shift) for change in changes)
        ]
        result.append(f"Against {label(baseline)}: {'; '.join(parts)}.")
    return result


def side_effects(summary: Summary) -> list[str]:
    """What happened to place, overlap, size and presence, which a reward could sacrifice."""
    last = summary.arms[-1].name
    sentences = []
    guarded = [change for change in _changes(summary, GUARDED) if change.baseline == _start(summary)]
    worse = [change for change in guarded if change.verdict == "worse"]
    if worse:
        sentences.append(
            "It had a price: " + _listed([f"{_clause(summary, c)} {SHIFTS[c.shift]}" for c in worse]) + "."
        )
    elif guarded:
        sentences.append(
            f"Place (L2) and overlap (IoU) did not get clearly worse against {label(guarded[0].baseline)}."
        )
    for metric, text in WATCHED:
        numbers = [(where, summary.cell(last, metric, ALL, shift)) for shift, where in SHIFTS.items()]
        said = [f"{n.value:.2f} {where}" for where, n in numbers if n is not None and n.value is not None]
        if said:
            sentences.append(f"{text} {_listed(said)}.")
    return sentences


def _start(summary: Summary) -> str | None:
    """The arm that the last one started from: `fine_tuned` where there is one, else its first baseline."""
    names = list(dict.fromkeys(change.baseline for change in summary.changes if change.arm == summary.arms[-1].name))
    return "fine_tuned" if "fine_tuned" in names else next(iter(names), None)


def _main_changes(summary: Summary) -> list[Change]:
    """Changes of the last arm on the main measures against what it should beat: all baselines but a bare `base`."""
    changes = list(_changes(summary, MAIN))
    serious = [change for change in changes if change.baseline != "base"]
    return serious or changes


def _changes(summary: Summary, metrics: tuple[str, ...]) -> Iterator[Change]:
    for change in summary.changes:
        if (
            change.arm == summary.arms[-1].name
            and change.metric in metrics
            and change.primitive == ALL
            and change.shift in SHIFTS
            and change.number.value is not None
        ):
            yield change


def _clause(summary: Summary, change: Change) -> str:
    value = change.number.value
    assert value is not None, "_changes leaves them out"
    verb = "fell" if value < 0 else "rose"
    unclear = ", unclear" if change.verdict == "unclear" else ""
    bounds = percent(change.number).partition(" % ")[2] or "[no interval]"
    return f"{summary.metrics[change.metric].label} {verb} by {abs(value):.1f} % {bounds[:-1]}{unclear}]"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
