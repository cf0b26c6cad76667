"""GET /: the page for people, and the files under /web/ that it loads; nothing comes from outside."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER: Final = Path(__file__).parents[1] / "web"
# Stricter than the docs': no inline script or style. blob: is the user's own clip, played in the browser;
# connect-src 'self' covers the WebSocket of this host, too.
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter()


class WebFiles(StaticFiles):
    """The page's files. Their names never change, so a browser asks each time and mostly gets a 304."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer one file, always whole: all are small. Raises HTTPException if there is none."""
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


files = WebFiles(directory=FOLDER)


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def home(request: Request) -> Response:
    """Answer the page."""
    response = await files.get_response("index.html", request.scope)
    response.headers.update(HEADERS)
    return response
