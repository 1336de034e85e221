"""The pages for people: search, and the list of endpoints. Nothing in them comes from another host."""

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from serving.api.access import admin_exists_for
from serving.api.json_io import Json
from serving.api.paths import ENDPOINTS, Access
from serving.settings import ROOT_PATH, Settings

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Page:
    """An HTML file of this package, with the headers that let its own script and style run and no other."""

    html: str
    policy: str
    """Its Content-Security-Policy."""

    @classmethod
    def load(cls, name: str) -> "Page":
        """The page in an HTML file of the package `serving`."""
        html = resources.files("serving").joinpath(name).read_text(encoding="utf-8")
        scripts = " ".join(_hash(body) for body in re.findall(r"<script>(.*?)</script>", html, re.DOTALL))
        styles = " ".join(_hash(body) for body in re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
        return cls(
            html,
            f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        )

    def answer(self) -> HTMLResponse:
        """The page as an answer, which a browser checks for a newer one each time."""
        headers = {
            "content-security-policy": self.policy,
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        return HTMLResponse(self.html, headers=headers)


def _hash(body: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"


SEARCH = Page.load("page.html")
DOCS = Page.load("docs.html")


@router.api_route("/", methods=["GET", "HEAD"])
async def search_page() -> HTMLResponse:
    """The page on which a person types a query and sees three lists side by side."""
    return SEARCH.answer()


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs_page() -> HTMLResponse:
    """The page of endpoints, which its own script draws from /openapi.json."""
    return DOCS.answer()


@router.get("/favicon.ico")
async def favicon() -> Response:
    """No content: the pages bring their icon themselves."""
    return Response(status_code=204)


@router.get("/openapi.json")
async def openapi(request: Request) -> Json:
    """The endpoints for machines, without those that do not exist for this client."""
    settings: Settings = request.app.state.service.settings
    schema = request.app.openapi()
    if not admin_exists_for(settings, request.client.host if request.client else ""):
        hidden = {endpoint.path for endpoint in ENDPOINTS if endpoint.access is Access.ADMIN}
        schema = {**schema, "paths": {path: item for path, item in schema["paths"].items() if path not in hidden}}
    prefix = request.headers.get("x-forwarded-prefix", "").rstrip("/")
    if not ROOT_PATH.fullmatch(prefix):
        prefix = settings.root_path
    return Json({**schema, "servers": [{"url": prefix}]} if prefix else schema)
