"""Draw the spans of one job, as a traced server sends them.

python -m benchmarks.trace docs/trace.svg
"""

import argparse
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import httpx

from benchmarks.otlp import Span, collecting
from benchmarks.server import server

REQUEST = {"prompt": "A large red ball bounces.", "generate_sound": True, "num_inference_steps": 16}
COLOURS = {"ours": "#2f6f4f", "serve": "#7a8da6", "failed": "#b3261e"}
ROW, CHARACTER, LABELS, WIDTH = 20, 7, 370, 1000  # pixels


def main() -> None:
    """Start a server, make a video, and draw its trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="the SVG to write")
    parser.add_argument("--port", type=int, default=8127, help="where the server listens (%(default)s)")
    args = parser.parse_args()
    args.picture.write_text(picture(spans_of_a_job(args.port)))


def spans_of_a_job(port: int) -> list[Span]:
    """Return all spans of the second job of a new server, in order of their start."""
    with collecting() as collector, tempfile.TemporaryDirectory() as folder:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "500"}
        command = ("-m", "serve", "serve")
        with server(Path(folder), port, command=command, environment=environment) as started:
            for _ in range(2):  # the first one warms the server up
                trace = secrets.token_hex(16)
                headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
                httpx.post(f"{started.url}/v1/videos", json=REQUEST, headers=headers, timeout=60).raise_for_status()
                collector.trace(trace, lambda spans: {"job", "storing"} <= {one.name for one in spans}, 300)
            return collector.trace(trace, lambda spans: not _missing(spans), 60)


def picture(spans: Sequence[Span]) -> str:
    """Draw spans as SVG: a row for each, below the one that it is a part of."""
    first, last = min(one.start_s for one in spans), max(one.end_s for one in spans)
    scale = (WIDTH - LABELS - 60) / (last - first)
    rows = list(_rows(spans))
    height = ROW * (len(rows) + 1)
    drawn = "\n".join(_row(number, *row, first, scale) for number, row in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" '
        f'font-size="11">\n<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{drawn}\n</svg>\n'
    )


def _missing(spans: Sequence[Span]) -> set[str]:
    """The parents that have not arrived, but for that of the client."""
    return {one.parent for one in spans} - {one.id for one in spans} - {_client(spans)}


def _client(spans: Sequence[Span]) -> str:
    known = {one.id for one in spans}
    proxy = (one.parent for one in spans if one.name.startswith("proxy") and one.parent not in known)
    return next(proxy, "")


def _rows(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """Each span with its depth, parents first."""
    known = {one.id for one in spans}

    def below(parents: set[str], depth: int) -> Iterator[tuple[int, Span]]:
        for one in spans:
            if one.parent in parents:
                yield depth, one
                yield from below({one.id}, depth + 1)

    return below({one.parent for one in spans} - known, 0)


def _row(number: int, depth: int, span: Span, first: float, scale: float) -> str:
    y, x = ROW * number + 4, LABELS + (span.start_s - first) * scale
    width, seconds = max(1.0, (span.end_s - span.start_s) * scale), span.end_s - span.start_s
    whose = "failed" if span.failed else "ours" if "video_id" in span.attributes else "serve"
    name = escape(span.name[: (LABELS - 12 * depth) // CHARACTER])
    return (
        f'<text x="{4 + 12 * depth}" y="{y + 12}" fill="#222222">{name}</text>'
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 6}" rx="2" fill="{COLOURS[whose]}"/>'
        f'<text x="{x + width + 4:.1f}" y="{y + 12}" fill="#555555">{seconds:.3f} s</text>'
    )


if __name__ == "__main__":
    main()
