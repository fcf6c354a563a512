"""The demo's figures in the documents and the command that measures them again are one."""

from pathlib import Path

import httpx
import pytest
from paths import ROOT
from running_server import Server

from benchmarks import readme_figures
from benchmarks.machine import Machine
from benchmarks.readme_figures import FIGURES, Place, of_library, of_requests, readme_body, save, saved, table

PAGE = ROOT / "docs/figures.md"
SMALL = {"prompt": "x", "size": "96x64", "num_frames": 9, "num_inference_steps": 4, "seed": 1}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_page_has_the_table_of_the_saved_figures() -> None:
    assert table() in PAGE.read_text()


def test_a_saved_measurement_becomes_the_pages_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "figures.md"
    page.write_text(PAGE.read_text())
    monkeypatch.setattr(readme_figures, "PAGE", page)
    monkeypatch.setattr(readme_figures, "OURS", tmp_path / "figures.json")
    place, seconds = Place(Machine("A CPU", 8, "AVX2", "9.9"), 3, 0.2), dict.fromkeys(FIGURES, 1.25)
    save(place, seconds)
    assert saved() == (place, seconds)
    assert "| figure | A CPU, 8 cores, AVX2, torch 9.9; median of 3; load before 0.2 |" in page.read_text()
    other = [line for line in page.read_text().splitlines() if line not in table().splitlines()]
    assert set(other) <= set(PAGE.read_text().splitlines())


def test_this_machine_is_named() -> None:
    here = Machine.here()
    assert here.cpu
    assert here.cores >= 1
    assert here.instructions


def test_every_figure_is_measured(server: Server, tmp_path: Path) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        seconds = of_requests(client, SMALL, 3)
    assert {*seconds, "start", "library"} == set(FIGURES)
    assert seconds["curl"] == pytest.approx(seconds["denoise"] + seconds["decode"] + seconds["rest"])
    assert min(seconds.values()) > 0
    assert of_library(readme_body(), tmp_path / "video.mp4") > 1
    assert (tmp_path / "video.mp4").stat().st_size > 10_000
