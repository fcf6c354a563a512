"""The web page with a picture or clip, an earlier video, or an image to make; in a real browser, without a model."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, PATIENCE_MS, open_page, the_video
from fake_server import FakeService, running
from fastapi import FastAPI, Request
from playwright.sync_api import FileChooser, FilePayload, Locator, Page, Route, expect
from running_server import free_port

from cosmos3_models.media.formats import EXPECTED
from cosmos3_models.media.mp4 import encode_video
from cosmos3_models.media.natural_size import natural_size
from cosmos3_models.media.pictures import encode_picture
from serve.http.routes import create_api
from serve.inputs.uploads import MAX_UPLOAD_BYTES

FIELD = re.compile(rb'name="(\w+)"(?:; filename="([^"]*)")?[^\r]*\r\n(?:[^\r]+\r\n)*\r\n(.*?)\r\n--', re.DOTALL)
DROP = """([name, type, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, { type }));
    const options = { dataTransfer: data, bubbles: true, cancelable: true };
    const [over, drop] = ["dragover", "drop"].map((type) => new DragEvent(type, options));
    if (!document.body.dispatchEvent(over)) document.body.dispatchEvent(drop);
}"""
PASTE = """([name, type, bytes, text]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, { type }));
    if (text) data.setData("text/plain", text);
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, cancelable: true }));
}"""

PICTURE_SIZES = [(side, other) for side in (1, 15, 16, 100, 639, 1000, 4000) for other in (1, 16, 77, 480, 1000, 3000)]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def picture(width: int, height: int, name: str = "ball.png") -> FilePayload:
    return {
        "name": name,
        "mimeType": "image/png",
        "buffer": encode_picture(np.full((height, width, 3), 90, np.uint8), "png"),
    }


def clip(width: int = 64, height: int = 48) -> FilePayload:
    frames = np.zeros((25, height, width, 3), np.uint8)
    return {"name": "ball.mp4", "mimeType": "video/mp4", "buffer": encode_video(frames, None, 24, 48_000)}


def of_kind(kind: str, data: bytes = b"%PDF-1.7") -> FilePayload:
    return {"name": "file", "mimeType": kind, "buffer": data}


def arguments(file: FilePayload) -> list[Any]:
    return [file["name"], file["mimeType"], list(file["buffer"])]


@pytest.fixture
def service(tmp_path: Path) -> FakeService:
    return FakeService(tmp_path)


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    with running(create_api(service), free_port()) as url:  # type: ignore[arg-type]
        yield url


@pytest.fixture
def sent(page: Page, service: FakeService) -> list[tuple[str, dict[str, Any]]]:
    """The path and fields of every request for a video, which all get the server's one video."""
    requests: list[tuple[str, dict[str, Any]]] = []

    def answer(route: Route) -> None:
        request = route.request
        if request.method != "POST" or request.url.endswith("estimate"):
            return route.continue_()
        body = request.post_data_buffer or b""
        if request.headers["content-type"] == "application/json":
            fields = json.loads(body)
        else:
            fields = {name.decode(): file.decode() or value.decode() for name, file, value in FIELD.findall(body)}
        requests.append((request.url.partition("/v1/")[2], fields))
        return route.fulfill(json=service.videos.video.model_dump())

    page.route("**/v1/videos**", answer)
    page.route("**/v1/videos/**", answer)
    return requests


def expect_text(locator: Locator, text: str) -> None:
    """Expect a text that contains this one, with the page's multiplication signs and apostrophes."""
    text = re.sub(r"(?<=\d)x(?=\d)", "\N{MULTIPLICATION SIGN}", text).replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")
    expect(locator).to_contain_text(text, timeout=PATIENCE_MS)


def facts(page: Page) -> Locator:
    """What the page says of the picture, clip or earlier video in the form."""
    return page.locator("#zone-facts")


def submit(page: Page, button: str = "Make the video", prompt: str | None = "a ball") -> None:
    if prompt is not None:
        page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name=button, exact=True).click()
    expect(page.locator("#make")).to_be_enabled()


def test_a_dropped_picture_is_shown_and_goes_with_the_request(page: Page, url: str, sent: list[Any]) -> None:
    open_page(page, url)
    page.evaluate(DROP, arguments(picture(400, 300)))
    expect(page.locator("#look img")).to_be_visible()
    expect_text(facts(page), "ball.png · 1 kB · 400x300")
    expect_text(facts(page), "The video will be 1104x832, the picture's own ratio. It shows the whole picture.")
    expect(page.get_by_label("Width")).to_have_attribute("placeholder", "1104")
    submit(page)
    ((path, fields),) = sent
    assert path == "videos"
    assert fields["input_reference"] == "ball.png"
    assert fields["prompt"] == "a ball"
    assert not {"width", "height", "condition_frame_indexes_vision", "condition_video_keep"} & set(fields)
    expect_text(facts(page), "ball.png")


