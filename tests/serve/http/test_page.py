"""The web page, in a real browser, against the real server and against one that wants a key."""

import asyncio
import re
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import CHROMIUM, PATIENCE_MS, open_page, the_video
from fake_server import FakeService, running
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from local_api import LocalIngress
from playwright.sync_api import Dialog, Page, expect
from running_server import Server, free_port
from starlette.middleware.base import BaseHTTPMiddleware

from cosmos3_models.checkpoint.folder import DEMO
from serve.app import AppArgs
from serve.http.access import Access
from serve.http.pages.routes import assembled
from serve.http.routes import create_api

KEY = "0123456789abcdef"
MARKUP = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
SMALL = {"Width": "96", "Height": "64", "Frames": "9", "Steps": "4"}
ENDLESS = {"Width": "512", "Height": "384", "Frames": "65", "Steps": "200"}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def ask_for(page: Page, prompt: str, settings: dict[str, str]) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for label, value in settings.items():
        page.get_by_role("spinbutton", name=label).fill(value)
    page.get_by_role("button", name="Make the video").click()
    expect(page.locator("#shown-prompt")).to_have_text(prompt, timeout=PATIENCE_MS)


def test_a_video_is_made_played_listed_and_deleted(server: Server, page: Page) -> None:
    open_page(page, server.url)
    page.get_by_label("With sound").check()
    ask_for(page, "a red ball in the page", SMALL)
    assert the_video(page) == [pytest.approx(9 / 24, abs=0.1), 96]
    expect(page.locator("#news")).to_have_text("The video is finished.")
    tile = page.get_by_role("listitem").filter(has_text="a red ball in the page")
    expect(tile.locator("img")).to_be_visible(timeout=PATIENCE_MS)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    (video,) = httpx.get(f"{server.url}/v1/videos?limit=1", timeout=60).json()["data"]
    seed = page.locator("#seed")
    expect(seed).to_have_value("")  # one was drawn
    expect(page.locator("#facts")).to_contain_text(f"seed {video['seed']}")
    page.get_by_role("button", name="Use these settings").click()
    expect(seed).to_have_value(str(video["seed"]))
    content = httpx.get(f"{server.url}/v1/videos/{video['id']}/content", timeout=60).content
    assert download.value.path().read_bytes() == content
    page.once("dialog", Dialog.accept)
    tile.get_by_role("button", name="Delete: a red ball in the page").click()
    expect(tile).to_have_count(0)
    assert httpx.get(f"{server.url}/v1/videos/{video['id']}", timeout=60).status_code == 404


def test_a_preview_is_shown_while_the_video_is_made(server: Server, page: Page) -> None:
    open_page(page, server.url)
    ask_for(page, "a ball before it is made", {"Width": "192", "Height": "128", "Frames": "65", "Steps": "200"})
    preview = page.locator("#screen img.preview")
    expect(preview).to_be_visible(timeout=PATIENCE_MS)
    assert preview.evaluate("async (picture) => { await picture.decode(); return picture.naturalWidth; }") == 4 * 192
    expect(page.locator("#stage")).to_contain_text("Denoising, step")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#screen")).to_have_text("Cancelled.")
    expect(preview).to_have_count(0)


def test_progress_is_shown_until_it_is_cancelled(server: Server, page: Page) -> None:
    open_page(page, server.url)
    ask_for(page, "an endless ball", ENDLESS)
    stage = page.locator("#stage")
    expect(stage).to_contain_text("Denoising, step", timeout=PATIENCE_MS)
    first = stage.text_content()
    expect(stage).not_to_have_text(first or "", timeout=PATIENCE_MS)
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator("#to-go")).to_contain_text("left")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#screen")).to_have_text("Cancelled.")
    expect(page.locator("#news")).to_have_text("Cancelled.")
    assert page.locator("main").aria_snapshot().count("Cancelled.") == 1
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    assert "an endless ball" not in httpx.get(f"{server.url}/v1/videos", timeout=60).text


