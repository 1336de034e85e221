"""For people: the search page and the list of endpoints. Nothing in them comes from another host."""

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from serving.api import admin
from serving.api.json_io import Json

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Page:
    """An HTML file of this package, with the headers that let its own script and style run and no other."""

    html: str
    policy: str

    @classmethod
    def load(cls, name: str) -> "Page":
        html = resources.files("serving").joinpath(name).read_text(encoding="utf-8")
        scripts = " ".join(_hash(body) for body in re.findall(r"<script>(.*?)</script>", html, re.DOTALL))
        styles = " ".join(_hash(body) for body in re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
        return cls(
            html,
            f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        )

    def answer(self) -> HTMLResponse:
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
    """Where a person types a query and sees three lists side by side."""
    return SEARCH.answer()


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs_page() -> HTMLResponse:
    """The endpoints, drawn from /openapi.json by the page itself."""
    return DOCS.answer()


@router.get("/openapi.json")
async def openapi(request: Request) -> Json:
    """The endpoints for machines, less those that do not exist for this one."""
    whole = request.app.openapi()
    if admin.exist_for(request.app.state.service.settings, request.client.host if request.client else ""):
        return Json(whole)
    paths = {path: told for path, told in whole["paths"].items() if not path.startswith(admin.router.prefix)}
    return Json({**whole, "paths": paths})
