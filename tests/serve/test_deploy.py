"""deploy.yaml is strict: every key is one that Ray Serve or this project reads."""

import inspect
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
import pytest
import ray
import yaml
from paths import ROOT
from ray.serve._private import constants

from cosmos3_models.checkpoint.folder import DEMO_FOLDER, CardUse
from serve.app import CPU, ENVIRONMENT, ONE_GPU, SEVERAL_GPUS, AppArgs, build_app, choose_placement
from serve.check import problems
from serve.cli import deploy_file
from serve.graph import media_stages, stages
from serve.ingress.ingress import Ingress
from serve.ingress.served_model import ModelSettings
from serve.jobs.runner import JobRunner

TEXT = (ROOT / "deploy.yaml").read_text()
CONFIG = yaml.safe_load(TEXT)
APPLICATION = CONFIG["applications"][0]
STAGES = (
    Ingress,
    JobRunner,
    stages.Tokenizer,
    media_stages.VideoEncoder,
    stages.Denoiser,
    media_stages.VideoDecoder,
    media_stages.SoundDecoder,
)


def test_deploy_yaml_has_no_problem() -> None:
    assert problems(TEXT) == []


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("proxy_location", "proxy_locations", "proxy_locations: unknown key"),
        ("request_timeout_s", "request_timeout", "http_options.request_timeout: unknown key"),
        ("max_queued_requests: 16", "max_queued_request: 16", "deployments.max_queued_request: unknown key"),
        ("retry_after_s", "retry_after", "deployments.backpressure_config.retry_after: unknown key"),
        ("max_attempts", "max_attempt", "max_attempt: Extra inputs are not permitted"),
        ("api_keys: []", "api_keys: [short]", "api_keys.0: got 5 characters, expected a key: 16 or more visible ASCII"),
        (
            "offload_text: auto",
            "offload_text: always",
            "offload_text.literal['auto']: got 'always', Input should be 'auto'",
        ),
        (
            "gpus_per_denoiser: 1",
            "gpus_per_denoiser: 8",
            "gpus_per_denoiser: got 8, expected one of 1, 2, 4, because they share the model's 4 key and value heads",
        ),
        ("gpus_per_denoiser: 1", "gpus_per_denoiser: 0", "gpus_per_denoiser: got 0, Input should be greater than"),
        ("device: auto", "device: tpu", "device: got 'tpu', Input should be 'auto', 'cpu' or 'cuda'"),
        (
            "checkpoint: demo ",
            "checkpoint: ./models/Nano ",
            "checkpoint: got './models/Nano', expected an absolute path, one from ~, demo, or owner/name",
        ),
        ("data_dir: ~/.cosmos3-serve", "data_dir: data", "data_dir: got 'data', expected an absolute path"),
        ("media_url: null", "media_url: ./media", "media_url: got './media', expected an absolute path"),
        ("api_keys_file: null", "api_keys_file: keys", "api_keys_file: got 'keys', expected an absolute path"),
        ("allowed: [fp8_linears,", "allowed: [int4,", "allowed: got 'int4', expected 'fp8_linears', "),
        (
            "{allowed: [fp8_linears, fp8_attention, velocity_reuse, guidance_reuse]}",
            "{profile: fast, allowed: []}",
            "approximation: got {'profile': 'fast', 'allowed': []}, velocity_reuse: got 5, expected 0, because",
        ),
        ("served_model_name: []", 'served_model_name: [""]', "served_model_name.0: got ''"),
        ("num_replicas: 1 ", "num_replicas: -1 ", "num_replicas"),
        ("applications:", "applications: [", "not YAML"),
    ],
)
def test_a_misspelt_key_or_a_wrong_value_is_told(right: str, wrong: str, told: str) -> None:
    assert right in TEXT
    assert told in "\n".join(problems(TEXT.replace(right, wrong)))


