"""Make a video on a server: ``python -m serve.cli.submit "prompt" --sound -o out.mp4``. Ctrl-C cancels it."""

import argparse
import os
import sys
import uuid
from pathlib import Path
from typing import Any, Never

from tqdm import tqdm

from cosmos3_models.errors import InvalidInput
from cosmos3_models.media.output_file import check_output_file
from serve.client.videos import RemoteError, RemoteVideos

KEY_VARIABLE = "COSMOS3_API_KEY"
INTERRUPTED = 130
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"

FIELDS: dict[str, tuple[type, str]] = {
    "size": (str, "WIDTHxHEIGHT in pixels"),
    "width": (int, "or width and height"),
    "height": (int, ""),
    "num_frames": (int, "4k + 1"),
    "seconds": (str, "or the length"),
    "fps": (float, "frames a second"),
    "num_inference_steps": (int, ""),
    "guidance_scale": (float, "1 is off"),
    "flow_shift": (float, ""),
    "sigma_schedule": (str, "flow, karras, phyai or checkpoint"),
    "seed": (int, "the same seed gives the same video; drawn if absent"),
    "step_cache": (float, "reuse steps that change less than this share; not exact"),
    "negative_prompt": (str, "what to avoid"),
    "model": (str, "the served name"),
}
FLAGS = {"fp8_linears": "matrix products in fp8; not exact", "fp8_attention": "attention in fp8; not exact"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    fields = {name: value for name in FIELDS if (value := getattr(args, name)) is not None}
    fields |= {name: True for name in FLAGS if getattr(args, name)}
    fields |= {"prompt": args.prompt} | ({"generate_sound": True} if args.sound else {})
    try:
        check_output_file(args.out)
        _make(RemoteVideos(args.url, args.api_key, _tell), fields, args.out)
    except (InvalidInput, RemoteError, OSError) as error:
        _tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _make(server: RemoteVideos, fields: dict[str, Any], out: Path) -> None:
    """From the request to the file; on Ctrl-C the server forgets both."""
    key, video_id = uuid.uuid4().hex, None
    try:
        video_id = server.submit(fields, key)
        _tell(f"{video_id} is submitted")
        with tqdm(total=100, desc="waiting", bar_format=BAR) as bar:
            end = server.follow(video_id, lambda event: _show(bar, event))
        if end["type"] != "completed":
            raise RemoteError(_reason(end))
        server.download(video_id, out)
    except KeyboardInterrupt:
        _cancel(server, video_id, fields, key)
        raise
    video = end["video"]
    made = f"{video['size']}, {video['num_frames']} frames, {video['fps']:g} fps, seed {video['seed']}"
    sys.stdout.write(f"{out}: {made}\n")


def _cancel(server: RemoteVideos, video_id: str | None, fields: dict[str, Any], key: str) -> None:
    try:
        if video_id is None:
            server.withdraw(fields, key)
        else:
            server.delete(video_id)
    except RemoteError as error:
        _tell(f"error: {video_id or 'the job'} may still be made: {error}")
    else:
        _tell("cancelled")


def _show(bar: "tqdm[Never]", event: dict[str, Any]) -> None:
    bar.set_description_str(_place(event), refresh=False)
    bar.set_postfix_str(_to_go(event.get("eta_s")), refresh=False)
    bar.n = 100 if event["type"] == "completed" else event.get("progress", 0)
    bar.refresh()


def _place(event: dict[str, Any]) -> str:
    if event["type"] == "queued":
        return f"queued, number {event['queue_position']}"
    if event.get("stage") == "denoiser":
        return f"denoiser, step {event['step']} of {event['steps']}"
    return str(event.get("stage", event["type"]))


def _to_go(eta_s: float | None) -> str:
    return "" if eta_s is None else f"about {tqdm.format_interval(eta_s)} to go"


def _reason(end: dict[str, Any]) -> str:
    return "the video was deleted" if end["type"] == "deleted" else str(end["video"]["error"]["message"])


def _tell(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve.cli.submit", description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the mp4 to write, in a folder that exists")
    parser.add_argument("--sound", action="store_true", help="make a sound track as well")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (%(default)s)")
    key = os.environ.get(KEY_VARIABLE)
    parser.add_argument("--api-key", default=key, help=f"better given as {KEY_VARIABLE}, which no process list shows")
    for name, (kind, told) in FIELDS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=told)
    for name, told in FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=told)
    return parser


if __name__ == "__main__":
    sys.exit(main())
