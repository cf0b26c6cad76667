"""The server process: uvicorn, with a stop that finishes what was admitted and an exit code that tells."""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app import logs
from app.connection import Connection
from app.listener import MOST_MESSAGE_BYTES
from app.logs import logger
from app.main import create_app, load_tagger
from app.settings import Settings, unknown_names
from app.state import State
from app.stream_connection import StreamConnection
from model.bundle import BundleError
from model.engine import EngineError
from model.limits import may_open_all_files
from model.tagger import DeviceError

CLOSING_S = 3
STARTUP_FAILURE = 3
"""Uvicorn's exit code."""


class Server(uvicorn.Server):
    """On SIGTERM or SIGINT: not ready at once, admitted work finishes in time, then the port closes.

    uvicorn alone would close the port first, so that nobody could see that the instance is not ready any
    more, and would end the process by the signal instead of with exit code 0.
    """

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state
        self._told = 0.0
        self._told_ready = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the tagger, then start; here, as what the lifespan raises is told by its traceback."""
        try:
            self._state.tagger = await asyncio.to_thread(load_tagger, self._state.settings)
        except (BundleError, DeviceError, EngineError) as error:
            logger.critical(f"cannot start: {error} (TAGGER_WEIGHTS, TAGGER_DEVICE, TAGGER_ENGINE)")
            raise SystemExit(STARTUP_FAILURE) from None
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin to stop; a second SIGINT stops without waiting."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        elif not self.should_exit:
            self.should_exit = self._state.draining = True
            self._told = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Whether to close the port now; uvicorn asks ten times a second."""
        if self._state.draining:
            self._state.stopping.set()  # here, because a signal's handler would not wake the loop
        self._tell_ready()
        return await super().on_tick(counter) and self._may_close()

    def _tell_ready(self) -> None:
        """Uvicorn says that it runs before anything can be answered."""
        if self._state.warm and not self._told_ready:
            self._told_ready = True
            port = self.servers[0].sockets[0].getsockname()[1]
            logger.info(f"ready on http://{_bracketed(self.config.host)}:{port}")

    def _may_close(self) -> bool:
        waited = time.monotonic() - self._told
        settings = self._state.settings
        if self.force_exit:
            return True
        if self._state.failed or waited > settings.grace_s:
            self._state.end_grace()
            return self._state.failed or waited >= settings.drain_delay_s
        return self._state.admitted == 0 and waited >= settings.drain_delay_s


def serve(settings: Settings) -> int:
    """Serve until told to stop. Returns the process's exit code: 0 in order, 1 if the service failed.

    Exits with 3 if the port is taken (found before anything is loaded) or the model cannot be loaded.
    """
    logs.configure(settings.log_level)
    warn_if_open(settings)
    for name in unknown_names(os.environ):
        logger.warning(f"{name} is no setting, and is ignored; docs/settings.md has them all")
    may_open_all_files()  # each connection is one, and each clip that is held, of which a form may have many
    app = create_app(settings)
    state: State = app.state.tagger_service
    config = _config(app, settings)
    Server(config, state).run(sockets=[_listen(config)])
    code = 1 if state.failed else 0
    if state.loaded and state.loaded.batcher.alive:  # a pass that hangs in native code would abort the exit
        logging.shutdown()
        os._exit(code)
    return code


def warn_if_open(settings: Settings) -> None:
    """Log once that whoever reaches the service may use it, if others than this machine may."""
    if not settings.api_keys and not _is_loopback(settings.host):
        logger.warning(f"no keys: whoever reaches {settings.host} may use the service; set TAGGER_API_KEYS")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen(config: uvicorn.Config) -> socket.socket:
    try:
        return config.bind_socket()
    except SystemExit as end:
        where = f"{_bracketed(config.host)}:{config.port}"
        reason = end.__context__  # uvicorn exits while it handles what the system said
        told = reason.strerror if isinstance(reason, OSError) else "unknown reason"
        logger.critical(
            f"cannot listen on {where}: {told}; free it, or name another with TAGGER_HOST and TAGGER_PORT"
        )
        raise


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws=StreamConnection,
        # Behind sound that is held back, the answer to a ping comes late; `stream_idle_s` finds who is gone.
        ws_ping_interval=None,
        ws_max_size=MOST_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # sound does not get smaller, and each stream would hold its windows
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=CLOSING_S,
    )


if __name__ == "__main__":
    raise SystemExit(serve(Settings()))
