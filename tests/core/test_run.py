from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newtonrewards.core import run
from newtonrewards.core.errors import InputError


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_stream_is_a_function_of_its_arguments_and_nothing_else(seed: int, step: int, index: int) -> None:
    torch.manual_seed(index)
    first = torch.randn(3, generator=run.stream(seed, step, index, "noise"))
    torch.manual_seed(index + 1)
    assert torch.equal(first, torch.randn(3, generator=run.stream(seed, step, index, "noise")))
    assert 0 <= run.stream_seed(seed, step, index, "noise") < 2**63


def test_streams_of_different_arguments_differ() -> None:
    arguments = [(s, t, i, p) for s in range(3) for t in range(3) for i in (0, 1, 11, 111) for p in ("noise", "sigma")]
    assert len({run.stream_seed(*a) for a in arguments}) == len(arguments)


def test_streams_stay_what_they_are() -> None:
    """Shipped weights and tables were made with these numbers: a change here is a change of all of them."""
    assert run.stream_seed(0, 0, 0, "noise") == 4000563893452429607


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_every_value_becomes_strict_json(value: Any) -> None:
    text = json.dumps(run.jsonable(value), allow_nan=False)
    assert json.loads(text) == run.jsonable(value)


def test_tensors_paths_and_nan_become_plain_values() -> None:
    row = {"a": torch.tensor([1.0, float("nan")]), "b": Path("x/y"), "c": float("inf"), 3: torch.tensor(2), "d": (1, 2)}
    assert run.jsonable(row) == {"a": [1.0, None], "b": "x/y", "c": None, "3": 2, "d": [1, 2]}


def test_rows_come_back_and_a_line_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        run.append_jsonl(path, {"step": step, "loss": float("nan")})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert run.read_jsonl(path) == [{"step": step, "loss": None} for step in range(3)]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is not JSON"):
        run.read_jsonl(path)


def test_a_row_appended_after_a_kill_does_not_eat_the_cut_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "lo')
    run.append_jsonl(path, {"step": 1})
    assert run.read_jsonl(path) == [{"step": 0}, {"step": 1}]


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    run.write_json(path, {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        run.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_folder_that_is_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"taken: can't write to this folder.*--out"):
        run.output_folder(tmp_path / "taken")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_refused_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="can't write"):
        run.output_folder(tmp_path / "new")


def test_a_whole_folder_replaces_the_old_one_at_once(tmp_path: Path) -> None:
    target = tmp_path / "step_3"
    for content in ("old", "new"):
        with run.whole_folder(target) as folder:
            (folder / "weights").write_text(content)
            assert not (target / "weights").exists() or (target / "weights").read_text() == "old"
    assert (target / "weights").read_text() == "new"
    assert os.listdir(tmp_path) == ["step_3"]


def test_a_folder_whose_filling_fails_never_appears(tmp_path: Path) -> None:
    def fill() -> None:
        with run.whole_folder(tmp_path / "step_3") as folder:
            (folder / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert os.listdir(tmp_path) == []


def test_provenance_names_versions_and_command() -> None:
    found = run.provenance(["train", "--out", "x"])
    assert found["command"] == "train --out x"
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    json.dumps(found, allow_nan=False)


def test_an_installed_copy_does_not_claim_the_commit_of_a_repository_around_it() -> None:
    inside = Path(run.__file__).resolve().parent
    if (inside.parent / ".git").exists():  # a clone, not an unpacked archive
        assert run._git(inside.parent, "rev-parse", "HEAD")
    assert run._git(inside, "rev-parse", "HEAD") is None
