"""ComfyUI's frontend with the pack in it, and no ComfyUI behind it.

Answers what the frontend asks for: its own static files, the pack's web files, workflows and
locales, the recorded nodes, and the bare minimum for the rest.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
RECORD = Path(__file__).with_name("object_info.json")
# The pack's folder in custom_nodes, by which the frontend calls it.
PACK = "ComfyUI-ColorFLUX"
# The id of every run.
PROMPT = "00000000-0000-0000-0000-000000000000"

ANSWERS: dict[str, Any] = {
    "/embeddings": [],
    "/experiment/models": [],
    "/favicon.ico": "",
    "/features": {},
    "/history": {},
    "/prompt": {"exec_info": {"queue_remaining": 0}},
    "/queue": {"queue_running": [], "queue_pending": []},
    "/settings": {
        "Comfy.Canvas.NavigationMode": "custom",  # 1.27.10 stumbles over its own default.
        "Comfy.Minimap.Visible": False,
        "Comfy.TutorialCompleted": True,
        "Comfy.Workflow.ShowMissingModelsWarning": False,
    },
    "/system_stats": {"system": {"os": "posix", "comfyui_version": "0.3.64"}, "devices": []},
    "/templates/index.json": [{"moduleName": "default", "title": "Basics", "templates": []}],
    "/user.css": "",
    "/userdata": [],
    "/users": {"storage": "server", "migrated": True},
}


def frontend_files() -> Path | None:
    """The static files of the installed ``comfyui-frontend-package``."""
    spec = importlib.util.find_spec("comfyui_frontend_package")
    return Path(spec.origin).parent / "static" if spec and spec.origin else None


def extensions() -> list[str]:
    """The addresses of the scripts that the frontend is to load."""
    scripts = sorted((ROOT / "web").rglob("*.js"))
    return [f"/extensions/{PACK}/{path.relative_to(ROOT / 'web').as_posix()}" for path in scripts]


def translations() -> dict[str, dict[str, Any]]:
    """``locales/<language>/<part>.json`` as {language: {part: ...}}, as ComfyUI merges them."""
    merged: dict[str, dict[str, Any]] = {}
    for path in sorted((ROOT / "locales").glob("*/*.json")):
        part = json.loads(path.read_text(encoding="utf-8"))
        language = merged.setdefault(path.parent.name, {})
        language.update(part if path.stem == "main" else {path.stem: part})
    return merged


class Frontend:
    """The server's two ends: its address, and the pages that have opened their web socket."""

    def __init__(self, pictures: dict[str, Path]) -> None:
        self.pictures = pictures
        self.url = ""
        self.loop = asyncio.new_event_loop()
        self.pages: set[web.WebSocketResponse] = set()

    def send(self, event: str, data: dict[str, Any]) -> None:
        """Tells every page of an ``event``, as ComfyUI does during a run."""

        async def tell() -> None:
            for page in self.pages:
                await page.send_json({"type": event, "data": data})

        asyncio.run_coroutine_threadsafe(tell(), self.loop).result(timeout=10)

    def app(self, static: Path) -> web.Application:
        app = web.Application()
        answers = ANSWERS | {
            "/extensions": extensions(),
            "/i18n": translations(),
            "/object_info": json.loads(RECORD.read_text(encoding="utf-8")),
            "/workflow_templates": {PACK: [path.stem for path in WORKFLOWS]},
        }
        for prefix in ("", "/api"):
            for path, answer in answers.items():
                app.router.add_get(prefix + path, answering(answer))
            app.router.add_get(f"{prefix}/userdata/{{file}}", answering({}))
            app.router.add_post(f"{prefix}/prompt", answering({"prompt_id": PROMPT, "number": 1}))
            app.router.add_post(f"{prefix}/{{anything:.*}}", answering({}))
            app.router.add_get(f"{prefix}/view", self.view)
        app.router.add_get("/ws", self.web_socket)
        app.router.add_static(f"/extensions/{PACK}", ROOT / "web")
        app.router.add_static(f"/api/workflow_templates/{PACK}", ROOT / "workflows")

        async def index(request: web.Request) -> web.FileResponse:
            return web.FileResponse(static / "index.html")

        app.router.add_get("/", index)
        app.router.add_static("/", static)
        return app

    async def view(self, request: web.Request) -> web.StreamResponse:
        picture = self.pictures.get(request.query["filename"])
        return web.FileResponse(picture) if picture else web.Response(status=404)

    async def web_socket(self, request: web.Request) -> web.WebSocketResponse:
        page = web.WebSocketResponse()
        await page.prepare(request)
        self.pages.add(page)
        status = {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "page"}
        await page.send_json({"type": "status", "data": status})
        async for _ in page:
            pass  # What it says does not matter; that it goes, does.
        self.pages.discard(page)
        return page


def answering(answer: Any) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(answer)

    return handler


@contextmanager
def serving(static: Path, pictures: dict[str, Path]) -> Iterator[Frontend]:
    """A running server on a free port of the loopback.

    Args:
        static: What :func:`frontend_files` found.
        pictures: The files behind ``/view``, by file name.
    """
    frontend = Frontend(pictures)

    async def start() -> web.AppRunner:
        runner = web.AppRunner(frontend.app(static), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        frontend.url = f"http://{host}:{port}/"
        return runner

    runner = frontend.loop.run_until_complete(start())
    thread = threading.Thread(target=frontend.loop.run_forever, daemon=True)
    thread.start()
    try:
        yield frontend
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), frontend.loop).result(timeout=10)
        frontend.loop.call_soon_threadsafe(frontend.loop.stop)
        thread.join()
        frontend.loop.close()
