from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).resolve().parents[2] / "launch" / "accelerate"
EXPECTED = {
    "cpu": (DistributedType.NO, True, 1),
    "one_gpu": (DistributedType.NO, False, 1),
    "multi_gpu": (DistributedType.MULTI_GPU, False, 8),
    "zero2": (DistributedType.DEEPSPEED, False, 8),
}


def test_every_file_is_known_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it_and_finds_what_its_name_says(name: str) -> None:
    """Accelerate's own class refuses unknown keys."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type, config.use_cpu, config.num_processes) == EXPECTED[name]
    assert (config.deepspeed_config or {}).get("zero_stage") == (2 if name == "zero2" else None)


def test_a_misspelt_key_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "cpu.yaml"
    path.write_text((FOLDER / "cpu.yaml").read_text() + "num_proceses: 2\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(path))
