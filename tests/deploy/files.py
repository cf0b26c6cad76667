"""The files under deploy/, read."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def read(path: str) -> Any:  # noqa: ANN401 - YAML's own
    """One document of YAML, or of JSON, which is YAML, too."""
    return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read("prometheus/alerts.yaml")["groups"] for rule in group["rules"]]


def queries() -> dict[str, str]:
    """Every query of the dashboard, by its panel's title and its letter."""
    panels = read("grafana/dashboards/music-tagger.json")["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels
        for target in panel.get("targets", ())
    }
