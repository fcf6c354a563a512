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

from cosmos3_models.checkpoint.folder import DEMO, CardUse, Offload, checkpoint_name, pinned_checkpoint
from cosmos3_models.checkpoint.hub import HubName
from cosmos3_models.params import ApproximationPolicy
from cosmos3_models.resources.budget import Decoders
from serve.file_paths import BECAUSE, AbsolutePath, Name
from serve.graph.graph import Stages
from serve.graph.media_stages import SoundDecoder, VideoDecoder, VideoEncoder
from serve.graph.revision import Upsampler
from serve.graph.stages import Denoiser, Tokenizer
from serve.graph.worker import Patience
from serve.guards.guard import GuardSettings
from serve.http.access import HOST_PATTERN, ORIGIN_PATTERN, Access
from serve.http.keys import KEYS, check_key
from serve.ingress.ingress import Ingress
from serve.ingress.served_model import ModelSettings
from serve.jobs.database import is_sqlite
from serve.jobs.job import JobSettings
from serve.jobs.runner import SLOTS, JobRunner
from serve.jobs.webhooks.settings import WebhookSettings
from serve.jobs.webhooks.signatures import SECRETS
from serve.jobs.webhooks.targets import check_target
from serve.upsampler.settings import UpsamplerSettings


def _checkpoint(path: str) -> str:
    """Accept the demo, a model on the Hub, and a folder as ``_absolute`` does."""
    if path == DEMO:
        return path
    if name := HubName.parse(path):  # with a revision: without one, a process would prefer a folder of this name
        return str(name._replace(revision=name.revision or "main"))
    if not os.path.isabs(expanded := os.path.expanduser(path)):
        expected = "an absolute path, one from ~, demo, or owner/name of a model on the Hugging Face Hub"
        raise ValueError(f"expected {expected}, {BECAUSE}")
    return expanded


def _several(names: object) -> object:
    return (names,) if isinstance(names, str) else names


def _spelt_out(guard: object) -> object:
    return {"import_path": guard} if isinstance(guard, str) else guard


CheckpointPath = Annotated[Name, AfterValidator(_checkpoint)]


