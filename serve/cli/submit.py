"""``cosmos3 submit``: make a video on a server, show its progress, and save it."""

import sys
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Never

import click
from tqdm import tqdm

from cosmos3_models.errors import InvalidInput
from cosmos3_models.media.output_file import check_output_file
from serve.cli.options import out_option, preview_file, reference_options, request_options, server_options
from serve.client.videos import RemoteError, RemoteVideos

BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


@click.command("submit")
@request_options()
@reference_options
@out_option
@server_options
def command(fields: dict[str, Any], reference: Path | None, out: Path, url: str, api_key: str | None) -> None:
    """Make a video on a server.

    Shows its progress and saves it; Ctrl-C cancels the job. The exit status is 1 if there is no video, and 130 after
    Ctrl-C.
    """
    try:
        check_output_file(out)
        with closing(RemoteVideos(url, api_key, _print)) as server:
            _make(Submission(server, fields, uuid.uuid4().hex, reference), out)
    except (InvalidInput, RemoteError, OSError) as error:
        _print(f"error: {error}")
        sys.exit(1)


class Submission(NamedTuple):
    """A video to make on a server.

    Attributes:
        key: idempotency key.
        reference: the picture or clip that it starts from.
    """

    server: RemoteVideos
    fields: dict[str, Any]
    key: str
    reference: Path | None


def _make(wanted: Submission, out: Path) -> None:
    """Submit the job, follow it and save the video; on Ctrl-C delete the job."""
    server, video_id = wanted.server, None
    try:
        video_id = server.submit(wanted.fields, wanted.key, wanted.reference)
        _print(f"{video_id} was submitted")
        with tqdm(total=100, desc="waiting", bar_format=BAR) as bar:
            end = _follow(server, video_id, bar, preview_file(out))
        if end["type"] != "completed":
            raise RemoteError(_reason(end))
        server.download(video_id, out)
        preview_file(out).unlink(missing_ok=True)
    except KeyboardInterrupt:
        _cancel(wanted, video_id)
        raise
    video = end["video"]
    if video.get("prompt_upsampling_error"):
        _print(f"warning: {video['prompt_upsampling_error']}")
    made = f"{video['size']}, {video['num_frames']} frames, {video['fps']:g} fps, seed {video['seed']}"
    sys.stdout.write(f"{out}: {made}\n")


def _cancel(wanted: Submission, video_id: str | None) -> None:
    try:
        if video_id is None:
            wanted.server.withdraw(wanted.fields, wanted.key, wanted.reference)
        else:
            wanted.server.delete(video_id)
    except RemoteError as error:
        _print(f"error: {video_id or 'the job'} may still run: {error}")
    else:
        _print("cancelled")


def _follow(server: RemoteVideos, video_id: str, bar: "tqdm[Never]", preview: Path) -> dict[str, Any]:
    """Show the job's events until its end, and return the last one. The newest preview is in the file."""

    def show(event: dict[str, Any]) -> None:
        if event["type"] != "preview":
            return _show(bar, event)
        try:
            server.download(video_id, preview, "preview")
        except (RemoteError, OSError) as error:  # the video does not depend on it
            return _print(f"no preview after step {event['step']}: {error}")
        _print(f"preview after step {event['step']}: {preview}")

    return server.follow(video_id, show)


def _show(bar: "tqdm[Never]", event: dict[str, Any]) -> None:
    bar.set_description_str(_stage(event), refresh=False)
    bar.set_postfix_str(_remaining(event.get("eta_s")), refresh=False)
    bar.n = 100 if event["type"] == "completed" else event.get("progress", 0)
    bar.refresh()


def _stage(event: dict[str, Any]) -> str:
    if event["type"] == "queued" and not event.get("stage"):
        return f"queued, number {event['queue_position']}"
    if event.get("stage") == "denoiser":
        return f"denoiser, step {event['step']} of {event['steps']}"
    return str(event.get("stage", event["type"]))


def _remaining(eta_s: float | None) -> str:
    return "" if eta_s is None else f"about {tqdm.format_interval(eta_s)} left"


def _reason(end: dict[str, Any]) -> str:
    return "the video was deleted" if end["type"] == "deleted" else str(end["video"]["error"]["message"])


def _print(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