def test_the_part_of_a_picture_that_a_size_leaves_is_marked(page: Page, url: str, sent: list[Any]) -> None:
    open_page(page, url)
    page.get_by_label("Width").fill("512")
    page.get_by_label("Height").fill("512")
    page.set_input_files("#file", picture(160, 80))
    expect_text(facts(page), "The video will be 512x512. It shows the part in the frame, 50 % of the picture.")
    whole, kept = page.locator("#look img").bounding_box(), page.locator(".kept").bounding_box()
    assert whole is not None
    assert kept is not None
    assert kept["width"] == pytest.approx(kept["height"], abs=1)
    assert kept["x"] + kept["width"] / 2 == pytest.approx(whole["x"] + whole["width"] / 2, abs=1)
    submit(page)
    assert sent[0][1]["width"] == "512"
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#look img")).to_have_count(0)
    expect(page.get_by_role("button", name="Choose a picture or clip")).to_be_focused()
    submit(page)
    assert "input_reference" not in sent[1][1]


def test_the_page_knows_which_size_the_server_will_choose(page: Page, url: str) -> None:
    open_page(page, url)
    for area in (1280 * 720, 192 * 192, 256):
        sizes = [(width, height, area) for width, height in PICTURE_SIZES]
        found = page.evaluate("all => all.map((one) => Object.values(naturalSize(...one)))", sizes)
        assert [tuple(size) for size in found] == [natural_size(*one) for one in sizes]


def test_a_removed_picture_leaves_the_default_size(page: Page, url: str) -> None:
    open_page(page, url)
    page.set_input_files("#file", picture(160, 80))
    expect(page.get_by_label("Width")).to_have_value("")
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_label("Width")).to_have_value("1280")


def test_the_end_of_a_clip_and_its_latent_frames_can_be_chosen(page: Page, url: str, sent: list[Any]) -> None:
    open_page(page, url)
    latents, keep = page.get_by_label("Latent frames kept"), page.get_by_label("Begin with")
    page.get_by_text("More settings").click()
    expect(latents).to_be_hidden()
    page.set_input_files("#file", picture(64, 48))
    expect(latents).to_be_visible()
    expect(keep).to_be_hidden()
    page.set_input_files("#file", clip())
    expect_text(facts(page), "It begins with the clip's first 5 frames.")
    keep.select_option("last")
    latents.fill("0,1,2")
    expect_text(facts(page), "It begins with the clip's last 9 frames.")
    page.wait_for_function("document.querySelector('#look video').currentTime > 0.9")
    submit(page)
    fields = sent[0][1]
    assert fields["input_reference"] == "ball.mp4"
    assert (fields["condition_frame_indexes_vision"], fields["condition_video_keep"]) == ("0,1,2", "last")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([of_kind("application/pdf")], f"input_reference: got 'application/pdf', expected {EXPECTED}, because other"),
        ([picture(16, 16), picture(32, 32)], "input_reference: got two files, expected one picture or one clip"),
    ],
    ids=["a document", "two files"],
)
def test_what_is_no_picture_is_refused_before_it_is_sent(
    page: Page, url: str, sent: list[Any], files: list[FilePayload], words: str
) -> None:
    open_page(page, url)
    page.evaluate("document.querySelector('#file').multiple = true")
    page.set_input_files("#file", files)
    expect(page.locator("#zone-error")).to_contain_text(words)
    expect(page.locator("#look")).to_be_empty()
    submit(page)
    assert "input_reference" not in sent[0][1]


def test_a_file_over_the_limit_is_refused_before_it_is_sent(page: Page, url: str) -> None:
    open_page(page, url)
    take = "size => takeFiles([new File(['0000ftypisom', new Uint8Array(size - 12)], 'a.mp4')])"
    page.evaluate(take, MAX_UPLOAD_BYTES)
    expect(facts(page)).to_contain_text("67.1 MB")
    page.evaluate(take, MAX_UPLOAD_BYTES + 1)
    words = f"input_reference: got a file of more than {MAX_UPLOAD_BYTES >> 20} MiB, expected at most that"
    expect(page.locator("#zone-error")).to_have_text(words)


