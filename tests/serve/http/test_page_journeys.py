"""The web page with pictures, clips and images, in a real browser, on the real server with a small random model."""

import httpx
import numpy as np
import pytest
from browser import CHROMIUM, PATIENCE_MS, open_page, the_video
from playwright.sync_api import Page, expect
from running_server import Server

from cosmos3_models.media.mp4 import encode_video
from cosmos3_models.media.pictures import encode_picture

PICTURE = encode_picture(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8), "png")
SMALL = {"Width": "96", "Height": "64", "Frames": "9", "Steps": "2"}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def fill(page: Page, prompt: str, settings: dict[str, str]) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for label, value in settings.items():
        page.get_by_role("spinbutton", name=label).fill(value)


def make(page: Page, button: str, prompt: str) -> None:
    """Press the button and wait for the video."""
    page.get_by_role("button", name=button).click()
    expect(page.locator("#shown-prompt")).to_have_text(prompt, timeout=PATIENCE_MS)


def newest(server: Server) -> dict[str, object]:
    (video,) = httpx.get(f"{server.url}/v1/videos?limit=1", timeout=60).json()["data"]
    return dict(video)


def test_a_picture_becomes_a_video_that_is_continued_and_made_again(server: Server, page: Page) -> None:
    open_page(page, server.url)
    fill(page, "from a picture", SMALL)
    page.set_input_files("#file", {"name": "ball.png", "mimeType": "image/png", "buffer": PICTURE})
    expect(page.locator("#look img")).to_be_visible()
    make(page, "Make the video", "from a picture")
    assert the_video(page) == [pytest.approx(9 / 24, abs=0.1), 96]
    expect(page.locator("#facts")).to_contain_text("from a picture")
    reference = newest(server)["input_reference"]
    assert isinstance(reference, dict)
    assert (reference["kind"], reference["width"], reference["height"]) == ("image", 120, 80)

    page.get_by_role("button", name="Continue this video").click()
    page.get_by_label("Prompt", exact=True).fill("and on it goes")
    page.get_by_label("New seconds").fill("0.5")
    make(page, "Continue the video", "and on it goes")
    length, width = the_video(page)
    assert width == 96
    assert length > 9 / 24 + 0.3
    expect(page.locator("#facts")).to_contain_text("continues a video")

    page.get_by_role("listitem").filter(has_text="from a picture").first.get_by_role("button").first.click()
    page.get_by_role("button", name="Again with another prompt").click()
    page.get_by_label("Prompt", exact=True).fill("once more")
    make(page, "Make it again", "once more")
    assert the_video(page) == [pytest.approx(9 / 24, abs=0.1), 96]
    again = newest(server)
    assert again["input_reference"] == reference, "the same picture"
    assert str(again["remixed_from_video_id"]).startswith("video_")


def test_a_damaged_file_is_refused_in_the_servers_words(server: Server, page: Page) -> None:
    open_page(page, server.url)
    fill(page, "from half a picture", SMALL)
    page.set_input_files("#file", {"name": "half.png", "mimeType": "image/png", "buffer": PICTURE[:-2000]})
    page.get_by_role("button", name="Make the video").click()
    expect(page.locator("#zone-error")).to_contain_text("input_reference: got", timeout=PATIENCE_MS)
    expect(page.locator("#shown-prompt")).not_to_have_text("from half a picture")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#zone-error")).to_be_empty()


def test_the_end_of_a_clip_starts_a_video(server: Server, page: Page) -> None:
    open_page(page, server.url)
    clip = encode_video(np.zeros((25, 64, 96, 3), np.uint8), None, 24, 48_000)
    fill(page, "from a clip", SMALL)
    page.set_input_files("#file", {"name": "ball.mp4", "mimeType": "video/mp4", "buffer": clip})
    page.get_by_text("More settings").click()
    page.get_by_label("Begin with").select_option("last")
    make(page, "Make the video", "from a clip")
    the_video(page)
    assert newest(server)["condition_video_keep"] == "last"


def test_an_image_is_made_and_shown(server: Server, page: Page) -> None:
    open_page(page, server.url)
    page.get_by_role("button", name="Image", exact=True).click()
    fill(page, "an image", {name: value for name, value in SMALL.items() if name != "Frames"})
    make(page, "Make the image", "an image")
    image = page.locator("#screen img")
    expect(image).to_be_visible(timeout=PATIENCE_MS)
    assert image.evaluate("async image => { await image.decode(); return image.naturalWidth }") == 96
    tile = page.get_by_role("listitem").filter(has_text="an image").first
    expect(tile.locator("img")).to_be_visible(timeout=PATIENCE_MS)
    expect(tile).to_contain_text("image")
