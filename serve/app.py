"""The graph on one screen: typed arguments in, a Ray Serve application out."""

from typing import Annotated, Any, Literal, NamedTuple

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from cosmos3_models.checkpoint import DEMO
from serve.ingress import Ingress
from serve.stages import Denoiser, SoundDecoder, Tokenizer, VideoDecoder


class AppArgs(BaseModel):
    """``args`` of deploy.yaml.

    Attributes:
        checkpoint: a folder with Cosmos3 weights, the same on every node, or ``demo``.
        device: ``auto`` takes GPUs where the cluster has some.
        longest_request_s: a replica that is told to stop lets a running request go on for so long.
        max_pixel_frames: the largest height x width x frames that is accepted.
        max_attempts: runs of a stage before its replicas' deaths fail a request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Annotated[str, Field(min_length=1)] = DEMO
    device: Literal["auto", "cpu", "cuda"] = "auto"
    longest_request_s: Annotated[float, Field(gt=0)] = 3600
    max_pixel_frames: Annotated[int, Field(gt=0)] = 1280 * 720 * 297
    max_attempts: Annotated[int, Field(ge=1)] = 3


class Placement(NamedTuple):
    """Torch's device and the share of a GPU that a replica of each stage takes."""

    device: str
    denoiser: float = 0
    video_decoder: float = 0
    sound_decoder: float = 0


CPU = Placement("cpu")
ONE_GPU = Placement("cuda", 0.6, 0.3, 0.1)  # bookkeeping that lets all three share a card
SEVERAL_GPUS = Placement("cuda", 1, 0.75, 0.25)  # the denoiser alone, both decoders on one other card


def build_app(args: AppArgs) -> Application:
    """Construct and bind; Serve starts the replicas."""
    place = choose_placement(args.device)
    stage = (args.checkpoint, place.device)
    tokenizer = _deployment(Tokenizer, args, slots=8).bind(args.checkpoint)
    denoiser = _deployment(Denoiser, args, slots=1, gpus=place.denoiser).bind(*stage)
    video_decoder = _deployment(VideoDecoder, args, slots=1, gpus=place.video_decoder).bind(*stage)
    sound_decoder = _deployment(SoundDecoder, args, slots=1, gpus=place.sound_decoder).bind(*stage)
    # The ingress only waits, so its slots are as many requests as may be under way or queued before the denoisers.
    ingress = _deployment(serve.ingress()(Ingress), args, slots=256)
    return ingress.bind(
        tokenizer,
        denoiser,
        video_decoder,
        sound_decoder,
        checkpoint=args.checkpoint,
        max_pixel_frames=args.max_pixel_frames,
        max_attempts=args.max_attempts,
    )


def choose_placement(device: Literal["auto", "cpu", "cuda"]) -> Placement:
    """Look at the cluster once.

    Raises:
        ValueError: ``cuda`` on a cluster without a GPU.
    """
    if device == "cpu":
        return CPU
    gpus = ray.cluster_resources().get("GPU", 0)
    if device == "cuda" and gpus == 0:
        raise ValueError("device: got 'cuda', expected 'auto' or 'cpu', because the cluster has no GPU")
    return CPU if gpus == 0 else ONE_GPU if gpus < 2 else SEVERAL_GPUS


def _deployment(stage: type, args: AppArgs, *, slots: int, gpus: float = 0) -> Any:
    return serve.deployment(
        stage,
        name=stage.__name__,
        max_ongoing_requests=slots,
        # Long requests survive an update or a downscale: the old replica leaves when it is done.
        graceful_shutdown_timeout_s=args.longest_request_s,
        # A sliver of a CPU, so that the whole graph fits two cores; the stages take turns at the work.
        ray_actor_options={"num_cpus": 0.1, "num_gpus": gpus},
    )
