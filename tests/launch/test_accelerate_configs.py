from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from newtonrewards.core.errors import NewtonError
from newtonrewards.training.recipe import TrainRecipe
from newtonrewards.training.strategies import (
    ENVIRONMENT,
    OFFLOAD,
    REFUSED,
    STRATEGIES,
    Strategy,
    choose,
    launched,
)

FOLDER = Path(__file__).resolve().parents[2] / "launch" / "accelerate"
EXPECTED = {
    "cpu": (DistributedType.NO, True, 1),
    "one_gpu": (DistributedType.NO, False, 1),
    "multi_gpu": (DistributedType.MULTI_GPU, False, 8),
    "fsdp2": (DistributedType.FSDP, False, 8),
    "zero1": (DistributedType.DEEPSPEED, False, 8),
    "zero2": (DistributedType.DEEPSPEED, False, 8),
    "zero3": (DistributedType.DEEPSPEED, False, 8),
}


def test_every_file_is_known_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it_and_finds_what_its_name_says(name: str) -> None:
    """Accelerate's own class refuses unknown keys."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type, config.use_cpu, config.num_processes) == EXPECTED[name]
    assert (config.deepspeed_config or {}).get("zero_stage") == (int(name[-1]) if name.startswith("zero") else None)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "ddp"])
def test_a_file_tells_the_processes_what_the_option_tells_them(name: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` with the file and `--strategy` with the name are one thing."""
    arguments = ["--config_file", str(FOLDER / f"{name}.yaml"), "-m", "newtonrewards.training.train"]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    parsed.deepspeed_fields_from_accelerate_config = ""  # names only, which accelerate adds later
    told = prepare_multi_gpu_env(parsed) if name == "fsdp2" else prepare_deepspeed_cmd_env(parsed)[1]
    assert ENVIRONMENT[name].items() <= told.items()
    for key, (usual, _) in REFUSED.items():
        assert told.get(key, usual).lower() == usual
    for key, value in told.items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)
    assert launched() == name


RECIPE = {
    "model": {"name": "embedded", "path": "m", "lora_rank": 2},
    "data": {"clips": "c"},
    "stages": [{"objective": "sft", "steps": 1}],
}
REWARD = {"objective": "reward", "steps": 1, "reward": {"terms": {"mass/paired": {}}}}
MUON = {"objective": "sft", "steps": 1, "optimiser": {"name": "muon"}}


@pytest.mark.parametrize(
    ("strategy", "stage", "told", "reason"),
    [
        ("zero3", REWARD, {}, r"stages\[1\]: the reward's gradient.*Use --strategy ddp or fsdp2 or zero1 or zero2"),
        ("fsdp2", MUON, {}, r"muon looks at whole matrices, which fsdp2 cuts.*Use --strategy ddp\."),
        ("zero2", MUON, {"LOCAL_RANK": None}, "zero2 needs a launcher, also for one process"),
        ("ddp", MUON, {"ACCELERATE_USE_DEEPSPEED": "true"}, "the launcher was set up for zero2"),
        (None, MUON, {"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1 is not offered"),
        (
            None,
            MUON,
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"},
            "ZeRO stage 0 is not",
        ),
        (None, MUON, {"FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS=true is not offered"),
        (None, MUON, {OFFLOAD: "nvme"}, "=nvme is not offered.*Use cpu or none"),
    ],
)
def test_what_nobody_has_run_is_refused(
    strategy: Strategy | None,
    stage: dict[str, object],
    told: dict[str, str | None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = TrainRecipe.model_validate({**RECIPE, "stages": [*RECIPE["stages"], stage]})
    for name, value in {"LOCAL_RANK": "0", **told}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(NewtonError, match=reason):
        choose(strategy, recipe)


def test_a_misspelt_key_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "cpu.yaml"
    path.write_text((FOLDER / "cpu.yaml").read_text() + "num_proceses: 2\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(path))
