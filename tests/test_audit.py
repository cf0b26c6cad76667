"""`make audit` behind a mirror that tells of each package's newest release only."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts.audit import FOUND, KNOWN_BAD_NEWEST, NONE, NOT_AUDITED, audit_newest

PAGES = {KNOWN_BAD_NEWEST: ("2.6.1", ["PYSEC-2017-94"]), "sound": ("2.0", []), "holed": ("3.1", ["GHSA-1"])}


class Mirror(BaseHTTPRequestHandler):
    """Answers `/NAME` as PyPI's page of a project does, and says 404 to what it does not know."""

    def do_GET(self) -> None:
        version, holes = PAGES.get(self.path.removeprefix("/"), ("", []))
        page = {"info": {"version": version}, "vulnerabilities": [{"id": hole} for hole in holes]}
        self.send_response(200 if version else 404)
        self.end_headers()
        self.wfile.write(json.dumps(page).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{{}}"
        server.shutdown()


@pytest.mark.parametrize(
    ("locked", "code", "told"),
    [
        ({"sound": "2.0"}, NONE, ["1 of 1 packages audited: 0 have"]),
        ({"sound": "2.0", "holed": "3.1"}, FOUND, ["holed 3.1: GHSA-1", "2 of 2 packages audited: 1 have"]),
        ({"sound": "1.9"}, NOT_AUDITED, ["0 of 1 packages", "NOT AUDITED", "sound 1.9"]),
        ({"sound": "1.9", "holed": "3.1"}, FOUND, ["holed 3.1: GHSA-1", "NOT AUDITED", "sound 1.9"]),
        ({"unheard-of": "1.0"}, NOT_AUDITED, ["NOT AUDITED: no service"]),
    ],
)
def test_what_is_locked_at_its_newest_release_is_audited(
    mirror: str, capsys: pytest.CaptureFixture[str], locked: dict[str, str], code: int, told: list[str]
) -> None:
    found = audit_newest(locked, mirror)

    assert found == code
    said = "".join(capsys.readouterr())
    assert all(words in said for words in told)


def test_a_mirror_that_knows_no_holes_is_not_believed(
    mirror: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PAGES, KNOWN_BAD_NEWEST, ("2.6.1", []))

    assert audit_newest({"sound": "2.0"}, mirror) == NOT_AUDITED
    assert "no service" in capsys.readouterr().err
