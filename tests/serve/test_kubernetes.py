"""The manifests for Kubernetes: the application in them is that of deploy.yaml, and KubeRay knows every field.

For the latter, KUBERAY_CRD names ``helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml`` of KubeRay's repository.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from paths import ROOT

from cosmos3_models.checkpoint.folder import DEMO
from serve.app import SEVERAL_GPUS, AppArgs, build_app
from serve.check import problems

FOLDER = ROOT / "deploy" / "kubernetes"
TEXT = (FOLDER / "rayservice.yaml").read_text()
SPEC = yaml.safe_load(TEXT)["spec"]
CONFIG = yaml.safe_load(SPEC["serveConfigV2"])
APPLICATION = CONFIG["applications"][0]
ARGS = APPLICATION["args"]
DEPLOY = yaml.safe_load((ROOT / "deploy.yaml").read_text())
CRD = os.environ.get("KUBERAY_CRD")
CLUSTER = SPEC["rayClusterConfig"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}


def pod(group: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = group["template"]["spec"]
    return spec


def container(group: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod(group)["containers"]
    return dict(found)


def all_groups() -> list[dict[str, Any]]:
    return [CLUSTER["headGroupSpec"], *GROUPS.values()]


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, but that objects have no other fields than those that it names."""
    made = {name: closed(value) if isinstance(value, dict) else value for name, value in schema.items()}
    return made | ({"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {})


@pytest.fixture(scope="module")
def kuberay() -> Draft202012Validator:
    if CRD is None:
        pytest.skip("KUBERAY_CRD names no definition of RayService")
    versions = yaml.load(Path(CRD).read_text(), yaml.CSafeLoader)["spec"]["versions"]
    wanted = yaml.safe_load(TEXT)["apiVersion"].rpartition("/")[2]
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == wanted)
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return Draft202012Validator(closed(schema))


def errors(kuberay: Draft202012Validator, text: str) -> list[str]:
    return [error.message for error in kuberay.iter_errors(yaml.safe_load(text))]


def test_kuberay_knows_every_field_of_the_manifest(kuberay: Draft202012Validator) -> None:
    assert errors(kuberay, TEXT) == []


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("rayClusterDeletionDelaySeconds: 3660", "rayClusterDeletionDelaySecond: 3660", "DelaySecond' was unexpected"),
        ("terminationGracePeriodSeconds: 60", "terminationGracePeriod: 60", "terminationGracePeriod' was unexpected"),
        ("minReplicas: 2", "minReplicas: two", "'two' is not of type 'integer'"),
        ("mode: token", "mode: tokens", "'tokens' is not one of"),
        ('num-cpus: "0"', "num-cpus: 0", "0 is not of type 'string'"),
        ("failureThreshold: 30", "failureThresholds: 30", "failureThresholds' was unexpected"),
        ("name: ray-head", "names: ray-head", "'name' is a required property"),
    ],
)
def test_a_field_that_kuberay_does_not_know_or_a_wrong_value_is_an_error(
    kuberay: Draft202012Validator, right: str, wrong: str, told: str
) -> None:
    assert right in TEXT
    assert told in "\n".join(errors(kuberay, TEXT.replace(right, wrong, 1)))


def test_the_application_differs_from_deploy_yaml_only_where_a_cluster_needs_it() -> None:
    (usual,) = DEPLOY["applications"]
    assert CONFIG | {"http_options": DEPLOY["http_options"], "applications": []} == DEPLOY | {"applications": []}
    assert CONFIG["http_options"] == DEPLOY["http_options"] | {"host": "0.0.0.0"}
    assert usual | {"args": 0, "deployments": 0} == APPLICATION | {"args": 0, "deployments": 0}
    changed = {name for name, value in ARGS.items() if value != usual["args"][name]}
    assert changed == {"checkpoint", "device", "gpus", "database_url", "media_url", "api_keys_file", "allowed_hosts"}
    assert len(APPLICATION["deployments"]) == len(usual["deployments"])
    for ours, theirs in zip(APPLICATION["deployments"], usual["deployments"], strict=True):
        assert ours == theirs | {name: ours[name] for name in ("num_replicas", "max_replicas_per_node") if name in ours}


