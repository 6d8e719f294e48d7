"""Files for people: the page at `/`, what it loads from `/static`, the description of the API and its page.

- All of it lies beside the code, so that it works where nothing else can be reached; nothing outside is ever loaded.
- The rule of content lets a page load from here, record, play what it has recorded, and no more.
"""

import mimetypes
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from .encoding import Json, dumps
from .guide import STYLE, html_of
from .media import JSON
from .problems import Refusal

WEB = Path(__file__).resolve().parent.parent / "web"
POLICY = (
    "default-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}


class Pages:
    """The routes.

    Args:
        document: OpenAPI's.
        web: folder of the page.
    """

    def __init__(self, document: Json, web: Path = WEB) -> None:
        self._web = web
        self._openapi, self._guide = dumps(document), html_of(document)

    async def index(self, request: Request) -> Response:  # noqa: ARG002 -- Starlette gives it
        """The page."""
        return self._file("index.html")

    async def static(self, request: Request) -> Response:
        """One file of the page."""
        return self._file(request.path_params["name"])

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002
        """The description of the API."""
        return Response(self._openapi, media_type=JSON)

    async def guide(self, request: Request) -> Response:  # noqa: ARG002
        """The same for people."""
        return Response(self._guide, headers=dict(_HEADERS), media_type="text/html")

    async def guide_style(self, request: Request) -> Response:  # noqa: ARG002
        """How that page looks."""
        return Response(STYLE, headers=dict(_HEADERS), media_type="text/css")

    def _file(self, name: str) -> Response:
        # Only what lies in the folder itself: a name with a separator is none of its files.
        files = {path.name: path for path in self._web.iterdir() if path.is_file()} if self._web.is_dir() else {}
        if name not in files:
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is no file {name[:100]!r} here: begin at /", name="name")
        path = files[name]
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        return FileResponse(path, headers=dict(_HEADERS), media_type=kind)