def test_the_servers_refusal_of_a_picture_is_shown_at_the_picture(page: Page, url: str) -> None:
    open_page(page, url)
    error = {"message": "input_reference: got no picture", "type": "invalid_request_error", "param": "input_reference"}
    page.route("**/v1/videos", lambda route: route.fulfill(status=400, json={"error": error | {"code": "x"}}))
    page.set_input_files("#file", of_kind("image/png", b"\x89PNG\r\n\x1a\n and no more"))
    expect_text(facts(page), "This browser cannot show the file. The server will check it.")
    submit(page)
    expect(page.locator("#zone-error")).to_have_text("input_reference: got no picture")
    expect(page.locator("#form-error")).to_be_empty()
    expect(page.get_by_role("button", name="Choose another")).to_be_focused()
    page.set_input_files("#file", picture(64, 48))
    expect(page.locator("#zone-error")).to_be_empty()


def slow(api: FastAPI) -> FastAPI:
    """The same routes, but a body is read so slowly that its upload takes minutes."""

    @api.middleware("http")
    async def read_slowly(request: Request, call_next: Any) -> Any:
        if request.headers.get("content-type", "").startswith("multipart"):
            async for _ in request.stream():
                await asyncio.sleep(0.05)
        return await call_next(request)

    return api


def test_a_large_upload_shows_how_far_it_is_and_can_be_cancelled(page: Page, service: FakeService) -> None:
    with running(slow(create_api(service)), free_port()) as url:  # type: ignore[arg-type]
        open_page(page, url)
        page.evaluate("takeFiles([new File(['0000ftypisom', new Uint8Array(6e7)], 'a.mp4')])")
        page.get_by_label("Prompt", exact=True).fill("x")
        page.get_by_role("button", name="Make the video").click()
        expect(page.locator("#sending-text")).to_have_text(re.compile(r"^Uploading, \d+ %$"), timeout=PATIENCE_MS)
        expect(page.get_by_role("progressbar", name="Upload")).to_be_visible()
        page.get_by_role("button", name="Cancel the upload").click()
        expect(page.locator("#sending")).to_be_hidden()
        expect(page.locator("#make")).to_be_enabled()
        expect(page.get_by_role("alert").filter(has_text=re.compile("."))).to_have_count(0)


def test_a_picture_can_be_pasted_but_text_stays_text(page: Page, url: str) -> None:
    open_page(page, url)
    page.evaluate(PASTE, [*arguments(picture(64, 48, "text.png")), "copied from a document"])
    page.evaluate(PASTE, [*arguments(picture(64, 48, "pasted.png")), ""])
    expect_text(facts(page), "pasted.png")


def test_a_reload_says_which_file_it_did_not_keep(page: Page, url: str) -> None:
    open_page(page, url)
    page.set_input_files("#file", picture(64, 48))
    expect_text(facts(page), "64x48")
    page.reload()
    expect(facts(page)).to_have_text("ball.png was not kept over the reload. Choose it again.")
    expect(page.get_by_label("Width")).to_have_value("1280")


def test_a_finished_video_can_be_continued(page: Page, url: str, sent: list[Any]) -> None:
    open_page(page, url)
    page.get_by_role("button", name="Continue this video").click()
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_focused()
    expect(prompt).to_have_value("kept")
    expect_text(facts(page), "Continues “kept” (48x32 · 0.4 s).")
    expect(page.get_by_label("Width")).to_be_hidden()
    page.get_by_label("New seconds").fill("1.5")
    page.reload()
    expect(page.get_by_label("New seconds")).to_have_value("1.5", timeout=PATIENCE_MS)
    expect(page.locator("#look img")).to_be_visible()
    submit(page, "Continue the video", "and it stops")
    fields = {"video": {"id": "video_1"}, "prompt": "and it stops", "seconds": "1.5", "previews": 3}
    assert sent == [("videos/extensions", fields)]
    expect(page.get_by_label("Width")).to_be_visible()


def test_a_finished_video_can_be_made_again_with_another_prompt(page: Page, url: str, sent: list[Any]) -> None:
    open_page(page, url)
    page.get_by_role("button", name="Again with another prompt").click()
    expect_text(facts(page), "Size, length, seed and all other settings stay the same.")
    page.get_by_role("button", name="Make a new video instead").click()
    expect(page.get_by_label("Width")).to_be_visible()
    page.get_by_role("button", name="Again with another prompt").click()
    submit(page, "Make it again", "a blue ball")
    assert sent == [("videos/video_1/remix", {"prompt": "a blue ball", "previews": 3})]


