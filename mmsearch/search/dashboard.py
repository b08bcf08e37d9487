"""optuna-dashboard on a study's storage: on this machine only, or behind a password."""

from __future__ import annotations

import base64
import contextlib
import hmac
import ipaddress
import logging
import signal
import socket
import socketserver
import warnings
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore

from mmsearch.config import StudyConfig
from mmsearch.errors import MmsearchError, UsageError
from mmsearch.search.study import open_study

SHOWN_TYPES = ("text/csv", "text/plain", "image/png", "application/json")  # artifacts that a browser may show
PASSWORD_VARIABLE = "MMSEARCH_DASHBOARD_PASSWORD"
USER = "mmsearch"

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def serve(config: StudyConfig, host: str, port: int, password: str | None, announce: Callable[[str], None]) -> None:
    """Serve the dashboard until interrupted; `announce` is told the study's address once it listens.

    Raises `UsageError` for a host that others can reach, unless there is a password.
    """
    if not _is_loopback(host) and not password:
        raise UsageError(
            f"--host {host} lets others in, and the dashboard can delete studies: set {PASSWORD_VARIABLE} too, "
            f"and it asks for the user {USER} and that password"
        )
    folder = config.storage_paths.artifacts
    warnings.simplefilter("ignore")  # of Optuna's to its own authors, on what a browser happened to ask for
    with open_study(config) as opened:
        folder.mkdir(parents=True, exist_ok=True)
        cached = optuna.storages.get_storage(opened.storage)
        app = optuna_dashboard.wsgi(cached, artifact_store=FileSystemArtifactStore(str(folder)))
        try:
            server = make_server(
                host, port, guard(app, password), server_class=_server_class(host), handler_class=_Handler
            )
        except OSError as error:
            raise MmsearchError(f"the dashboard cannot listen on {host}:{port}: {error.strerror}; try --port") from None
        for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with SIGINT ignored
            signal.signal(number, signal.default_int_handler)
        with server, contextlib.suppress(KeyboardInterrupt):
            shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{server.server_port}/dashboard/studies/{opened.id}")
            server.serve_forever()


def guard(app: WSGIApp, password: str | None) -> WSGIApp:
    """Let in only what may come in, and let out artifacts only as what they may be.

    Without a password: requests that name this machine as their host, so that a page elsewhere that points its own
    name at this machine gets nothing. With one: requests with HTTP basic authentication. In both cases a browser's
    request from another site's page is refused. Whoever uploads an artifact chooses its type: what could run in a
    browser is sent as a download.
    """
    expected = base64.b64encode(f"{USER}:{password}".encode()).decode()

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        foreign = origin is not None and origin.partition("://")[2] != host
        if foreign or (not password and not _is_loopback(_without_port(host))):
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"this dashboard answers to its own machine only\n"]
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        known = scheme.lower() == "basic" and hmac.compare_digest(given.strip().encode(), expected.encode())
        if password and not known:
            start("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", 'Basic realm="mmsearch"')])
            return [b"a password is needed\n"]
        if environ.get("PATH_INFO", "").startswith("/artifacts/"):
            return app(environ, _as_download(start))
        return app(environ, start)

    return guarded


def _as_download(start: Callable[..., Any]) -> Callable[..., Any]:
    """Headers of an artifact: its own type if it is harmless, else bytes to be saved; for this site's pages only."""

    def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
        kind = next((value for name, value in kept if name.lower() == "content-type"), "").partition(";")[0].strip()
        if kind not in SHOWN_TYPES:
            kept = [
                (name, value) for name, value in kept if name.lower() not in ("content-type", "content-disposition")
            ]
            kept += [("Content-Type", "application/octet-stream"), ("Content-Disposition", "attachment")]
        return start(status, [*kept, ("X-Content-Type-Options", "nosniff")], *rest)

    return started


def _without_port(host: str) -> str:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    return name.strip("[]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread a request: a long poll must not hold up the page."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        logging.getLogger("mmsearch.dashboard").debug("request of %s failed", client_address, exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server_class(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are no news; to the log, not to the terminal."""
        logging.getLogger("mmsearch.dashboard").debug(format, *args)
