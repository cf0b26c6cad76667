"""Prometheus and Grafana: what they ask for is what the service tells, and a real Prometheus gets it."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.metrics import PREFIX, Metrics
from app.settings import Settings
from tests.app.service import PATIENCE_S, free_port, server_process, tune
from tests.deploy.files import DEPLOY, ROOT, alerts, queries, read

# .ci/run brings it from Debian; there its absence is a failure and not a reason to skip.
needs_prometheus = pytest.mark.skipif(
    not shutil.which("promtool") and not os.environ.get("CI"), reason="Debian's package prometheus is missing"
)
METRIC = re.compile(rf"\b(?:{PREFIX}_|process_)\w+")
KEY = "a-key-of-prometheus"


PARTS = ("_bucket", "_sum", "_count")  # of a histogram


def exported() -> set[str]:
    """The names of all samples that /metrics can have."""
    text = Metrics().exposition().decode()
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    parts = [f"{name}{part}" for name, kind in kinds if kind == "histogram" for part in PARTS]
    return {name for name, _ in kinds} | set(parts)


def promtool(*arguments: object) -> None:
    command = ["promtool", *map(str, arguments)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", queries())
def test_the_dashboard_shows_what_the_service_tells(name: str) -> None:
    named = set(METRIC.findall(queries()[name]))

    assert named
    assert named <= exported()


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_asks_for_what_the_service_tells(rule: dict[str, Any]) -> None:
    assert set(METRIC.findall(rule["expr"])) <= exported()


def test_the_autoscaler_asks_for_what_the_service_tells() -> None:
    text = (DEPLOY / "kubernetes/components/monitoring/kustomization.yaml").read_text(encoding="utf-8")

    assert set(METRIC.findall(text)) == {"music_tagger_admitted_segments"}
    assert "music_tagger_admitted_segments" in exported()


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    sections = re.findall(r"^### (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)

    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in sections


def test_the_bounds_of_alerts_are_those_of_the_settings_and_limits() -> None:
    rules = {rule["alert"]: rule["expr"] for rule in alerts()}
    settings = Settings()
    compose = read("compose.yaml")["services"]["tagger"]["deploy"]["resources"]["limits"]
    (container,) = read("kubernetes/base/deployment.yaml")["spec"]["template"]["spec"]["containers"]

    assert rules["MusicTaggerLatencyHigh"].rstrip().endswith(f"> {settings.request_timeout_s / 2:g}")
    assert rules["MusicTaggerQueueOld"].endswith(f"> {settings.max_wait_s / 2:g}")
    assert compose["memory"] == "2G"
    assert container["resources"]["limits"]["memory"] == "2Gi"
    assert rules["MusicTaggerMemoryHigh"].endswith("> 0.9 * 2 * 1024^3")


def test_the_dashboard_is_complete_and_uses_the_provisioned_source() -> None:
    dashboard = read("grafana/dashboards/music-tagger.json")
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    panels = dashboard["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["description"] for panel in panels)
    assert {panel["datasource"]["uid"] for panel in panels if "targets" in panel} == {source["uid"]}
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["instance"]
    cells = [cell for panel in panels for cell in _cells(panel["gridPos"])]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(column for column, _ in cells) < 24


def _cells(at: dict[str, int]) -> Iterator[tuple[int, int]]:
    for column in range(at["x"], at["x"] + at["w"]):
        for row in range(at["y"], at["y"] + at["h"]):
            yield column, row


@needs_prometheus
def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    promtool("check", "config", _config(tmp_path, "tagger:8000"))


@needs_prometheus
def test_every_alert_fires_when_it_should_and_only_then() -> None:
    promtool("test", "rules", Path(__file__).with_name("alerts_test.yaml"))
    tested = Path(__file__).with_name("alerts_test.yaml").read_text(encoding="utf-8")

    assert [rule["alert"] for rule in alerts() if rule["alert"] not in tested] == []


@needs_prometheus
def test_a_real_prometheus_fills_the_dashboard(tmp_path: Path) -> None:
    with server_process(api_keys=f"a-key-of-a-client,{KEY}") as service:
        bearer = {"Authorization": "Bearer a-key-of-a-client"}
        with prometheus(_config(tmp_path, service.url.removeprefix("http://"))) as server:
            _wait_for(server, "music_tagger_ready == 1")
            assert service.post(tune(12), headers=bearer).status_code == 200
            _wait_for(server, 'music_tagger_requests_total{outcome="ok",operation="POST /v1/tags"}')
            for seconds in (3, 30):
                assert service.post(tune(seconds), headers=bearer).status_code == 200
            _wait_for(server, 'rate(music_tagger_requests_total{operation="POST /v1/tags"}[1m]) > 0')

            answers = {name: _ask(server, _as_grafana_asks(query)) for name, query in queries().items()}
            groups = httpx.get(f"{server}/api/v1/rules").json()["data"]["groups"]

    assert [name for name, found in answers.items() if not found] == []
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert len(groups[0]["rules"]) == len(alerts())
    assert float(answers["Ready A"][0]["value"][1]) == 1


def _config(folder: Path, target: str) -> Path:
    """The configuration as it is deployed, but for the target, the key's place and the pace."""
    config = read("prometheus/prometheus.yaml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["tagger:8000"]}]
    job["static_configs"] = [{"targets": [target]}]
    job["authorization"]["credentials_file"] = str(folder / "key")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "key").write_text(KEY, encoding="utf-8")
    shutil.copy(DEPLOY / "prometheus" / "alerts.yaml", folder)
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextmanager
def prometheus(config: Path) -> Iterator[str]:
    """A real Prometheus on a port of its own; yields its address."""
    port = free_port()
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={config.parent / 'data'}"]
    process = subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _as_grafana_asks(query: str) -> str:
    return query.replace("$__rate_interval", "1m").replace("$instance", ".*")


def _ask(server: str, query: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{server}/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


def _wait_for(server: str, query: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            if _ask(server, query):
                return
        except (httpx.TransportError, ValueError):
            pass  # it is starting
        time.sleep(0.2)
    raise AssertionError(f"no answer to {query}")