class AppArgs(BaseModel):
    """``args`` of deploy.yaml.

    Attributes:
        checkpoint: a folder with Cosmos3 weights, the same on every node; ``owner/name`` or ``owner/name@revision`` of
            a model on the Hugging Face Hub; or ``demo``.
        served_model_name: the name or names by which clients call the model, as in vLLM; records hold the first one.
            Empty: the folder's name, or ``owner/name`` of a model on the Hugging Face Hub.
        device: ``auto`` uses GPUs if the cluster has any.
        gpus: the GPUs that the cluster will have, for a server that starts before its nodes; None: those it has now.
        gpus_per_denoiser: GPUs of one node that make each video together; on the CPU, processes.
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
        prompt_upsampler: the chat server that rewrites prompts as captions; None: requests cannot ask for it.
        api_keys, api_keys_file: keys of the clients with access, in place or one to a line of a file; none: everybody.
        allowed_hosts: host names under which the server answers, besides addresses and localhost.
        allowed_origins: origins of other sites' web pages that may use the server.
        guard: ``module:Class`` that refuses prompts and frames, or a mapping with its options; None: nothing does.
        webhook_targets: URLs below which the ``webhook_url`` of a request may be; none: no webhooks.
        webhook_secrets_file: the secrets that sign webhooks, one to a line.
    """

    # Some fields are secret, so no error message shows a value.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    checkpoint: CheckpointPath = DEMO
    served_model_name: Annotated[tuple[Name, ...], BeforeValidator(_several)] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: Annotated[int, Field(ge=1)] | None = None
    gpus_per_denoiser: Annotated[int, Field(ge=1)] = 1
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
    prompt_upsampler: UpsamplerSettings | None = None
    api_keys: tuple[Annotated[str, AfterValidator(check_key)], ...] = ()
    api_keys_file: AbsolutePath | None = None
    allowed_hosts: tuple[Annotated[str, Field(pattern=HOST_PATTERN)], ...] = ()
    allowed_origins: tuple[Annotated[str, Field(pattern=ORIGIN_PATTERN)], ...] = ()
    guard: Annotated[GuardSettings | None, BeforeValidator(_spelt_out)] = None
    webhook_targets: tuple[Annotated[str, AfterValidator(check_target)], ...] = ()
    webhook_secrets_file: AbsolutePath | None = None

    def model_names(self) -> tuple[str, ...]:
        """The names by which requests may call the model; records hold the first one."""
        return self.served_model_name or (checkpoint_name(self.checkpoint),)

    def model_settings(self, device: str) -> ModelSettings:
        """What the ingress checks requests against, where the denoiser computes on ``device``."""
        names, ranks, upsampler = self.model_names(), self.gpus_per_denoiser, self.prompt_upsampler is not None
        limits = self.approximation, self.max_pixel_frames
        return ModelSettings(self.checkpoint, names, device, *limits, ranks, upsampler)

    def job_settings(self) -> JobSettings:
        """How jobs are stored, retried, and reported.

        Raises:
            ValueError: the file of secrets is missing, cannot be read, or is malformed.
        """
        return JobSettings(
            database_url=self.database_url or f"sqlite:///{self._folder() / 'jobs.sqlite'}",
            lease_s=self.lease_s,
            max_attempts=self.max_attempts,
            max_queued_jobs=self.max_queued_jobs,
            job_deadline_s=self.job_deadline_s,
            retention_s=self.retention_s,
            webhooks=self._webhooks(),
            **({"max_upsampling": self.prompt_upsampler.max_concurrent} if self.prompt_upsampler else {}),
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
        if self.api_keys_file:
            KEYS.check(self.api_keys_file)
        return Access(self.api_keys, self.api_keys_file, self.allowed_hosts, self.allowed_origins)

    def _webhooks(self) -> WebhookSettings:
        if self.webhook_targets and self.webhook_secrets_file is None:
            raise ValueError("webhook_secrets_file: got none, expected a file, because webhooks are signed")
        if self.webhook_secrets_file:
            SECRETS.check(self.webhook_secrets_file)
        return WebhookSettings(self.webhook_targets, self.webhook_secrets_file)

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
# A denoiser of several GPUs has such a share of each. More than half makes Ray choose different ones.
ONE_GPU = Placement("cuda", denoiser=0.6, video_encoder=0.1, video_decoder=0.2, sound_decoder=0.1)
SEVERAL_GPUS = Placement("cuda", denoiser=1, video_encoder=0.25, video_decoder=0.5, sound_decoder=0.25)


def build_app(args: AppArgs) -> Application:
    """Construct and bind; Serve starts the replicas."""
    args = args.model_copy(update={"checkpoint": pinned_checkpoint(args.checkpoint)})
    place = choose_placement(args.device, args.gpus_per_denoiser, args.gpus)
    settings, media = args.job_settings(), args.media()
    on_head = is_sqlite(settings.database_url) or args.media_url is None  # the files are on one machine
    stage = (args.checkpoint, place.device)
    names, policy, patience = args.model_names(), args.approximation, args.patience()
    decoders: Decoders = "same GPU" if place.denoiser < 1 else "another GPU"
    use = CardUse(args.max_pixel_frames, decoders, policy.allowed, args.gpus_per_denoiser)
    denoiser = (*stage, policy, args.offload_text, use, patience)
    stages = Stages(
        tokenizer=_deployment(Tokenizer, args, slots=8).bind(args.checkpoint),
        video_encoder=_deployment(VideoEncoder, args, slots=1, gpus=place.video_encoder).bind(*stage, patience),
        denoiser=_deployment(Denoiser, args, slots=1, gpus=place.denoiser, bundles=args.gpus_per_denoiser).bind(
            *denoiser
        ),
        video_decoder=_deployment(VideoDecoder, args, slots=1, gpus=place.video_decoder).bind(
            *stage, patience, args.guard
        ),
        sound_decoder=_deployment(SoundDecoder, args, slots=1, gpus=place.sound_decoder).bind(*stage, patience),
        prompt_upsampler=prompt_upsampler(args),
    )
    # Both only wait: each of their slots is a running job or a waiting client.
    runner = _deployment(JobRunner, args, slots=SLOTS, on_head=on_head).bind(stages, settings, media, names[0])
    ingress = _deployment(serve.ingress()(Ingress), args, slots=256, on_head=on_head)
    ingress = ingress.options(request_router_config=INGRESS_ROUTER)
    return ingress.bind(stages, runner, args.model_settings(place.device), settings, media, args.access(), args.guard)


def prompt_upsampler(args: AppArgs) -> Upsampler | None:
    """The stage that rewrites prompts, if one is configured.

    Raises:
        ValueError: the key for its chat server cannot be read.
    """
    if (settings := args.prompt_upsampler) is None:
        return None
    settings.key()
    from serve.upsampler.stage import PromptUpsampler  # here, because only servers with this stage need a client

    stage: Any = _deployment(PromptUpsampler, args, slots=settings.max_concurrent).bind(settings, args.guard)
    return Upsampler(stage, settings.timeout_s, settings.sees_pictures)


def choose_placement(
    device: Literal["auto", "cpu", "cuda"], per_denoiser: int = 1, expected: int | None = None
) -> Placement:
    """Choose the devices by the GPUs that the cluster will have, or else by those that it has now.

    Raises:
        ValueError: ``cuda`` on a cluster without a GPU, or no node with as many as one denoiser needs.
    """
    if device == "cpu":
        return CPU
    gpus = ray.cluster_resources().get("GPU", 0) if expected is None else expected
    if device == "cuda" and gpus == 0:
        raise ValueError("device: got 'cuda', expected 'auto' or 'cpu', because the cluster has no GPU")
    if gpus and per_denoiser > 1 and per_denoiser > (most := _most_gpus_of_a_node() if expected is None else expected):
        why = "no node of the cluster has more"
        raise ValueError(f"gpus_per_denoiser: got {per_denoiser}, expected {most:.0f} at most, because {why}")
    return CPU if gpus == 0 else ONE_GPU if gpus < per_denoiser + 1 else SEVERAL_GPUS


def _most_gpus_of_a_node() -> float:
    return max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])


def _deployment(
    stage: type, args: AppArgs, *, slots: int, gpus: float = 0, bundles: int = 1, on_head: bool = False
) -> Any:
    # A small share of a CPU, so that the whole graph fits on two cores; the stages take turns computing.
    actor: dict[str, Any] = {"num_cpus": 0.1, "num_gpus": gpus, "runtime_env": {"env_vars": ENVIRONMENT}}
    if on_head:
        actor["resources"] = {"node:__internal_head__": 0.001}
    # Several bundles: the replica is in the first one, and starts an actor in each other one.
    bundle = {"CPU": actor["num_cpus"]} | ({"GPU": gpus} if gpus else {})
    group = {"placement_group_bundles": [bundle] * bundles, "placement_group_strategy": "STRICT_PACK"}
    return serve.deployment(
        stage,
        name=stage.__name__,
        max_ongoing_requests=slots,
        request_router_config=ROUTER,
        # Long requests survive an update or a downscale: the old replica stops when they are done.
        graceful_shutdown_timeout_s=args.longest_request_s,
        ray_actor_options=actor,
        **(group if bundles > 1 else {}),
    )
