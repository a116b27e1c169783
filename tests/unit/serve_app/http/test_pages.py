"""The page's files over HTTP, without a browser: types, headers, caching, prefixes, and no other files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import serve_app
from serve_app.http.pages import add_pages, read_web_files

WEB = Path(serve_app.__file__).parent / "web"


@pytest.fixture
def client() -> TestClient:
    api = FastAPI(docs_url=None)
    add_pages(api)
    return TestClient(api, follow_redirects=False)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/web/main.js", "text/javascript; charset=utf-8"),
        ("/web/style.css", "text/css; charset=utf-8"),
        ("/web/icon.svg", "image/svg+xml"),
    ],
)
def test_a_file_has_its_type_and_the_guards(client: TestClient, path: str, media_type: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.content == (WEB / (path.removeprefix("/web/").strip("/") or "index.html")).read_bytes()


def test_a_browser_that_has_the_file_gets_304(client: TestClient) -> None:
    first = client.get("/web/main.js")
    assert first.headers["cache-control"] == "no-cache"
    for tags in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = client.get("/web/main.js", headers={"if-none-match": tags})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get("/web/main.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert client.get("/web/style.css").headers["etag"] != first.headers["etag"]


def test_the_docs_page_and_all_that_it_loads_come_from_this_server(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert {link.partition("/")[0] for link in links} == {"web", "docs"} and len(links) == 4
    for link in links:
        found = client.get(f"/{link}")
        assert (found.status_code, found.headers["x-content-type-options"]) == (200, "nosniff")
        assert len(found.content) > 100
    assert "<script>" not in page.text and "//" not in page.text.replace("<!--", "")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "http" not in policy
    assert client.get("/docs/favicon.png").status_code == client.get("/docs/..%2fcore.py").status_code == 404


def test_head_has_no_body(client: TestClient) -> None:
    response = client.head("/")
    assert response.status_code == 200 and response.content == b""
    assert int(response.headers["content-length"]) == len((WEB / "index.html").read_bytes())


@pytest.mark.parametrize(
    "name",
    [
        "../api/pages.py",
        "..%2fapi%2fpages.py",
        "%2e%2e/app.py",
        "..%5capp.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "none.js",
    ],
)
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/web/{name}").status_code == 404


def test_the_page_is_no_part_of_the_api_schema(client: TestClient) -> None:
    assert client.get("/openapi.json").json()["paths"] == {}


def test_under_a_prefix_the_page_ends_in_a_slash() -> None:
    """Relative links need it; both ways in which an application is put under a prefix."""
    api = FastAPI(docs_url=None)
    add_pages(api)
    outer = FastAPI()
    outer.mount("/lab", api)
    for client in (TestClient(api, root_path="/lab"), TestClient(outer)):
        moved = client.get("/lab", follow_redirects=False)
        assert moved.status_code == 307 and moved.headers["location"].endswith("/lab/")
        assert client.get("/lab/").text.startswith("<!doctype html>")
        assert client.get("/lab/web/style.css").status_code == 200


def test_every_link_is_relative_and_leads_to_a_file() -> None:
    held = read_web_files()
    page = (WEB / "index.html").read_text()
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    modules = [name for file in WEB.glob("*.js") for name in re.findall(r'from "(.+)"', file.read_text())]
    assert len(links) >= 4 and len(modules) >= 8
    assert {link.removeprefix("web/") for link in links} <= set(held)
    assert all(link.startswith("web/") for link in links)
    assert {module.removeprefix("./") for module in modules} <= set(held)
    assert all(module.startswith("./") for module in modules)


def test_the_page_parses_no_text_as_html_and_names_no_other_host() -> None:
    for file in WEB.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?:|//cdn", text), file
        assert not re.search(r"\sstyle=|\son\w+=", text) or file.suffix == ".js", file