@pytest.mark.parametrize(
    ("needed", "told"),
    [
        ("transformer", "transformer/config.json: the file is missing"),
        ("text_tokenizer", "text_tokenizer/tokenizer_config.json: the file is missing"),
        ("vae/diffusion_pytorch_model.safetensors", "vae: no safetensors file in this folder"),
    ],
)
def test_a_checkpoint_that_would_not_load_is_told(tmp_path: Path, needed: str, told: str) -> None:
    folder = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "demo"))
    (folder / needed).rename(tmp_path / "elsewhere")
    assert problems(TEXT.replace("checkpoint: demo ", f"checkpoint: {folder} ")) == [f"{folder}/{told}"]


def read(*options: str, text: str = TEXT) -> str:
    file, changes = Path(tempfile.mkdtemp()) / "deploy.yaml", []
    file.write_text(text)
    command = click.command()(deploy_file.options(changes.append))
    command.main([str(file), *options], standalone_mode=False)
    (change,) = changes
    command.main(change.arguments, standalone_mode=False)
    assert changes == [change, change], "arguments give the same change again"
    return deploy_file.read(change)


def test_the_command_line_chooses_port_and_checkpoint_and_leaves_the_rest() -> None:
    assert yaml.safe_load(read()) == CONFIG
    changed = yaml.safe_load(read("--port=8001", "--checkpoint=/models/x"))
    assert changed["http_options"] == CONFIG["http_options"] | {"port": 8001}
    assert changed["applications"][0]["args"] == APPLICATION["args"] | {"checkpoint": "/models/x"}
    assert changed | {name: CONFIG[name] for name in ("http_options", "applications")} == CONFIG


def test_a_checkpoint_on_the_command_line_may_be_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for given, expected in (("x", str(tmp_path / "x")), ("demo", "demo"), ("~/x", os.path.expanduser("~/x"))):
        args = yaml.safe_load(read("--checkpoint", given))["applications"][0]["args"]
        assert args["checkpoint"] == expected


def test_a_checkpoint_on_the_command_line_is_this_projects_alone() -> None:
    other = {"name": "other", "route_prefix": "/other", "import_path": "other.app:build", "args": {"checkpoint": 1}}
    text = yaml.safe_dump(CONFIG | {"applications": [other, APPLICATION]})
    assert [a["args"]["checkpoint"] for a in yaml.safe_load(read("--checkpoint=demo", text=text))["applications"]] == [
        1,
        "demo",
    ]


@pytest.mark.parametrize("text", ["applications: [", "[]", "applications: 3", "x"])
def test_a_file_that_cannot_be_changed_is_left_to_the_check(text: str) -> None:
    assert read("--checkpoint=demo", text=text) == text
    assert problems(text)


def test_an_application_of_somebody_else_has_arguments_of_its_own() -> None:
    other = {"name": "other", "route_prefix": "/other", "import_path": "other.app:build", "args": {"anything": 1}}
    assert problems(yaml.safe_dump(CONFIG | {"applications": [APPLICATION, other]})) == []
    for path in ("serve.app:build_app", "serve.app.build_app"):
        ours = other | {"import_path": path}
        (problem,) = problems(yaml.safe_dump(CONFIG | {"applications": [APPLICATION, ours]}))
        assert problem == "anything: Extra inputs are not permitted"


@pytest.mark.parametrize("url", ["postgresql://user:hunter2@host/name", ["hunter2"]])
def test_no_secret_of_the_file_is_repeated(url: object) -> None:
    args = APPLICATION["args"] | {"database_url": url, "database_ur": url, "lease_s": 0}
    found = "\n".join(problems(yaml.safe_dump(CONFIG | {"applications": [APPLICATION | {"args": args}]})))
    assert "lease_s: got 0" in found
    assert "hunter2" not in found


def test_every_argument_in_the_yaml_is_its_default_so_that_there_is_one_truth() -> None:
    assert AppArgs(**APPLICATION["args"]) == AppArgs()
    assert set(APPLICATION["args"]) == set(AppArgs.model_fields)


