"""The HTTP server of a study, for this machine or for devices on the local network.

    GET   [TOKEN/]                    the page
    GET   [TOKEN/]state?who=NAME      the participant's pairs, as image ids, and the number answered
    GET   [TOKEN/]images/ID.jpg
    POST  [TOKEN/]answer              {"who": NAME, "pair": INDEX, "choice": left|right|tie|undo}

No response reveals a method. Beyond loopback, the URL contains the study's random token. Other web
pages can neither read nor answer: requests with a foreign Host header are refused (DNS rebinding),
and an answer needs the token in a header, which only the study's own page knows (CSRF).
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import sys
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from socketserver import ThreadingTCPServer
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from ...errors import ColorFluxError
from .answers import CHOICES, answers_path, participant_name, read_answers, record
from .study import picture_ids, picture_path, read_study

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")
TOKEN_HEADER = "X-Study"
LONGEST_REQUEST = 4096
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; script-src 'unsafe-inline';"
    " style-src 'unsafe-inline'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Reply(NamedTuple):
    """The body of a successful response, its content type and its Cache-Control header."""

    content: bytes
    type: str
    cache: str = "no-store"


class Refused(Exception):
    """A rejected request: an HTTP status, and a reason for the page to show."""

    def __init__(self, status: HTTPStatus, reason: str = "") -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason or status.phrase


class StudyServer(ThreadingTCPServer):
    """Serves one study's folder; all state of the participants is in their files.

    Raises:
        ColorFluxError: if the folder has no study, or the address cannot be used.
    """

    # Not based on HTTPServer, which does a DNS lookup of the machine's name.
    allow_reuse_address = daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, host: str, port: int) -> None:
        if not host:  # An empty host would listen on every interface.
            raise ColorFluxError(
                "--host is empty: pass an address, such as 0.0.0.0 for the local network"
            )
        self.folder, self.study = folder, read_study(folder)
        self.schedule = lru_cache(self.study.schedule)
        self.shown = {(shown.set, shown.image): shown for shown in self.study.shown}
        self.known_ids = picture_ids(self.study)
        self.saving = Lock()
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ColorFluxError(
                f"cannot listen on {host}, port {port} ({reason}): choose another --host or --port"
            ) from error
        self.is_open = not ip_address(str(self.server_address[0])).is_loopback

    @property
    def url(self) -> str:
        """The URL for participants, including the token if it is not loopback."""
        host, port = str(self.server_address[0]), self.server_address[1]
        if ip_address(host).is_unspecified:
            host = local_network_address()
        return f"http://{host}:{port}/" + (f"{self.study.token}/" if self.is_open else "")

    def parts(self, path: str) -> list[str]:
        """The path components after the token; raises Refused if the token is missing."""
        parts = [part for part in path.split("/") if part]
        if not self.is_open:
            return parts
        if not parts or not self.is_token(parts[0]):
            raise Refused(HTTPStatus.NOT_FOUND, "Please use the full address of the study.")
        return parts[1:]

    def is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self.study.token.encode())

    def get(self, path: str, query: dict[str, list[str]]) -> Reply:
        """Answer a GET request; raises Refused for an unknown path or a missing token."""
        match self.parts(path):
            case []:
                return Reply(PAGE.read_bytes(), "text/html; charset=utf-8")
            case ["state"]:
                return as_json(self.state(query.get("who", [""])[0]))
            case ["images", name] if name.removesuffix(".jpg") in self.known_ids:
                content = picture_path(self.folder, name.removesuffix(".jpg")).read_bytes()
                return Reply(content, "image/jpeg", "private, max-age=86400, immutable")
        raise Refused(HTTPStatus.NOT_FOUND)

    def state(self, who: str) -> dict[str, Any]:
        """A participant's state as the page needs it; the methods stay hidden."""
        name = checked_name(who)
        schedule = self.schedule(name)
        shown = [(pair, self.shown[pair.set, pair.image]) for pair in schedule]
        return {
            "study": self.study.token,
            "who": name,
            "ties": self.study.ties,
            "answered": len(read_answers(answers_path(self.folder, name), schedule)),
            "pairs": [
                (ids.input, ids.results[pair.left], ids.results[pair.right]) for pair, ids in shown
            ],
        }

    def post(self, path: str, token: str, body: bytes) -> Reply:
        """Record an answer; raises Refused for an invalid request or token."""
        if self.parts(path) != ["answer"]:
            raise Refused(HTTPStatus.NOT_FOUND)
        if not self.is_token(token):
            raise Refused(
                HTTPStatus.FORBIDDEN, "This page belongs to another study: please reload it."
            )
        try:
            fields = json.loads(body)
            who, index, choice = (fields[key] for key in ("who", "pair", "choice"))
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST) from error
        allowed = CHOICES if self.study.ties else CHOICES - {"tie"}
        if not isinstance(who, str) or type(index) is not int or choice not in [*allowed]:
            raise Refused(HTTPStatus.BAD_REQUEST)
        name = checked_name(who)
        with self.saving:
            path_of_answers = answers_path(self.folder, name)
            return as_json(
                {"answered": record(path_of_answers, self.schedule(name), index, choice)}
            )

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: StudyServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "study", ""
    timeout = 60

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST_REQUEST:
            self.refuse(Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE))
            return
        self.answer(self.rfile.read(int(length)))

    def answer(self, body: bytes) -> None:
        try:
            require_safe_host(self.headers.get("Host", ""))
            url = urlsplit(self.path)
            if self.command == "POST":
                reply = self.server.post(url.path, self.headers.get(TOKEN_HEADER, ""), body)
            else:
                reply = self.server.get(url.path, parse_qs(url.query))
        except Refused as refused:
            self.refuse(refused)
        except (ColorFluxError, OSError) as error:
            logger.error("%s", error)
            reason = "The study server has a problem. Please tell the organizer."
            self.refuse(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, reason))
        else:
            self.send(HTTPStatus.OK, reply)

    def refuse(self, refused: Refused) -> None:
        self.close_connection = True
        self.send(refused.status, as_json({"error": refused.reason}))

    def send(self, status: HTTPStatus, reply: Reply) -> None:
        self.send_response(status)
        headers = {"Content-Type": reply.type, "Content-Length": len(reply.content)}
        for name, value in (headers | HEADERS | {"Cache-Control": reply.cache}).items():
            self.send_header(name, str(value))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.content)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def as_json(content: Any) -> Reply:
    return Reply(json.dumps(content).encode(), "application/json")


def checked_name(who: str) -> str:
    """Normalize a participant's name; raises Refused if it is invalid."""
    try:
        return participant_name(who)
    except ColorFluxError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error


def require_safe_host(host: str) -> None:
    """Accept only hosts that are safe from DNS rebinding: IP addresses and localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name != "localhost":
            ip_address(name)
    except ValueError as error:
        raise Refused(HTTPStatus.FORBIDDEN, "Please use the address the server printed.") from error


def local_network_address() -> str:
    """This machine's address on the local network; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
