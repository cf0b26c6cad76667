"""The real server keeps what its OpenAPI promises: schemathesis sends what fits it, and what does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.service import server_process

CONFIG = Path(__file__).parent / "contract" / "schemathesis.toml"
PROGRAM = Path(sys.executable).with_name("schemathesis")
ROOT = Path(__file__).parents[2]


def test_the_server_answers_as_declared() -> None:
    with server_process(api_keys="secret") as server:
        run = subprocess.run(
            [PROGRAM, "--config-file", CONFIG, "run", f"{server.url}/openapi.json", "--checks", "all"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    told = f"{run.stdout}\n{run.stderr}"
    if run.returncode:
        pytest.fail(told)
    cases = re.search(r"(\d+) generated", told)
    assert cases, told
    assert int(cases[1]) > 300
    assert "9 selected / 9 total" in told
    assert [line["message"] for line in server.log_lines() if line["level"] in ("error", "critical")] == []
