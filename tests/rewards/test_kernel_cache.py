"""Processes that compile kernels at once leave a cache in which each finds its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# A process that looks windows of one radius up, and checks them. Where it writes numba's cache it waits for the other
# one, so that both have read the index before either adds to it, and the first to add is the last to write its code.
LOOK_UP = """
import sys, time
from pathlib import Path
import torch
from numba.core.caching import IndexDataCacheFile as Cache
from newtonrewards.rewards import correlation

radius, folder = int(sys.argv[1]), Path(sys.argv[2])

def wait_for(name):
    deadline = time.monotonic() + 3
    while not (folder / name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)

def slowly(function, before, after, awaited):
    def run(self, *arguments):
        mine = "read_windows" in self._index_name
        if mine:
            (folder / f"{radius} {before}").touch()
            if radius in awaited:
                wait_for(awaited[radius])
        function(self, *arguments)
        if mine:
            (folder / f"{radius} {after}").touch()
    return run

Cache._save_index = slowly(Cache._save_index, "read", "indexed", {3: "4 read", 4: "3 indexed"})
Cache._save_data = slowly(Cache._save_data, "indexed", "wrote", {3: "4 wrote"})

torch.manual_seed(0)
volume, centres = torch.randn(64, 84), 8 * torch.rand(64, 2)
levels = torch.tensor([[8, 8, 0], [4, 4, 64], [2, 2, 80]])
(folder / f"{radius} here").touch()
wait_for(f"{7 - radius} here")
found = correlation._read_in_threads(volume, centres, levels, radius)
torch.testing.assert_close(found, correlation.read(volume, centres, levels, radius), rtol=0, atol=1e-5)
"""


def test_two_processes_that_compile_at_once_leave_each_its_own_kernel(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", LOOK_UP, str(radius), str(tmp_path)] for radius in (3, 4)]
    at_once = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait(timeout=300) for process in at_once] == [0, 0]
    assert list(tmp_path.glob("cache/**/*read_windows*.nbc")), "nothing was kept"
    for command in commands:  # what was kept is used now
        subprocess.run(command, env=environment, check=True, timeout=300)
