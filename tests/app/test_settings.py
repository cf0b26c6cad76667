"""Settings: from the environment, checked, explained."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.server import warn_if_open
from app.settings import Settings, hash_key, unknown_names


def test_each_setting_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAGGER_MAX_UPLOAD_MB", "12.5")
    monkeypatch.setenv("TAGGER_CORS_ORIGINS", "https://a.example, https://b.example")

    settings = Settings()

    assert settings.max_upload_bytes == 12_500_000
    assert settings.cors_origins == ("https://a.example", "https://b.example")


def test_a_connection_is_kept_for_longer_than_by_proxies() -> None:
    assert Settings().keep_alive_s > 120  # Caddy's, the longest of those that are common


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    default = Settings()
    for name in ("TAGGER_WEIGHTS", "TAGGER_THREADS", "TAGGER_DECODERS", "TAGGER_API_KEYS"):
        monkeypatch.setenv(name, "")

    assert Settings() == default


def test_keys_are_hashed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAGGER_API_KEYS", "open-sesame,other")

    settings = Settings()

    assert settings.api_keys == (hash_key("open-sesame"), hash_key("other"))
    assert "open-sesame" not in repr(settings) + settings.model_dump_json()
    assert hash_key("open-sesame") not in repr(settings)


def test_keys_may_lie_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("of-a-file\nanother, third\n")
    monkeypatch.setenv("TAGGER_API_KEYS_FILE", str(tmp_path / "keys"))
    alone = Settings()
    monkeypatch.setenv("TAGGER_API_KEYS", "open-sesame")

    beside = Settings()

    assert alone.api_keys == tuple(map(hash_key, ("of-a-file", "another", "third")))
    assert beside.api_keys == (hash_key("open-sesame"), *alone.api_keys)


@pytest.mark.parametrize(
    "content", [None, b"", b"\n , \n", b"\xff\xfe"], ids=["none", "empty", "blank", "binary"]
)
def test_a_file_without_a_key_does_not_open_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    monkeypatch.setenv("TAGGER_API_KEYS_FILE", str(tmp_path / "keys"))

    with pytest.raises(ValidationError, match="TAGGER_API_KEYS_FILE"):
        Settings()


@pytest.mark.parametrize("value", [" , ", "\n", ",", " "])
def test_keys_without_a_key_do_not_open_the_service(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TAGGER_API_KEYS", value)

    with pytest.raises(ValidationError, match="TAGGER_API_KEYS is set but holds no key"):
        Settings()


@pytest.mark.parametrize("key", ["schlüssel", "鍵", "a\tb"])
def test_keys_that_no_header_can_bear_are_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("TAGGER_API_KEYS", f"fine,{key}")

    with pytest.raises(ValidationError, match="printable ASCII"):
        Settings()


@pytest.mark.parametrize(
    ("host", "keys", "is_warned"),
    [
        ("192.0.2.1", "", True),
        ("::", "", True),
        ("music.example", "", True),
        ("192.0.2.1", "the-key", False),
        ("127.0.0.1", "", False),
        ("::1", "", False),
        ("localhost", "", False),
    ],
)
def test_a_service_that_is_open_to_others_warns_of_it(
    caplog: pytest.LogCaptureFixture, host: str, keys: str, is_warned: bool
) -> None:
    warn_if_open(Settings(host=host, api_keys=keys))  # type: ignore[arg-type]

    assert [record.levelname for record in caplog.records] == ["WARNING"] * is_warned
    assert ("TAGGER_API_KEYS" in caplog.text) == is_warned


def test_a_name_that_is_no_setting_is_found() -> None:
    names = ["TAGGER_QUEUE_SEGMENT", "TAGGER_QUEUE_SEGMENTS", "tagger_port", "PATH"]

    assert unknown_names(names) == ["TAGGER_QUEUE_SEGMENT"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("device", "tpu"),
        ("max_upload_mb", "0"),
        ("max_upload_mb", "1000"),
        ("request_timeout_s", "601"),
        ("clip_segments", "2000"),
        ("min_audio_s", "-1"),
        ("batch_segments", "many"),
        ("cors_origins", "https://a.example/"),
        ("cors_origins", "a.example"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"TAGGER_{name.upper()}", value)

    with pytest.raises(ValidationError, match=name):
        Settings()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_explained(name: str) -> None:
    description = Settings.model_fields[name].description

    assert description
    assert len(description) > 40


def test_defaults_follow_the_cores_that_the_process_may_use() -> None:
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from app.settings import Settings; print(Settings().decoders)"

    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert told.stdout == "1\n"
