"""The application: `create_app` puts the parts together.

    uvicorn --factory app.main:create_app

serves it; `music-tagger serve` does so with an orderly stop and JSON logs (see app.server).
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from app import __version__, logs, openapi, problems, redoc
from app.admission import Admission
from app.context import RequestContext
from app.pipeline import Pipeline
from app.routes import batch, health, huggingface, model, page, stream, tags
from app.routes import problems as problem_routes
from app.settings import Settings
from app.state import State
from model.bundle import Bundle
from model.tagger import Tagger

WATCH_S: Final = 1.0
TELEMETRY: Final[TelemetryConfig] = {"auto_configure": True, "logs": False, "operation_spans": False}
"""A span a request, and its metrics, once OpenTelemetry's own variables say where they go
(`OTEL_EXPORTER_OTLP_ENDPOINT`). No logs: an exception's text might tell of a clip."""

EXPORT_S: Final = "2"
"""Seconds, if OpenTelemetry's own variable names none: by default, a dead collector holds up a stop by 25."""


def terminate() -> None:
    """Ask this process to stop in order, as an orchestrator would."""
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(
    settings: Settings | None = None,
    *,
    tagger: Tagger | None = None,
    on_failure: Callable[[], None] = terminate,
) -> FastAPI:
    """Build the application.

    Args:
        settings: all knobs; from the environment if none are given.
        tagger: a loaded tagger to serve; else the one that the settings name is loaded at start-up.
        on_failure: called, from any thread, when the service cannot recover.
    """
    state = State(settings or Settings(), on_failure)
    state.tagger = tagger
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", EXPORT_S)
    app: FastAPI = FastAPIOffline(
        title="music-tagger",
        version=__version__,
        description=openapi.DESCRIPTION,
        contact=openapi.CONTACT,
        license_info=openapi.LICENSE,
        servers=openapi.SERVERS,
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=openapi.operation_id,
        lifespan=_lifespan_of(state),
        redirect_slashes=False,
        telemetry=TELEMETRY,
    )
    app.router.routes.insert(0, redoc.ROUTE)
    app.state.tagger_service = state
    problems.install(app)
    for routes in (tags, batch, huggingface, stream, model, health, problem_routes):
        app.include_router(routes.router)
    app.include_router(page.router)
    app.mount("/web", page.files)
    _surround(app, state)
    openapi.describe(app, with_key=bool(state.settings.api_keys), bundle=_bundle_of(state))
    return app


def load_tagger(settings: Settings) -> Tagger:
    """The tagger that the settings name; raises what `Tagger.load` raises."""
    return Tagger.load(settings.weights, settings.device, settings.engine, settings.threads)


def _bundle_of(state: State) -> Callable[[], Bundle | None]:
    """Give a function that tells which bundle is served, as soon as that is known."""

    def bundle() -> Bundle | None:
        known = state.loaded.tagger if state.loaded else state.tagger
        return known.bundle if known else None

    return bundle


def _lifespan_of(state: State) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        settings = state.settings
        logs.configure(settings.log_level)
        loaded = state.tagger
        if loaded is None:
            loaded = await asyncio.to_thread(load_tagger, settings)
        pipeline = state.loaded = Pipeline(loaded, settings, state.metrics, state.fail)
        pipeline.batcher.start()
        tasks = [asyncio.create_task(_warm_up(state)), asyncio.create_task(_watch(state))]
        try:
            yield
        finally:
            state.draining = True
            state.stopping.set()
            for task in tasks:
                task.cancel()
            await asyncio.to_thread(pipeline.close)

    return lifespan


async def _warm_up(state: State) -> None:
    try:
        await state.pipeline.warm_up()
        state.warm = True
    except Exception:
        logs.logger.exception("the model failed to answer the warm-up")
        state.fail()


async def _watch(state: State) -> None:
    """See to it that a worker that is dead and was not replaced, whatever the reason, ends the service."""
    while state.pipeline.batcher.alive:
        await asyncio.sleep(WATCH_S)
    if not state.failed:
        state.fail()


def _surround(app: FastAPI, state: State) -> None:
    """Add what surrounds the routes; the last one added is the outermost."""
    app.add_middleware(Admission, state=state)
    app.add_middleware(RequestContext, metrics=state.metrics)
    if state.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=state.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID", "X-Request-Timeout"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