def test_what_was_typed_and_chosen_survives_a_reload(server: Server, page: Page) -> None:
    open_page(page, server.url)
    page.get_by_label("Prompt", exact=True).fill("half a sent")
    page.get_by_label("Steps").fill("7")
    page.get_by_label("With sound").check()
    page.get_by_text("More settings").click()
    page.get_by_label("Avoid").fill("rain")
    page.reload()
    expect(page.get_by_label("Steps")).to_have_value("7", timeout=PATIENCE_MS)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("half a sent")
    expect(page.get_by_label("With sound")).to_be_checked()
    expect(page.locator("#negative_prompt")).to_have_value("rain")
    expect(page.get_by_label("Frames", exact=False).first).to_have_value("189")


def test_what_was_typed_before_the_server_is_ready_survives_a_reload(page: Page) -> None:
    with running(starting := FastAPI(), free_port()) as url:
        starting.add_api_route("/", lambda: HTMLResponse(assembled("page.html")))
        page.goto(url)
        page.get_by_label("Prompt", exact=True).fill("early")
        page.reload()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("early")


@pytest.mark.parametrize("keys", ["Control+Enter", "Meta+Enter"])
def test_a_key_stroke_in_the_prompt_submits(server: Server, page: Page, keys: str) -> None:
    open_page(page, server.url)
    for label, value in SMALL.items():
        page.get_by_role("spinbutton", name=label).fill(value)
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.press(keys)
    assert prompt.evaluate("it => it.validity.valueMissing"), "an empty form stays where it is"
    expect(page.locator("#shown-prompt")).not_to_have_text(f"by {keys}")
    prompt.fill(f"by {keys}")
    prompt.press(keys)
    expect(page.locator("#shown-prompt")).to_have_text(f"by {keys}", timeout=PATIENCE_MS)
    assert prompt.input_value() == f"by {keys}"
    the_video(page)


def test_markup_in_a_prompt_is_text(server: Server, page: Page) -> None:
    open_page(page, server.url)
    ask_for(page, MARKUP, SMALL)
    the_video(page)
    expect(page.locator("#shown-prompt")).to_have_text(MARKUP)
    expect(page.locator("#list .name").first).to_have_text(MARKUP)
    assert page.title() == "Cosmos3 video"


def test_what_the_server_refuses_is_shown_at_its_field(server: Server, page: Page) -> None:
    open_page(page, server.url)
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill(" ")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").first).to_contain_text("prompt: got ' '")
    expect(prompt).to_be_focused()
    expect(prompt).to_have_attribute("aria-invalid", "true")


