"""`newtonrewards COMMAND`: one entry for every command; each is also `python -m newtonrewards.<room>.<module>`.

A command's module is imported when it is called and not before, so that `--help` doesn't wait for torch.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from newtonrewards.core.errors import run_command


@dataclass(frozen=True)
class Command:
    """Where a command's `main(argv) -> int` lives, and what it does in one line."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "simulate": Command("newtonrewards.simulation.simulate", "make clips of the five motions with their exact truth"),
    "train": Command("newtonrewards.training.train", "fine-tune and post-train a video model from one recipe"),
    "export": Command("newtonrewards.training.export", "a checkpoint of a run as a plain LoRA or model folder"),
    "generate": Command("newtonrewards.launch.generate", "make clips from captions and first frames"),
    "score": Command("newtonrewards.eval.score", "say whether the motion in existing videos is lawful, without truth"),
    "evaluate": Command("newtonrewards.eval.evaluate", "measure generated clips against the truth, arm beside arm"),
    "report": Command("newtonrewards.eval.report", "write an evaluation and its training curves as one HTML file"),
    "table": Command("newtonrewards.launch.table", "every training method from one start, several seeds, one report"),
    "demo": Command("newtonrewards.launch.demo", "all of it in minutes on a CPU, from clips to report"),
    "test": Command("newtonrewards.launch.run_tests", "run the tests (arguments go to pytest)"),
}

USAGE = """usage: newtonrewards COMMAND [OPTIONS]

Post-train video diffusion models with verifiable physics rewards, and measure whether it helped.

commands:
{commands}

`newtonrewards COMMAND --help` explains its options. Commands talk to each other through files, so any of them
can be left out or replaced. Exit codes: 0 good; 1 some inputs failed, the rest is done; 2 bad recipe or
arguments; 130 interrupted, the same command goes on.
"""


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return USAGE.format(commands="\n".join(rows))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"newtonrewards {version('newtonrewards')}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Choose one of {', '.join(COMMANDS)}."
        print(f"error: no command '{name}'. {hint}", file=sys.stderr)
        return 2
    return run_command(lambda given: importlib.import_module(COMMANDS[name].module).main(given), rest)


if __name__ == "__main__":
    raise SystemExit(main())
