"""The page of scored videos, opened from the file system in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from newtonrewards.core.video import write_video
from newtonrewards.eval import score
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# fmt: off
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom",
]
# fmt: on
# Names that are markup, an address with a query and a fragment, or markup of the terminal's.
NAMES = ["a <img src=x onerror=wrong()> &lt;.mp4", "b #1?x=50%25.mp4", "c [red][bold].mp4", "d.mp4"]

# What a reader does and sees: clicks on a column, twice, and lets the films load.
PROBE = """
<script>
addEventListener("load", async () => {
  const rows = () => [...document.querySelectorAll("#all tbody tr")].map(row => row.children[0].innerText.trim());
  const films = () => [...document.querySelectorAll("section h3")].map(head => head.innerText);
  const button = [...document.querySelectorAll("#all thead button")].find(one => one.innerText === "score");
  const seen = {first: rows(), injected: document.querySelectorAll("#all img, #all b, h3 img").length};
  for (const way of ["up", "down"]) {
    button.click();
    const sign = button.closest("th").getAttribute("aria-sort");
    const values = [...document.querySelectorAll("#all tbody tr")].map(row => row.children[2].dataset.v);
    seen[way] = {sign, rows: rows(), films: films(), values};
  }
  seen.films = await Promise.all([...document.querySelectorAll("video")].map(film => new Promise(done => {
    const told = () => done({width: film.videoWidth, seconds: film.duration, error: film.error && film.error.message});
    film.addEventListener("loadeddata", told); film.addEventListener("error", told);
    film.load();
  })));
  seen.charts = document.querySelectorAll("section svg").length;
  seen.fetched = performance.getEntriesByType("resource").map(entry => entry.name);
  const note = document.createElement("pre");
  note.id = "probe"; note.textContent = JSON.stringify(seen); document.body.append(note);
});
</script>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scored videos, one that can't be read, and their page."""
    root = tmp_path_factory.mktemp("page")
    (root / "videos").mkdir()
    for number, name in enumerate(NAMES[:-1]):
        write_video(root / "videos" / name, render(sample_scene(5, (2, 10, 6)[number], split="val")).frames, 20.0)
    (root / "videos" / NAMES[-1]).write_text("no video")
    command = [str(root / "videos"), "--flow", "none", "--workers", "0", "--out", str(root / "out")]
    assert score.main(command) == 1
    return root / "out"


@pytest.fixture(scope="module")
def opened(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, str]]:
    """Loads a page of the folder: what its document became, and what the browser logged."""

    def load(name: str) -> tuple[str, str]:
        profile = tmp_path_factory.mktemp("profile")
        command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", (folder / name).as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, done.stderr

    return load


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_the_page_works_from_the_file_system(folder: Path, opened: Callable[[str], tuple[str, str]]) -> None:
    page = (folder / "report.html").read_text()
    (folder / "probe.html").write_text(page.replace("</body>", PROBE + "</body>"))
    document, log = opened("probe.html")
    found = re.search(r'<pre id="probe">(.*?)</pre>', document, re.DOTALL)
    assert found, document[-2000:] + log[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert seen["first"] == NAMES
    assert seen["injected"] == 0
    assert seen["charts"] >= 4 * 3
    assert len(seen["films"]) == 3
    for film in seen["films"]:
        assert film["error"] is None
        assert film["width"] >= 240
        assert film["seconds"] > 0.5
    for way, sign in (("up", 1), ("down", -1)):
        assert seen[way]["sign"] == ("ascending" if sign == 1 else "descending")
        assert seen[way]["rows"][-1] == NAMES[-1]  # what has no score comes last either way
        values = [sign * float(value) for value in seen[way]["values"][:-1]]
        assert values == sorted(values) and len(values) == 3
        assert [head.split(": ")[0] for head in seen[way]["films"]] == seen[way]["rows"]
    assert all(address.startswith("file://") for address in seen["fetched"])
    assert "CONSOLE" not in log


def test_the_page_names_its_files_and_asks_for_no_others(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert len(sources) == 3
    assert all((folder / unquote(html.unescape(source))).is_file() for source in sources)
    assert "http" not in re.sub(r'xmlns="http://www.w3.org/2000/svg"', "", page)
    assert ">-0.00<" not in page
