"""Errors written for people: what was wrong, where, and what to do."""

from __future__ import annotations

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
