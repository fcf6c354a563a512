"""``cosmos3 generate``: make one video in this process, without a server and without Ray."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.errors import CheckpointError, InvalidInput
from cosmos3_models.media import reading
from cosmos3_models.media.output_file import check_output_file
from cosmos3_models.media.pictures import PictureFormat, encode_picture, side_by_side
from cosmos3_models.params import GenerationDefaults, GenerationParams
from cosmos3_models.references import check_reference
from serve.cli.options import out_option, preview_file, reference_options, request_options
from serve.schema import VideoRequest

if TYPE_CHECKING:
    from cosmos3_models.pipeline import GenerationResult

# inference is denoise and both decodes together; per step is inference over the sampler's steps.
TABLE = (
    "model_load",
    "preprocess",
    "video_encode",
    "denoise",
    "video_decode",
    "sound_decode",
    "inference",
    "to_cpu",
    "encode",
    "per step",
    "total",
)
PICTURES: dict[str, PictureFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""What a video of one frame is written as, by the end of the file's name."""

SEED = GenerationParams.model_fields["seed"].default


@click.command("generate")
@request_options(without=("model", "metadata", "webhook_url", "prompt_upsampling"))
@reference_options
@out_option
@click.option("--checkpoint", default="demo", show_default=True, help="Folder, owner/name on the Hub, or demo.")
@click.option("--device", default="auto", show_default=True, help="A torch device, or auto.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Type of the weights; bfloat16 on a GPU.")
def command(
    fields: dict[str, Any], reference: Path | None, out: Path, checkpoint: str, device: str, dtype: str | None
) -> None:
    """Make a video, or an image of one frame, in this process.

    Prints how long each part took. The exit status is 2 if the request, a file or the checkpoint is invalid.
    """
    try:
        request = VideoRequest(**{"seed": SEED} | fields)
        request.params(GenerationDefaults())  # a mistake is reported before minutes of loading
        check_output_file(out)
        source = None if reference is None else (reference, reading.inspect(reference))
        _generate(request, source, out, (checkpoint, device, dtype))
    except (CheckpointError, InvalidInput, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


def _generate(
    request: VideoRequest, source: tuple[Path, reading.MediaInfo] | None, out: Path, model: tuple[str, str, str | None]
) -> None:
    start = time.perf_counter()
    import torch  # its import takes seconds, which a refused request does not wait for

    from cosmos3_models.pipeline import Cosmos3Pipeline

    checkpoint, device, dtype = model
    file, info = source or (None, None)
    params = request.params(Checkpoint.open(checkpoint).defaults, info)
    check_reference(params, None if info is None else info.kind)
    _check_kind(out, params)
    pipeline = Cosmos3Pipeline.from_pretrained(checkpoint, device, getattr(torch, dtype) if dtype else None)
    timings = {"model_load": time.perf_counter() - start}
    given: dict[str, Any] = {} if info is None else {info.kind: file}
    with tqdm(total=params.num_inference_steps, unit="step", desc="denoise") as bar:
        show = partial(_save_preview, preview_file(out))
        result = pipeline(params, **given, on_step=lambda done, _: _show(bar, done), on_preview=show)
    encode_start = time.perf_counter()
    out.write_bytes(_encoded(result, out))
    preview_file(out).unlink(missing_ok=True)
    timings |= result.timings | {"encode": time.perf_counter() - encode_start}
    timings["total"] = time.perf_counter() - start
    timings["inference"] = sum(timings[stage] for stage in ("denoise", "video_decode", "sound_decode"))
    timings["per step"] = timings["inference"] / params.num_inference_steps
    for stage in TABLE:
        click.echo(f"{stage:<14}{timings[stage]:9.3f} s")
    click.echo(f"{out}: {params.width}x{params.height}, {params.num_frames} frames, {params.fps:g} fps")


def _show(bar: "tqdm[Never]", done: int) -> None:
    bar.update(done - bar.n)


def _save_preview(file: Path, step: int, moments: NDArray[np.uint8]) -> None:
    file.write_bytes(side_by_side([*moments]))
    tqdm.write(f"preview after step {step}: {file}", file=sys.stderr)


def _check_kind(out: Path, params: GenerationParams) -> None:
    """Raise ``InvalidInput`` unless the file's name ends in what is made."""
    picture, image = out.suffix.lower() in PICTURES, params.num_frames == 1
    if picture != image:
        expected = f"a name that ends in {', '.join(PICTURES)}" if image else "a name that ends in .mp4"
        why = "a video of one frame is an image" if image else f"{params.num_frames} frames are no image"
        raise InvalidInput("--out", str(out), expected, why)


def _encoded(result: "GenerationResult", out: Path) -> bytes:
    from cosmos3_models.media.mp4 import encode_video

    if len(result.frames) == 1:
        return encode_picture(result.frames[0], PICTURES[out.suffix.lower()])
    return encode_video(result.frames, result.waveform, result.fps, result.sample_rate)
