"""The graph on one screen: typed arguments in, a Ray Serve application out."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import ray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from ray.serve.config import RequestRouterConfig

from cosmos3_models.checkpoint.folder import DEMO, CardUse, Offload, checkpoint_name
from cosmos3_models.params import ApproximationPolicy
from serve.graph.graph import Stages
from serve.graph.media_stages import SoundDecoder, VideoDecoder, VideoEncoder
from serve.graph.stages import Denoiser, Tokenizer
from serve.graph.worker import Patience
from serve.http.access import HOST_PATTERN, ORIGIN_PATTERN, Access
from serve.http.keys import check_key, check_key_file
from serve.ingress.ingress import Ingress
from serve.ingress.served_model import ModelSettings
from serve.jobs.database import is_sqlite
from serve.jobs.job import JobSettings
from serve.jobs.runner import SLOTS, JobRunner


def _absolute(path: str) -> str:
    """Expand ``~``, and refuse a relative path, which every process would resolve against a folder of its own."""
    expanded = os.path.expanduser(path)
    if "://" not in path and not os.path.isabs(expanded):
        raise ValueError(
            "expected an absolute path or one from ~, because every process has a working folder of its own"
        )
    return expanded


def _several(names: object) -> object:
    return (names,) if isinstance(names, str) else names


Name = Annotated[str, Field(min_length=1)]
AbsolutePath = Annotated[Name, AfterValidator(_absolute)]
CheckpointPath = Annotated[Name, AfterValidator(lambda path: path if path == DEMO else _absolute(path))]


class AppArgs(BaseModel):
    """``args`` of deploy.yaml.

    Attributes:
        checkpoint: a folder with Cosmos3 weights, the same on every node, or ``demo``.
        served_model_name: the name or names by which clients call the model, as in vLLM; records hold the first one.
            Empty: the folder's name, or ``owner/name`` of a snapshot in a Hugging Face cache.
        device: ``auto`` uses GPUs if the cluster has any.
        offload_text: keep the text tower's weights in host memory; ``auto``: if the longest accepted video of the
            default size would not fit on the GPU otherwise.
        longest_request_s: the time that a stopping replica gives a running request to finish.
        max_pixel_frames: the largest accepted height x width x frames.
        max_attempts: attempts of a job, and of a stage within a request, before it fails.
        data_dir: folder of the job table and the videos, unless the next two fields name other places.
        database_url: PostgreSQL in SQLAlchemy's form; None: a SQLite file in ``data_dir``.
        media_url: path or fsspec URL of the videos; None: a folder in ``data_dir``.
        max_queued_jobs: the number of waiting jobs beyond which new ones are refused.
        job_deadline_s: a job that has not ended this long after its creation fails.
        lease_s: a job whose runner is silent for this long goes to another runner, and work for a caller that died
            stops within this time.
        step_timeout_s: a replica is replaced if a step takes longer than this and longer than earlier steps explain.
        retention_s: the time after which an ended job's record and files are removed.
        approximation: the approximations that are on by default, and those that requests may ask for.
        api_keys, api_keys_file: keys of the clients with access, in place or one to a line of a file; none: everybody.
        allowed_hosts: host names under which the server answers, besides addresses and localhost.
        allowed_origins: origins of other sites' web pages that may use the server.
    """

    # Some fields are secret, so no error message shows a value.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    checkpoint: CheckpointPath = DEMO
    served_model_name: Annotated[tuple[Name, ...], BeforeValidator(_several)] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    offload_text: Offload = "auto"
    longest_request_s: Annotated[float, Field(gt=0)] = 3600
    max_pixel_frames: Annotated[int, Field(gt=0)] = 1280 * 720 * 297
    max_attempts: Annotated[int, Field(ge=1)] = 3
    data_dir: AbsolutePath = "~/.cosmos3-serve"
    database_url: str | None = None
    media_url: AbsolutePath | None = None
    max_queued_jobs: Annotated[int, Field(ge=1)] = 256
    job_deadline_s: Annotated[float, Field(gt=0)] = 86_400
    lease_s: Annotated[float, Field(ge=1)] = 15
    step_timeout_s: Annotated[float, Field(ge=1)] = 30
    retention_s: Annotated[float, Field(gt=0)] = 604_800
    approximation: ApproximationPolicy = ApproximationPolicy()
    api_keys: tuple[Annotated[str, AfterValidator(check_key)], ...] = ()
    api_keys_file: AbsolutePath | None = None
    allowed_hosts: tuple[Annotated[str, Field(pattern=HOST_PATTERN)], ...] = ()
    allowed_origins: tuple[Annotated[str, Field(pattern=ORIGIN_PATTERN)], ...] = ()

    def model_names(self) -> tuple[str, ...]:
        """The names by which requests may call the model; records hold the first one."""
        return self.served_model_name or (checkpoint_name(self.checkpoint),)

    def model_settings(self, device: str) -> ModelSettings:
        """What the ingress checks requests against, where the denoiser computes on ``device``."""
        return ModelSettings(self.checkpoint, self.model_names(), device, self.approximation, self.max_pixel_frames)

    def job_settings(self) -> JobSettings:
        return JobSettings(
            database_url=self.database_url or f"sqlite:///{self._folder() / 'jobs.sqlite'}",
            lease_s=self.lease_s,
            max_attempts=self.max_attempts,
            max_queued_jobs=self.max_queued_jobs,
            job_deadline_s=self.job_deadline_s,
            retention_s=self.retention_s,
        )

    def patience(self) -> Patience:
        return Patience(self.lease_s, self.step_timeout_s)

    def media(self) -> str:
        return self.media_url or str(self._folder() / "media")

    def access(self) -> Access:
        """The keys, hosts and origins that may use the API.

        Raises:
            ValueError: the file of keys cannot be read, or is malformed.
        """
        # Not resolved: a mounted secret is a link, which is replaced to point at the new keys.
        file = self.api_keys_file and str(Path(self.api_keys_file).expanduser().absolute())
        if file:
            check_key_file(file)
        return Access(self.api_keys, file, self.allowed_hosts, self.allowed_origins)

    def _folder(self) -> Path:
        return Path(self.data_dir).expanduser().resolve()


class Placement(NamedTuple):
    """Torch's device, and the share of a GPU that a replica of each stage reserves."""

    device: str
    denoiser: float = 0
    video_encoder: float = 0
    video_decoder: float = 0
    sound_decoder: float = 0