def test_the_application_would_start(tmp_path: Path) -> None:
    keys = tmp_path / "api_keys"
    keys.write_text("0123456789abcdef\n")
    text = SPEC["serveConfigV2"].replace("nvidia/Cosmos3-Nano", DEMO).replace(ARGS["api_keys_file"], str(keys))
    assert problems(text) == []
    args = AppArgs(**yaml.safe_load(text)["applications"][0]["args"])
    ingress = build_app(args)._bound_deployment
    denoiser = ingress.init_args[0].denoiser._bound_deployment
    assert denoiser._replica_config.ray_actor_options["num_gpus"] == SEVERAL_GPUS.denoiser
    for deployment in (ingress, ingress.init_args[1]._bound_deployment):
        assert "resources" not in deployment._replica_config.ray_actor_options, "it need not be on the head node"


def test_the_gpus_of_the_pods_are_those_that_the_application_expects() -> None:
    gpus = GROUPS["gpu"]["replicas"] * container(GROUPS["gpu"])["resources"]["limits"]["nvidia.com/gpu"]
    assert ARGS["gpus"] == gpus
    (denoisers,) = (each["num_replicas"] for each in APPLICATION["deployments"] if each["name"] == "Denoiser")
    assert denoisers + 1 <= gpus, "the other stages share one"
    for group in GROUPS.values():
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"], "nothing here asks for more"
    spread = [each["num_replicas"] for each in APPLICATION["deployments"] if "max_replicas_per_node" in each]
    assert max(spread) <= sum(group["replicas"] for group in GROUPS.values())


def test_a_request_outlives_an_upgrade_and_an_eviction() -> None:
    longest_s = AppArgs(longest_request_s=ARGS["longest_request_s"]).longest_request_s
    assert SPEC["rayClusterDeletionDelaySeconds"] >= longest_s
    for group in GROUPS.values():
        (drain_s,) = (
            float(variable["value"])
            for variable in container(group)["env"]
            if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        )
        assert longest_s <= drain_s < pod(group)["terminationGracePeriodSeconds"]


def test_pods_that_serve_are_ready_with_the_graph_and_the_head_does_not_wait_for_it() -> None:
    for group in GROUPS.values():
        ports = {port["name"]: port["containerPort"] for port in container(group)["ports"]}
        assert ports == {"serve": CONFIG["http_options"]["port"]}
        assert container(group)["readinessProbe"]["httpGet"] == {"path": "/health", "port": ports["serve"]}
    assert not {"readinessProbe", "livenessProbe", "startupProbe"} & set(container(CLUSTER["headGroupSpec"]))
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no replica of a stage"


def test_no_container_is_root_and_all_have_the_same_secrets_and_a_target_of_the_dockerfile() -> None:
    dockerfile, guide = (ROOT / "deploy" / "Dockerfile").read_text(), (ROOT / "docs" / "deploy.md").read_text()
    for group in all_groups():
        assert pod(group)["securityContext"]["runAsNonRoot"]
        assert f"USER {pod(group)['securityContext']['runAsUser']}\n" in dockerfile
        assert f" AS {container(group)['image'].rpartition(':')[2]}\n" in dockerfile
        (secret,) = container(group)["envFrom"]
        assert f"create secret generic {secret['secretRef']['name']} " in guide
        keys = next(mount for mount in container(group)["volumeMounts"] if mount["name"] == "keys")
        assert ARGS["api_keys_file"] == f"{keys['mountPath']}/api_keys"
        volume = next(volume for volume in pod(group)["volumes"] if volume["name"] == "keys")
        assert f"create secret generic {volume['secret']['secretName']} --from-file=api_keys" in guide


def test_every_pod_has_a_disruption_budget_and_every_file_is_applied() -> None:
    budgets = list(yaml.safe_load_all((FOLDER / "disruption.yaml").read_text()))
    assert {(budget["apiVersion"], budget["kind"]) for budget in budgets} == {("policy/v1", "PodDisruptionBudget")}
    selected = [budget["spec"]["selector"]["matchLabels"] for budget in budgets]
    assert selected == [group["template"]["metadata"]["labels"] for group in all_groups()]
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert {*listed, "kustomization.yaml"} == {path.name for path in FOLDER.iterdir()}
    assert CLUSTER["rayVersion"] in (ROOT / "constraints.txt").read_text().split("\nray==")[1].splitlines()[0]
