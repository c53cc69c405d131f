from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from newtonrewards.core.errors import InputError, Interrupted, NewtonError, RecipeError, run_command


def test_an_error_says_where_what_and_what_to_do() -> None:
    assert str(InputError("only 2 frames", where="a.mp4", fix="Give more.")) == "a.mp4: only 2 frames. Give more."
    assert str(InputError("only 2 frames")) == "only 2 frames."


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (RecipeError("unknown key", where="r.yaml"), 2, "error: r.yaml: unknown key.\n"),
        (Interrupted("stopped after step 3", where="runs/a"), 130, "runs/a: stopped after step 3.\n"),
        (KeyboardInterrupt(), 130, "interrupted. Run the same command again to go on.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/x"), 2, "error: runs/a/x: the disk is full."),
    ],
)
def test_a_command_ends_in_one_line_and_its_exit_code(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise raised

    assert run_command(main) == code
    printed = capsys.readouterr()
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_good_command_passes_its_code_and_arguments_through() -> None:
    assert run_command(lambda argv: len(argv or ()), ["a", "b"]) == 2
    assert run_command(lambda argv: 1 if argv is None else 0) == 1


def test_a_bug_is_not_dressed_up_as_bad_input() -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(OSError, match="Permission denied"):
        run_command(main)
    assert not issubclass(OSError, NewtonError)