ROUTER = RequestRouterConfig(request_router_class="serve.graph.request_router:Router")
INGRESS_ROUTER = RequestRouterConfig() if RAY_SERVE_ENABLE_HA_PROXY else ROUTER
"""Ray's HAProxy supports no request router of an application's own."""

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # stages that share cores must not spin while they wait
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # stages that share a card must not hoard fragments of it
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",  # Ray itself reports every 10 s; Serve's 0.1 s wakes idle replicas
}

CPU = Placement("cpu")
# Shares only in Ray's bookkeeping: all four stages use one card, or the denoiser one alone and the others another one.
ONE_GPU = Placement("cuda", denoiser=0.6, video_encoder=0.1, video_decoder=0.2, sound_decoder=0.1)
SEVERAL_GPUS = Placement("cuda", denoiser=1, video_encoder=0.25, video_decoder=0.5, sound_decoder=0.25)


def build_app(args: AppArgs) -> Application:
    """Construct and bind; Serve starts the replicas."""
    place = choose_placement(args.device)
    settings, media = args.job_settings(), args.media()
    on_head = is_sqlite(settings.database_url) or args.media_url is None  # the files are on one machine
    stage = (args.checkpoint, place.device)
    names, policy, patience = args.model_names(), args.approximation, args.patience()
    use = CardUse(args.max_pixel_frames, "same GPU" if place.denoiser < 1 else "another GPU", policy.allowed)
    denoiser = (*stage, policy, args.offload_text, use, patience)
    stages = Stages(
        tokenizer=_deployment(Tokenizer, args, slots=8).bind(args.checkpoint),
        video_encoder=_deployment(VideoEncoder, args, slots=1, gpus=place.video_encoder).bind(*stage, patience),
        denoiser=_deployment(Denoiser, args, slots=1, gpus=place.denoiser).bind(*denoiser),
        video_decoder=_deployment(VideoDecoder, args, slots=1, gpus=place.video_decoder).bind(*stage, patience),
        sound_decoder=_deployment(SoundDecoder, args, slots=1, gpus=place.sound_decoder).bind(*stage, patience),
    )
    # Both only wait: each of their slots is a running job or a waiting client.
    runner = _deployment(JobRunner, args, slots=SLOTS, on_head=on_head).bind(stages, settings, media, names[0])
    ingress = _deployment(serve.ingress()(Ingress), args, slots=256, on_head=on_head)
    ingress = ingress.options(request_router_config=INGRESS_ROUTER)
    return ingress.bind(stages, runner, args.model_settings(place.device), settings, media, args.access())


def choose_placement(device: Literal["auto", "cpu", "cuda"]) -> Placement:
    """Choose the devices by the GPUs that the cluster has now.

    Raises:
        ValueError: ``cuda`` on a cluster without a GPU.
    """
    if device == "cpu":
        return CPU
    gpus = ray.cluster_resources().get("GPU", 0)
    if device == "cuda" and gpus == 0:
        raise ValueError("device: got 'cuda', expected 'auto' or 'cpu', because the cluster has no GPU")
    return CPU if gpus == 0 else ONE_GPU if gpus < 2 else SEVERAL_GPUS


def _deployment(stage: type, args: AppArgs, *, slots: int, gpus: float = 0, on_head: bool = False) -> Any:
    # A small share of a CPU, so that the whole graph fits on two cores; the stages take turns computing.
    actor: dict[str, Any] = {"num_cpus": 0.1, "num_gpus": gpus, "runtime_env": {"env_vars": ENVIRONMENT}}
    if on_head:
        actor["resources"] = {"node:__internal_head__": 0.001}
    return serve.deployment(
        stage,
        name=stage.__name__,
        max_ongoing_requests=slots,
        request_router_config=ROUTER,
        # Long requests survive an update or a downscale: the old replica stops when they are done.
        graceful_shutdown_timeout_s=args.longest_request_s,
        ray_actor_options=actor,
    )
