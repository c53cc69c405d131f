"""Errors written for people: what was wrong, where, and what to do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


class NewtonError(Exception):
    """Base of every error that a command shows as one line instead of a traceback.

    Args:
        what: what was wrong, in one clause without a full stop.
        where: file, frame or recipe key; shown first.
        fix: what the reader can do about it, one sentence.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        head = f"{where}: {what}." if where is not None else f"{what}."
        super().__init__(f"{head} {fix}" if fix else head)


class InputError(NewtonError):
    """A file or array that the user gave can't be used."""


class ShapeError(InputError):
    """A tensor with the wrong shape, dtype or value range at a border."""


class RecipeError(NewtonError):
    """A recipe that doesn't validate; raised before any weight is read."""


class CheckpointError(NewtonError):
    """A checkpoint that is missing, damaged, or belongs to another model or recipe."""


class MissingExtra(NewtonError):
    """An optional dependency or weight file that isn't here."""


class Interrupted(NewtonError):
    """Stopped by the user after a checkpoint was written; the same command goes on."""


def run_command(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """The top of every command: its exit code, with one line on stderr where something is wrong.

    Args:
        main: the command; 0 good, 1 some inputs failed.
        argv: its arguments, None: those of the process.
    Returns:
        what `main` returns; 2 for bad input, 130 for an interruption after which the same command goes on.
    """
    try:
        return main(argv)
    except Interrupted as error:
        return _say(str(error), 130)
    except KeyboardInterrupt:
        return _say("interrupted. Run the same command again to go on.", 130)
    except NewtonError as error:
        return _say(f"error: {error}", 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of a pipe left: nothing to say, nobody to say it to
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _say(f"error: {error.filename or 'output'}: the disk is full. Free some space, then run it again.", 2)


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
