"""Draws what benchmarks.quality measured: wrong answers and latent error of every way to sample, against its time.

python -m benchmarks.quality_plot quality.json --out quality.svg
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from cosmos3_models.approximations import Approximation

COLOURS = {
    "default": "#111111",
    "guidance": "#7a5195",
    "schedule": "#2a9d8f",
    "steps": "#1f6fb4",
    "reuse": "#e07a1f",
    "fp8": "#c1272d",
}
TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50)  # percent
LINES = ("steps",)  # where one setting is turned up and passes the default
BOTH_FP8 = Approximation(fp8_linears=True, fp8_attention=True).label
STYLE: Any = {"svg.hashsalt": "quality", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True)
class Point:
    """One way to sample in one panel."""

    group: str
    label: str
    x: float
    y: float


def draw(results: dict[str, Any], part: str) -> Figure:
    """Two panels with a labelled point for each case of a part of the world, refused ones left out."""
    rows = [row for row in results["rows"] if row["part"] == part and "refused" not in row]
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(f"{results['model']} on {results['device']}: {results['prompts']} prompts of the part {part}")
    panels = wrong, error = figure.subplots(1, 2)
    wrong.set(ylabel="wrong answers, mean over attributes, %", xlabel="seconds of denoise")
    wrong.set_yscale("symlog", linthresh=1, linscale=0.5)  # 0 has a place, and so have the last percent and half of all
    wrong.set_yticks(TICKS, labels=map(str, TICKS))
    error.set(ylabel="relative distance of the latents from the defaults'", xlabel="seconds of denoise")
    points = [
        [Point(row["group"], row["case"], row["denoise_s"], 100 * (1 - row["mean"])) for row in rows],
        [Point(row["group"], row["case"], row["denoise_s"], row["latent_error"]) for row in rows],
    ]
    for panel, of_panel in zip(panels, points, strict=True):
        _scatter(panel, of_panel)
    wrong.axhline(points[0][0].y + 1, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
    wrong.legend(frameon=False)
    figure.draw_without_rendering()
    for panel, of_panel in zip(panels, points, strict=True):
        _label(panel, of_panel)
    return figure


def _scatter(panel: Axes, points: Sequence[Point]) -> None:
    panel.margins(0.15, 0.12)
    for group, colour in COLOURS.items():
        drawn = sorted((point for point in points if point.group == group), key=lambda point: point.x)
        if drawn:
            x, y = [point.x for point in drawn], [point.y for point in drawn]
            panel.plot(x, y, color=colour, marker="o", markersize=5, linestyle="", label=group, zorder=3)
        if drawn and group in LINES:
            joined = sorted((point.x, point.y) for point in points if point.group in (group, "default"))
            panel.plot(*zip(*joined, strict=True), color=colour, linewidth=1)


def _label(panel: Axes, points: Sequence[Point]) -> None:
    """Name each point at the nearest place where the name covers neither a dot nor another name, if there is one."""
    dots = panel.transData.transform([(point.x, point.y) for point in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in dots]
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        for place in _places():
            name = _name(panel, point, *place)
            box = Text.get_window_extent(name)
            if _inside(panel, box) and not any(box.overlaps(other) for other in taken):
                break
            name.remove()
        else:
            name = _name(panel, point, *next(_places()))
        taken.append(Text.get_window_extent(name))


def _name(panel: Axes, point: Point, offset: tuple[float, float], anchor: str) -> Annotation:
    arrow = {"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    look: Any = {"ha": anchor, "va": "center", "fontsize": 8, "color": COLOURS[point.group], "arrowprops": arrow}
    halo = [withStroke(linewidth=2, foreground="white")]
    text = point.label.replace(BOTH_FP8, "fp8 both")
    name = panel.annotate(text, (point.x, point.y), offset, textcoords="offset points", path_effects=halo, **look)
    name.set_in_layout(False)
    name.get_window_extent()  # moves the text to its place
    return name


def _places() -> Iterator[tuple[tuple[float, float], str]]:
    """Offsets in points, near ones first, with the side of the name that is put there."""
    for distance in (7, 14, 22, 32, 44, 58, 74, 92):
        for angle in (0, 30, -30, 60, -60, 80, -80):
            x, y = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
            yield (x, y), "left"
            yield (-x, y), "right"


def _inside(panel: Axes, box: Bbox) -> bool:
    return bool(panel.bbox.x0 <= box.x0 and box.x1 <= panel.bbox.x1 and panel.bbox.y0 <= box.y0 <= panel.bbox.y1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what benchmarks.quality wrote")
    parser.add_argument("--part", default="unseen", help="of the world (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="file to write; its ending is its format")
    args = parser.parse_args(arguments)
    metadata = {"Date": None} if args.out.suffix == ".svg" else None
    results = json.loads(args.results.read_text())
    with matplotlib.rc_context(STYLE):
        figure = draw(results, args.part)
        figure.savefig(args.out, facecolor="white", metadata=metadata)


if __name__ == "__main__":
    main()