def test_the_page_works_by_keyboard_and_fits_a_phone(server: Server, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    open_page(page, server.url)
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("typed")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose a picture or clip")).to_be_focused()
    for value in SMALL.values():
        page.keyboard.press("Tab")
        page.keyboard.type(value)  # a field that Tab reaches has its text selected
    page.keyboard.press("Enter")
    expect(page.locator("#shown-prompt")).to_have_text("typed")
    the_video(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_every_field_and_button_has_a_name(server: Server, page: Page) -> None:
    open_page(page, server.url)
    page.get_by_text("More settings").click()
    for control in page.locator("input, textarea, select, button, a, progress").all():
        name = control.evaluate("it => it.labels?.[0]?.textContent || it.ariaLabel || it.textContent")
        assert name.strip(), control.evaluate("it => it.outerHTML")


def test_the_policy_lets_no_other_script_run(server: Server, page: Page) -> None:
    policy = httpx.get(server.url, timeout=60).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.goto(server.url)
    with pytest.raises(Exception, match=r"Security Policy|unsafe-eval|TrustedScript"):
        page.evaluate("() => { setTimeout('0'); eval('0') }")


@pytest.fixture
def locked_url(tmp_path: Path) -> Iterator[str]:
    """The address of a server that wants a key."""
    service: Any = FakeService(tmp_path)
    with running(create_api(service, Access((KEY,))), free_port()) as url:
        yield url


def test_a_restart_of_the_server_is_outlasted_by_the_stream_and_by_the_download(tmp_path: Path, page: Page) -> None:
    service, port = FakeService(tmp_path), free_port()
    service.videos.status = "in_progress"
    for service.videos.lives in (1, 2):
        api = create_api(service)  # type: ignore[arg-type]
        if service.videos.lives == 2:
            api.add_middleware(NoFilesAtFirst)
        with running(api, port) as url:
            if service.videos.lives == 1:
                page.goto(url)
                expect(page.locator("#stage")).to_have_text("Denoising, step 1 of 35", timeout=PATIENCE_MS)
                continue
            expect(page.locator("#news")).to_have_text("The video is finished.", timeout=PATIENCE_MS)
            assert the_video(page) == [pytest.approx(9 / 24, abs=0.1), 48]
            expect(page.get_by_role("listitem").locator("img")).to_be_visible(timeout=PATIENCE_MS)


class NoFilesAtFirst(BaseHTTPMiddleware):
    """What Serve's proxy answers before it knows its routes, for the first three files."""

    asked = 0

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        if request.url.path.endswith("/content"):
            self.asked += 1
            if self.asked <= 3:
                return PlainTextResponse("Path not found", 404)
        return await call_next(request)


def test_a_stream_that_has_gone_silent_is_opened_again(tmp_path: Path, page: Page) -> None:
    service, port = FakeService(tmp_path), free_port()
    service.videos.status, service.videos.lives = "in_progress", 1
    page.clock.install()
    with running(create_api(service), port) as url:  # type: ignore[arg-type]
        page.goto(url)
        expect(page.locator("#stage")).to_have_text("Denoising, step 1 of 35", timeout=PATIENCE_MS)
        service.videos.lives = 2
        page.clock.fast_forward(46_000)  # the server's own comments come on the real clock, each quarter of a minute
        page.clock.fast_forward(2_000)
        expect(page.locator("#news")).to_have_text("The video is finished.", timeout=10_000)


def test_a_key_is_asked_for_once_and_goes_with_every_request(locked_url: str, page: Page) -> None:
    page.goto(locked_url)
    field = page.get_by_role("textbox", name="API key of this server")
    field.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="does not know this key")).to_be_visible()
    field.fill(KEY)
    page.keyboard.press("Enter")
    assert the_video(page) == [pytest.approx(9 / 24, abs=0.1), 48]
    expect(page.get_by_label("With sound")).to_be_disabled()
    page.reload()
    the_video(page)
    expect(field).to_be_hidden()
    assert KEY not in page.content()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[tuple[str, AppArgs]]:
    """The address and arguments of a server of the demo that never gets to its jobs."""
    args = AppArgs(checkpoint=DEMO, data_dir=str(tmp_path / "data"))
    service = LocalIngress(args)
    with running(create_api(service), free_port()) as url:
        yield url, args
    run(service.videos.table.close())


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread, because playwright's event loop runs in this one."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, coroutine).result()


async def finish_one(args: AppArgs) -> None:
    """Complete the oldest job, as another process would."""
    service = LocalIngress(args)
    await service.finish()
    await service.videos.table.close()


def test_the_demo_shows_what_it_knows_and_warns_of_the_rest(demo: tuple[str, AppArgs], page: Page) -> None:
    page.goto(demo[0])
    prompt, prompt_note, size_note = (page.locator(f"#{name}") for name in ("prompt", "prompt-note", "size-note"))
    expect(page.get_by_label("Steps")).to_have_value("16", timeout=PATIENCE_MS)
    page.get_by_text("What this model knows").click()
    for known in ("pink", "ring / hoop", "on a grey background", "orbits clockwise", "cyan 475 Hz"):
        expect(page.locator("#topics")).to_contain_text(known)
    for example in page.locator("#examples button").all():
        example.click()
        expect(prompt).to_have_value(example.text_content() or "")
        expect(prompt_note).to_be_empty()
    prompt.fill("A red Dragon bounces over the castle.")
    expect(prompt_note).to_contain_text("never trained on: dragon, over, castle.")
    expect(size_note).to_be_empty()
    page.get_by_label("Width").fill("320")
    expect(size_note).to_contain_text(re.compile("trained on 192.192 with 33 frames at 12 per second only"))
    page.reload()
    expect(size_note).to_contain_text(re.compile("192.192"))


def test_another_checkpoint_has_no_vocabulary(server: Server, page: Page) -> None:
    open_page(page, server.url)
    page.get_by_label("Prompt", exact=True).fill("A dragon")
    page.get_by_label("Width").fill("320")
    expect(page.locator("#estimate")).not_to_be_empty()
    for name in ("guide", "prompt-note", "size-note"):
        expect(page.locator(f"#{name}")).to_be_hidden()