def test_an_image_is_asked_for_and_shown_as_an_image(
    page: Page, url: str, service: FakeService, sent: list[Any]
) -> None:
    open_page(page, url)
    the_video(page)
    page.set_input_files("#file", picture(64, 48))
    page.get_by_role("button", name="Image", exact=True).click()
    for hidden in ("Frames", "With sound", "Choose another"):
        expect(page.get_by_text(hidden, exact=True)).to_be_hidden()
    expect(page.get_by_label("Width")).to_have_value("1280")
    service.videos.num_frames = 1
    submit(page, "Make the image")
    fields = sent[0][1]
    assert fields["num_frames"] == 1
    assert not {"fps", "generate_sound", "input_reference", "previews"} & set(fields)
    image = page.locator("#screen img")
    expect(image).to_have_attribute("alt", "kept")
    assert image.evaluate("async image => { await image.decode(); return image.naturalWidth }") == 48
    expect_text(page.locator("#facts"), "48x32 · image")
    expect(page.get_by_role("button", name="Continue this video")).to_be_hidden()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "video_1.png"
    assert download.value.path().read_bytes() == encode_picture(np.zeros((32, 48, 3), np.uint8), "png")
    expect(page.get_by_role("listitem").locator("img")).to_be_visible()
    page.get_by_role("button", name="Video", exact=True).click()
    expect(page.get_by_label("Frames", exact=False).first).to_have_value("189")
    expect(page.get_by_role("button", name="Choose another")).to_be_visible()


def test_one_frame_is_an_image_once_it_is_typed(page: Page, url: str) -> None:
    open_page(page, url)
    frames = page.locator("#num_frames")
    frames.fill("1")
    expect(frames).to_be_visible()
    frames.press("Tab")
    expect(page.get_by_role("button", name="Make the image")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Image", exact=True)).to_have_attribute("aria-pressed", "true")


def test_a_model_that_takes_no_pictures_is_not_offered_one(page: Page, url: str, service: FakeService) -> None:
    service.pictures = False
    open_page(page, url)
    page.evaluate(DROP, arguments(picture(64, 48)))
    expect(page.get_by_role("button", name="Again with another prompt")).to_be_visible()
    expect(page.locator("#zone")).to_be_hidden()
    expect(page.get_by_role("button", name="Continue this video")).to_be_hidden()


def test_the_prompt_is_rewritten_only_where_the_server_can(
    page: Page, url: str, service: FakeService, sent: list[Any]
) -> None:
    open_page(page, url)
    choice = page.get_by_label("Rewrite the prompt")
    expect(choice).to_be_hidden()
    submit(page)
    service.prompt_upsampling = True
    open_page(page, url)
    choice.select_option("If possible")
    page.reload()
    expect(choice).to_have_value("true")
    submit(page)
    page.get_by_role("button", name="Again with another prompt").click()
    choice.select_option("Or make no video")
    submit(page, "Make it again", "a blue ball")
    assert [fields.get("prompt_upsampling") for _, fields in sent] == [None, "true", "required"]
    expect(page.locator("#revised")).to_be_hidden()


def test_the_rewritten_prompt_is_shown_as_text_and_so_is_the_reason_why_there_is_none(
    page: Page, url: str, service: FakeService
) -> None:
    service.videos.of_prompt = {"revised_prompt": '{"style": "<b>oil</b>"}', "prompt_upsampling_error": None}
    open_page(page, url)
    page.get_by_text("The rewritten prompt").click()
    expect(page.locator("#revised-prompt")).to_have_text('{"style": "<b>oil</b>"}')
    service.videos.of_prompt = {"revised_prompt": None, "prompt_upsampling_error": "its server answered 500"}
    open_page(page, url)
    expect(page.locator("#not-revised")).to_have_text("its server answered 500")
    expect(page.locator("#revised")).to_be_hidden()


def test_a_picture_is_chosen_by_keyboard_and_fits_a_phone(page: Page, url: str, sent: list[Any]) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    open_page(page, url)
    choosers: list[FileChooser] = []  # listened for before the key stroke, which does not wait
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("typed")
    page.keyboard.press("Tab")
    page.wait_for_timeout(200)
    page.keyboard.press("Enter")
    while not choosers:
        page.wait_for_timeout(50)
    choosers[0].set_files(picture(900, 300, "a picture with a very long name of its own.png"))
    expect_text(facts(page), "900x300")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Remove")).to_be_focused()
    page.keyboard.press("Control+Enter")
    expect(page.locator("#make")).to_be_enabled()
    assert sent[0][1]["prompt"] == "typed"
