"""One list of stage names: nothing outside the package's Python code may name a stage that does not exist."""

import json
import re
from pathlib import Path

import pytest
from paths import ROOT

from serve.graph.graph import Stages
from serve.graph.stage_names import AFTER_DENOISER, DENOISER, MODEL_STAGES, OPTIONAL_STAGES, REPORTED, TIMED
from serve.jobs.records import LAST_EVENT, QUEUED_EVENT, STAGE_EVENTS

PAGE = ROOT / "serve/http/pages/screen.js"
CLIENTS = sorted((ROOT / "serve").glob("cli/*.py")) + sorted((ROOT / "serve").glob("client/*.py"))
COMPARED = re.compile(r"""stage\W{1,5}===?\s*"(\w+)\"""")


def test_the_model_stages_are_the_handles_of_the_graph() -> None:
    assert Stages._fields == (*MODEL_STAGES, *OPTIONAL_STAGES)
    assert set(Stages._field_defaults) == set(OPTIONAL_STAGES), "a server may lack these alone"


def test_every_reported_stage_has_its_time_in_the_record() -> None:
    assert set(REPORTED) < set(TIMED)


def test_the_events_of_the_stages_are_numbered_after_every_step_and_before_the_end() -> None:
    assert list(STAGE_EVENTS) == list(AFTER_DENOISER), "the denoiser's events are its steps"
    assert list(STAGE_EVENTS.values()) == [500, 501], "a client may resume after an update of the server"
    assert max(STAGE_EVENTS.values()) < QUEUED_EVENT < LAST_EVENT


def test_the_page_has_a_text_for_every_reported_stage() -> None:
    (names,) = re.findall(r"^const STAGES = \{(.*)\};$", PAGE.read_text(), re.MULTILINE)
    assert tuple(re.findall(r"(\w+): ", names)) == REPORTED


@pytest.mark.parametrize("path", [PAGE, *CLIENTS], ids=lambda path: path.name)
def test_clients_compare_with_stages_that_exist(path: Path) -> None:
    assert set(COMPARED.findall(path.read_text())) <= {*REPORTED, "queued"}


def test_the_page_and_the_command_line_tell_the_steps_of_the_denoiser() -> None:
    assert DENOISER in COMPARED.findall(PAGE.read_text())
    assert any(DENOISER in COMPARED.findall(path.read_text()) for path in CLIENTS)


def test_the_dashboard_selects_stages_that_are_timed() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    selected = re.findall(r'stage="(\w+)"', expressions)
    assert selected
    assert set(selected) <= set(TIMED)
