from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from newtonrewards.core.errors import RecipeError
from newtonrewards.core.recipe import Config, load, validate


class Sampling(Config):
    guidance_scale: float = 1.0
    num_inference_steps: int = Field(8, ge=1)


class Stage(Config):
    lr: float
    sampling: Sampling = Sampling()


class Recipe(Config):
    seed: int = 0
    stages: tuple[Stage, ...] = ()


TEXT = "seed: 3\nstages:\n  - {lr: 1.0e-4}\n  - {lr: 1.0e-5, sampling: {guidance_scale: 2.0}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "reward.yaml"
    path.write_text(TEXT)
    return path


def test_a_recipe_is_read_typed_and_frozen(path: Path) -> None:
    recipe = load(Recipe, path)
    assert recipe.seed == 3
    assert [stage.sampling.guidance_scale for stage in recipe.stages] == [1.0, 2.0]
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 4  # type: ignore[misc]


def test_overrides_reach_into_lists_and_make_what_is_missing(path: Path) -> None:
    changes = ["stages.1.lr=2e-3", "seed=9", "stages.0.sampling.num_inference_steps=4"]
    recipe = load(Recipe, path, changes)
    assert recipe.seed == 9
    assert recipe.stages[1].lr == 2e-3
    assert recipe.stages[0].sampling.num_inference_steps == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sead: 3", "unknown key 'sead'. Did you mean 'seed'\\?"),
        ("stages: [{lr: 1, sampling: {guidence_scale: 2}}]", "'guidence_scale'. Did you mean 'guidance_scale'\\?"),
        ("stages: [{lr: 1, sampling: {guidence_scale: 2}}]", "stages\\[0\\].sampling: unknown"),
        ("stages: [{lr: fast}]", "stages\\[0\\].lr: .*got 'fast'"),
        ("stages: [{}]", "stages\\[0\\].lr: field required"),
        ("stages: [{lr: 1, sampling: {num_inference_steps: 0}}]", "greater than or equal to 1"),
        ("- 3", "a recipe is a mapping"),
        ("seed: [", "not valid YAML"),
        ("zzzzz: 1", "unknown key 'zzzzz'"),
        ("seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_explained_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words) as caught:
        load(Recipe, path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_names_the_one_that_was_meant(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"can't read the recipe.*Did you mean '.*reward\.yaml'"):
        load(Recipe, path.with_name("rewards.yaml"))


def test_a_recipe_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "video.yaml"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(RecipeError, match=r"video\.yaml"):
        load(Recipe, path)


@pytest.mark.parametrize(
    "override", ["seed", "=3", "stages.7.lr=1", "stages.x.lr=1", "seed.inner=1", "seed=[", "seed=x"]
)
def test_an_override_that_leads_nowhere_is_an_error(path: Path, override: str) -> None:
    with pytest.raises(RecipeError):
        load(Recipe, path, [override])


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**9), 10**9))
def test_numbers_survive_the_way_through_an_override(lr: float, seed: int) -> None:
    class Flat(Config):
        lr: float
        seed: int

    from newtonrewards.core.recipe import _value

    recipe = validate(Flat, {"lr": _value(repr(lr)), "seed": _value(str(seed))}, where="test")
    assert recipe.lr == lr
    assert recipe.seed == seed
