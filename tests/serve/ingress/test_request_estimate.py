"""How long a request would take, asked before it is sent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_api import LocalClient, LocalIngress, local_client

from serve.app import AppArgs

WIDE = {"size": "1280x720", "num_frames": 33}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[LocalClient]:
    with local_client(tmp_path) as opened:
        yield opened


def estimate(client: LocalClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/videos/estimate", json={"prompt": "x"} | fields)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def test_nothing_is_known_before_a_video_has_finished_but_the_work(client: LocalClient) -> None:
    assert estimate(client) == {
        "object": "video.estimate",
        "eta_s": None,
        "queue_position": 1,
        "relative_work": 1,
    }
    assert estimate(client, num_inference_steps=8)["relative_work"] < 1
    assert client.get("/v1/videos").json()["data"] == []


def test_it_follows_the_cost_model_and_the_queue(client: LocalClient) -> None:
    client.submit()
    client.call(client.service.finish)
    alone, half = estimate(client), estimate(client, num_inference_steps=8)
    assert alone["queue_position"] == 1
    assert 0 < half["eta_s"] < alone["eta_s"] < 10
    client.submit()
    behind = estimate(client)
    assert behind["queue_position"] == 2
    assert behind["eta_s"] > alone["eta_s"] + 0.5


def test_a_far_larger_video_has_no_estimate_but_its_work(client: LocalClient) -> None:
    client.submit()
    client.call(client.service.finish)
    wide = estimate(client, **WIDE)
    assert wide["eta_s"] is None
    assert wide["relative_work"] > 100


def test_what_would_be_refused_is_refused(client: LocalClient) -> None:
    response = client.post("/v1/videos/estimate", json={"prompt": "x", "num_frames": 10})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "num_frames"


def test_the_demos_card_says_how_to_prompt_it(client: LocalClient) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert "yellow" in card["guide"]["topics"]["colours"]
    assert {"red", "bounces"} <= set(card["guide"]["words"])
    assert set(card["guide"]["fixed_fields"]) < set(card["defaults"])


def test_another_checkpoints_card_says_nothing_of_prompts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    args = AppArgs(checkpoint=str(tiny_checkpoint), data_dir=str(tmp_path / "data"))
    (card,) = LocalIngress(args).model_cards()
    assert card["guide"] is None
