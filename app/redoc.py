"""Redoc's script, without the logo that it would fetch from its makers' host."""

from functools import cache
from pathlib import Path
from typing import Final

import fastapi_offline
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_SCRIPT: Final = Path(fastapi_offline.__file__).parent / "static" / "redoc.standalone.js"
_LOGO: Final = "https://cdn.redoc.ly/redoc/logo-mini.svg"


@cache
def script() -> str:
    """The script; an empty image stands where the logo's address was."""
    return _SCRIPT.read_text(encoding="utf-8").replace(_LOGO, "data:,")


async def _answer(_: Request) -> Response:
    return Response(script(), media_type="text/javascript")


ROUTE: Final = Route("/static-offline-docs/redoc.standalone.js", _answer)
"""To stand before the folder in which fastapi-offline serves the script as it comes."""
