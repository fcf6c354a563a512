"""``cosmos3 generate``: make one video in this process, without a server and without Ray."""

import sys
import time
from pathlib import Path
from typing import Any, Never

import click
from tqdm import tqdm

from cosmos3_models.errors import CheckpointError, InvalidInput
from cosmos3_models.media.output_file import check_output_file
from cosmos3_models.params import GenerationDefaults, GenerationParams
from serve.cli.options import out_option, request_options
from serve.schema import VideoRequest

# inference is denoise and both decodes together; per step is inference over the sampler's steps.
TABLE = (
    "model_load",
    "preprocess",
    "denoise",
    "video_decode",
    "sound_decode",
    "inference",
    "to_cpu",
    "encode",
    "per step",
    "total",
)
SEED = GenerationParams.model_fields["seed"].default


@click.command("generate")
@request_options(without=("model", "metadata"))
@out_option
@click.option("--checkpoint", default="demo", show_default=True, help="Folder with Cosmos3 weights, or demo.")
@click.option("--device", default="auto", show_default=True, help="A torch device, or auto.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Type of the weights; bfloat16 on a GPU.")
def command(fields: dict[str, Any], out: Path, checkpoint: str, device: str, dtype: str | None) -> None:
    """Make a video in this process.

    Prints how long each part took. The exit status is 2 if the request or the checkpoint is invalid.
    """
    try:
        request = VideoRequest(**{"seed": SEED} | fields)
        request.params(GenerationDefaults())  # a mistake is reported before minutes of loading
        check_output_file(out)
        _generate(request, out, checkpoint, device, dtype)
    except (CheckpointError, InvalidInput) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


def _generate(request: VideoRequest, out: Path, checkpoint: str, device: str, dtype: str | None) -> None:
    start = time.perf_counter()
    import torch  # its import takes seconds, which a refused request does not wait for

    from cosmos3_models.media.mp4 import encode_video
    from cosmos3_models.pipeline import Cosmos3Pipeline

    pipeline = Cosmos3Pipeline.from_pretrained(checkpoint, device, getattr(torch, dtype) if dtype else None)
    params = request.params(pipeline.checkpoint.defaults)
    timings = {"model_load": time.perf_counter() - start}
    with tqdm(total=params.num_inference_steps, unit="step", desc="denoise") as bar:
        result = pipeline(params, on_step=lambda done, _: _show(bar, done))
    encode_start = time.perf_counter()
    out.write_bytes(encode_video(result.frames, result.waveform, result.fps, result.sample_rate))
    timings |= result.timings | {"encode": time.perf_counter() - encode_start}
    timings["total"] = time.perf_counter() - start
    timings["inference"] = sum(timings[stage] for stage in ("denoise", "video_decode", "sound_decode"))
    timings["per step"] = timings["inference"] / params.num_inference_steps
    for stage in TABLE:
        click.echo(f"{stage:<14}{timings[stage]:9.3f} s")
    click.echo(f"{out}: {params.width}x{params.height}, {params.num_frames} frames, {params.fps:g} fps")


def _show(bar: "tqdm[Never]", done: int) -> None:
    bar.update(done - bar.n)
