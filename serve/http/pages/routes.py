"""The web page at ``/`` and the API's description at ``/docs``, which load nothing from another server."""

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
OWN_FILE = re.compile(r'<(?:link rel="stylesheet" href|script src)="(\w+\.(?:css|js))">(?:</script>)?')


def pages() -> APIRouter:
    """The routes of both pages."""
    router = APIRouter(include_in_schema=False)
    page, page_headers = _read("page.html", {"require-trusted-types-for": "'script'"})
    docs, docs_headers = _read("docs.html", {}, "'self' ")

    @router.get("/")
    async def web_page() -> HTMLResponse:
        return HTMLResponse(page, headers=page_headers)

    @router.get("/docs")
    async def api_page() -> HTMLResponse:
        return HTMLResponse(docs, headers=docs_headers)

    @router.get("/docs/swagger-ui-bundle.js")
    def script() -> Response:
        return _file_of_swagger_ui("swagger-ui-bundle.js", "text/javascript")

    @router.get("/docs/swagger-ui.css")
    def style() -> Response:
        return _file_of_swagger_ui("swagger-ui.css", "text/css")

    return router


def _file_of_swagger_ui(name: str, media_type: str) -> Response:
    data = (files("fastapi_offline") / "static" / name).read_bytes()
    return Response(data, media_type=media_type, headers=SAFE | {"Cache-Control": "max-age=3600"})


def _read(name: str, further: dict[str, str], linked: str = "") -> tuple[str, dict[str, str]]:
    """A page, and headers with which a browser runs the page's own scripts and nothing else.

    Args:
        further: more directives of the content security policy.
        linked: source of scripts and styles besides the inline ones.
    """
    html = assembled(name)
    policy = {
        "default-src": "'none'",
        "script-src": linked + _hashes_of("script", html),
        "style-src": linked + _hashes_of("style", html),
        "connect-src": "'self'",
        "img-src": "data: blob:",
        "media-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    } | further
    content_policy = "; ".join(f"{name} {value}" for name, value in policy.items())
    return html, SAFE | {"Content-Security-Policy": content_policy, "Cache-Control": "no-cache"}


def assembled(name: str) -> str:
    """A page with its own style and scripts inside: whatever a browser caches, they are of one release."""
    folder = Path(__file__).parent

    def inside(found: re.Match[str]) -> str:
        tag = "style" if found[1].endswith(".css") else "script"
        return f"<{tag}>\n{(folder / found[1]).read_text('utf-8')}</{tag}>"

    return OWN_FILE.sub(inside, (folder / name).read_text("utf-8"))


def _hashes_of(tag: str, html: str) -> str:
    """The source expressions that allow the page's inline elements of this kind."""
    contents = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