def test_the_page_says_how_long_a_video_will_take(demo: tuple[str, AppArgs], page: Page) -> None:
    url, args = demo
    page.goto(url)
    estimate = page.locator("#estimate")
    expect(estimate).to_have_text(re.compile("^No estimate: no video of a similar size has finished on this server.$"))
    httpx.post(f"{url}/v1/videos", json={"prompt": "x"}).raise_for_status()
    run(finish_one(args))
    httpx.post(f"{url}/v1/videos", json={"prompt": "x"}).raise_for_status()
    page.get_by_label("Steps").fill("15")
    expect(estimate).to_have_text(re.compile(r"Will take about \d s, with 1 in the queue before it\."))
    page.get_by_label("Width").fill("1284")
    expect(estimate).to_be_empty()
    page.get_by_label("Width").fill("1280")
    page.get_by_label("Height").fill("720")
    expect(estimate).to_have_text(re.compile(r"^No estimate: .* It is \d\d+0 times the work"))


def test_a_video_of_unknown_hours_is_not_made_without_a_question(demo: tuple[str, AppArgs], page: Page) -> None:
    questions: list[str] = []
    page.goto(demo[0])
    expect(page.get_by_label("Steps")).to_have_value("16", timeout=PATIENCE_MS)
    page.get_by_label("Prompt", exact=True).fill("x")
    page.get_by_label("Width").fill("1280")
    page.get_by_label("Height").fill("720")

    def answer(dialog: Dialog) -> None:
        questions.append(dialog.message)
        dialog.dismiss() if len(questions) == 1 else dialog.accept()

    page.on("dialog", answer)
    make = page.get_by_role("button", name="Make the video")
    for stored in (0, 1):
        make.click()
        expect(make).to_be_enabled()
        expect(page.locator("#stage")).to_have_text("Queued, number 1" if stored else "")
        assert len(httpx.get(f"{demo[0]}/v1/videos").json()["data"]) == stored
    assert [message.startswith("No estimate: ") for message in questions] == [True, True]


@pytest.mark.parametrize(("eta_s", "question"), [(3500.0, None), (7200.0, "Will take about 2.0 h. Make it anyway?")])
def test_a_video_of_hours_is_not_made_without_a_question(
    eta_s: float, question: str | None, tmp_path: Path, page: Page
) -> None:
    service = FakeService(tmp_path)
    service.eta_s = eta_s
    questions: list[str] = []
    page.on("dialog", lambda dialog: (questions.append(dialog.message), dialog.accept()))
    with running(create_api(service), free_port()) as url:  # type: ignore[arg-type]
        page.goto(url)
        expect(page.get_by_label("Steps")).to_have_value("35", timeout=PATIENCE_MS)
        page.get_by_label("Prompt", exact=True).fill("x")
        with page.expect_response(
            lambda response: response.request.method == "POST" and "estimate" not in response.url
        ):
            page.get_by_role("button", name="Make the video").click()
    assert questions == ([question] if question else [])


def test_a_second_press_of_cancel_does_nothing(demo: tuple[str, AppArgs], page: Page) -> None:
    deleted: list[str] = []
    page.on("request", lambda request: deleted.append(request.url) if request.method == "DELETE" else None)
    httpx.post(f"{demo[0]}/v1/videos", json={"prompt": "x"}).raise_for_status()
    page.goto(demo[0])
    page.get_by_role("button", name="Cancel", exact=True).dblclick()
    expect(page.locator("#news")).to_have_text("Cancelled.")
    expect(page.locator("#video-error")).to_be_empty()
    assert len(deleted) == 1


def test_the_api_is_described_without_any_other_server(tmp_path: Path, page: Page) -> None:
    with running(create_api(FakeService(tmp_path)), free_port()) as url:  # type: ignore[arg-type]
        page.goto(f"{url}/docs")
        page.get_by_text("/v1/models", exact=True).click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".live-responses-table")).to_contain_text('"id": "fake"')
        headers = httpx.get(f"{url}/docs").headers
        assert "unsafe" not in headers["content-security-policy"]
        assert "https:" not in headers["content-security-policy"]