def test_every_process_gets_the_same_absolute_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    args = AppArgs(checkpoint="~/nano", data_dir="~/data", media_url="s3://bucket/videos", device="cpu")
    assert (args.checkpoint, args.data_dir, args.media_url) == ("/home/me/nano", "/home/me/data", "s3://bucket/videos")
    deployments = bound_deployments(build_app(args))
    for name in ("Tokenizer", "VideoEncoder", "Denoiser", "VideoDecoder", "SoundDecoder"):
        assert deployments[name].init_args[0] == "/home/me/nano"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ("cosmos3-demo",)),
        ({"served_model_name": "nano"}, ("nano",)),
        ({"served_model_name": ["a", "b"]}, ("a", "b")),
    ],
)
def test_the_model_has_the_names_that_it_is_given(given: dict[str, Any], names: tuple[str, ...]) -> None:
    ingress = bound_deployments(build_app(AppArgs(device="cpu", **given)))["Ingress"]
    [model] = [value for value in ingress.init_args if isinstance(value, ModelSettings)]
    assert model.names == names


@pytest.mark.parametrize(("gpus", "decoders"), [(1, "same GPU"), (2, "another GPU")])
def test_the_denoiser_knows_what_else_its_card_is_for(
    monkeypatch: pytest.MonkeyPatch, gpus: int, decoders: Any
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": gpus})
    args = AppArgs(max_pixel_frames=1000, approximation={"allowed": ["velocity_reuse"]})
    assert CardUse(1000, decoders, ("velocity_reuse",)) in bound_deployments(build_app(args))["Denoiser"].init_args


def test_the_names_that_need_no_import_of_the_graph_are_the_graphs() -> None:
    assert f"{build_app.__module__}.{build_app.__name__}" == deploy_file.BUILDER


def test_every_deployment_is_listed_with_queue_and_health() -> None:
    listed = {deployment["name"]: deployment for deployment in APPLICATION["deployments"]}
    assert set(listed) == {stage.__name__ for stage in STAGES}
    for deployment in listed.values():
        assert {"num_replicas", "max_queued_requests", "health_check_period_s", "health_check_timeout_s"} <= set(
            deployment
        )


def test_the_proxy_takes_a_burst_that_the_table_of_jobs_takes() -> None:
    (ingress,) = (deployment for deployment in APPLICATION["deployments"] if deployment["name"] == "Ingress")
    assert ingress["max_queued_requests"] >= APPLICATION["args"]["max_queued_jobs"]


def test_serve_reads_the_settings_that_replicas_get_by_environment() -> None:
    settings = {name for name in ENVIRONMENT if name.startswith("RAY_SERVE_")}
    assert settings <= set(vars(constants)), "Ray may rename or drop what it does not document"
    for deployment in bound_deployments(build_app(AppArgs(device="cpu"))).values():
        assert deployment.ray_actor_options["runtime_env"]["env_vars"] == ENVIRONMENT


def test_every_deployment_lets_the_longest_request_finish_and_gpu_stages_take_one_at_a_time() -> None:
    deployments = bound_deployments(build_app(AppArgs(device="cpu", longest_request_s=1234)))
    assert set(deployments) == {stage.__name__ for stage in STAGES}
    for name, deployment in deployments.items():
        assert deployment._deployment_config.graceful_shutdown_timeout_s == 1234
        if name in ("VideoEncoder", "Denoiser", "VideoDecoder", "SoundDecoder"):
            assert deployment.max_ongoing_requests == 1


def bound_deployments(application: Any) -> dict[str, Any]:
    """The deployments of a bound graph: the ingress and what it is given."""
    ingress = application._bound_deployment
    stages, runner, *_ = ingress.init_args
    children = [child._bound_deployment for child in (*stages, runner) if child is not None]
    return {deployment.name: deployment for deployment in (ingress, *children)}


@pytest.mark.parametrize(("gpus", "expected"), [(0, CPU), (1, ONE_GPU), (1.5, ONE_GPU), (2, SEVERAL_GPUS)])
def test_auto_follows_the_clusters_gpus(monkeypatch: pytest.MonkeyPatch, gpus: float, expected: object) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0} | ({"GPU": gpus} if gpus else {}))
    assert choose_placement("auto") == expected
    assert choose_placement("cpu") == CPU


