"""What previews cost a video: jobs with and without them in turn, over HTTP, on one server.

python -m benchmarks.previews --checkpoint demo --case 192x192x33:35:5
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import report
from benchmarks.one_process import Case
from benchmarks.server import server, server_parser
from cosmos3_models.approximations import EXACTLY
from cosmos3_models.checkpoint.loading import resolve_device
from serve.client.videos import RemoteVideos


def main() -> None:
    """Print a line of JSON and a table."""
    parser = server_parser(__doc__, 8133)
    parser.add_argument("--case", type=Case.parse, default=Case.parse("192x192x33:35:5"), help="HxWxFRAMES:STEPS:TIMES")
    parser.add_argument("--previews", type=int, default=3, help="of a video with any (%(default)s)")
    parser.add_argument("--sound", action="store_true", help="with sound")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (%(default)s)")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder), args.port, checkpoint=args.checkpoint, device=args.device) as started,
        closing(RemoteVideos(started.url)) as videos,
    ):
        report(list(rows(videos, args, Path(folder))), str(resolve_device(args.device)[0]))


def rows(videos: RemoteVideos, args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Medians without and with previews, each video after one of the other sort. Those before are short ones."""
    runs: dict[int, list[dict[str, Any]]] = {0: [], args.previews: []}
    for number in range(args.case.times + 1):
        fields = args.case.fields(args.sound, EXACTLY, None if number else args.previews + 1)
        for previews, made in runs.items():
            run = _made(videos, fields | {"previews": previews}, f"{number}-{previews}", folder)
            made += [run] if number else []
    plain = runs[0][0]["bytes"]
    for previews, made in runs.items():
        yield {
            "case": str(args.case),
            "previews": previews,
            "shown": median(run["shown"] for run in made),
            "denoiser_s": median(run["denoiser"] for run in made),
            "decoders_s": median(run["decoders"] for run in made),
            "total_s": median(run["total"] for run in made),
            "least_s": min(run["total"] for run in made),
            "same_bytes": all(run["bytes"] == plain for run in made),
        }


def _made(videos: RemoteVideos, fields: dict[str, Any], key: str, folder: Path) -> dict[str, Any]:
    """The seconds of one job from the start of its denoise, its previews and its bytes."""
    video_id = videos.submit(fields, f"previews-{key}")
    events: list[dict[str, Any]] = []
    end = videos.follow(video_id, events.append)
    videos.download(video_id, folder / "video")
    durations = {stage: seconds for stage, seconds in end["video"]["stage_durations"].items() if stage != "queue"}
    shown = sum(event["type"] == "preview" for event in events)
    total = sum(durations.values())
    return durations | {"total": total, "shown": shown, "bytes": (folder / "video").read_bytes()}


if __name__ == "__main__":
    main()