@pytest.mark.parametrize(("gpus", "expected"), [(1, ONE_GPU), (2, SEVERAL_GPUS)])
def test_gpus_that_have_not_joined_yet_count_if_they_are_announced(
    monkeypatch: pytest.MonkeyPatch, gpus: int, expected: Any
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    for device in ("auto", "cuda"):
        denoiser = bound_deployments(build_app(AppArgs(device=device, gpus=gpus)))["Denoiser"]
        assert denoiser._replica_config.ray_actor_options["num_gpus"] == expected.denoiser
        assert denoiser.init_args[1] == "cuda"
    assert choose_placement("cpu", 1, gpus) == CPU
    with pytest.raises(ValueError, match=f"gpus_per_denoiser: got 4, expected {gpus} at most, because"):
        choose_placement("auto", 4, gpus)


def test_the_stages_reserve_one_card_or_two_in_whole() -> None:
    for place, cards in ((CPU, 0), (ONE_GPU, 1), (SEVERAL_GPUS, 2)):
        shares = place[1:]
        assert sum(shares) == pytest.approx(cards)
        assert all(shares) == (cards > 0)
        assert len(shares) == len(STAGES) - 3, "the ingress, the runner and the tokenizer need none"


def nodes_with(monkeypatch: pytest.MonkeyPatch, *gpus: float) -> None:
    """A cluster of nodes with as many GPUs each."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": sum(gpus)} if sum(gpus) else {})
    nodes = [{"Alive": True, "Resources": {"GPU": count} if count else {}} for count in gpus]
    dead = {"Alive": False, "Resources": {"GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [dead, *nodes])


@pytest.mark.parametrize(("gpus", "expected"), [(0, CPU), (2, ONE_GPU), (3, SEVERAL_GPUS)])
def test_a_denoiser_of_two_gpus_shares_them_unless_there_is_another(
    monkeypatch: pytest.MonkeyPatch, gpus: float, expected: object
) -> None:
    nodes_with(monkeypatch, gpus)
    assert choose_placement("auto", 2) == expected
    assert ONE_GPU.denoiser > 0.5, "else Ray could put both ranks on one"


@pytest.mark.parametrize("gpus", [(2,), (0, 2, 1), (2, 2, 2)])
def test_more_gpus_for_a_denoiser_than_any_node_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[float, ...]
) -> None:
    nodes_with(monkeypatch, *gpus)
    with pytest.raises(ValueError, match="gpus_per_denoiser: got 4, expected 2 at most, because"):
        choose_placement("auto", 4)


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_denoiser_of_two_ranks_reserves_two_bundles_of_one_node(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    nodes_with(monkeypatch, gpus)
    for name, deployment in bound_deployments(build_app(AppArgs(gpus_per_denoiser=2))).items():
        config = deployment._replica_config
        if name != "Denoiser":
            assert config.placement_group_bundles is None
            continue
        bundle = {"CPU": 0.1} | ({"GPU": 0.6} if gpus else {})
        assert config.placement_group_bundles == [bundle, bundle]
        assert config.placement_group_strategy == "STRICT_PACK"
        options = config.ray_actor_options
        assert (options["num_cpus"], options["num_gpus"]) == (0.1, bundle.get("GPU", 0)), "the first bundle is its own"


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ValueError, match="device: got 'cuda', expected 'auto' or 'cpu', because"):
        choose_placement("cuda")


def test_the_tokenizer_works_beside_its_event_loop() -> None:
    for verb in (stages.Tokenizer.encode, stages.Tokenizer.encode_all):
        assert not inspect.iscoroutinefunction(verb), "Serve runs a plain function in a thread"


def test_stages_are_plain_classes_that_say_what_they_take() -> None:
    for stage in STAGES:
        assert inspect.isclass(stage)
        assert all(p.annotation is not inspect.Parameter.empty for p in inspect.signature(stage).parameters.values())
