"""optuna-dashboard on a study's storage: on this machine only, or behind a password."""

from __future__ import annotations

import base64
import contextlib
import hmac
import logging
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
from mmsearch.hyperparameters import Choices, Range, show
from mmsearch.search.study import OpenStudy, open_study

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PASSWORD_VARIABLE = "MMSEARCH_DASHBOARD_PASSWORD"
USER = "mmsearch"

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def serve(config: StudyConfig, host: str, port: int, password: str | None, announce: Callable[[str], None]) -> None:
    """Serve the dashboard until interrupted; `announce` is told the study's address once it listens.

    Raises `UsageError` for a host that others can reach, unless there is a password.
    """
    if host not in LOOPBACK and not password:
        raise UsageError(
            f"--host {host} lets others in, and the dashboard can delete studies: set {PASSWORD_VARIABLE} too, "
            f"and it asks for the user {USER} and that password"
        )
    folder = config.storage_paths.artifacts
    with open_study(config) as opened:
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            store = FileSystemArtifactStore(str(folder))
        cached = optuna.storages.get_storage(opened.storage)
        app = guard(optuna_dashboard.wsgi(cached, artifact_store=store), password)
        try:
            server = make_server(host, port, app, server_class=_Server, handler_class=_Handler)
        except OSError as error:
            raise MmsearchError(f"the dashboard cannot listen on {host}:{port}: {error.strerror}; try --port") from None
        with server, contextlib.suppress(KeyboardInterrupt):
            shown = f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{server.server_port}/dashboard/studies/{opened.id}")
            server.serve_forever()


def guard(app: WSGIApp, password: str | None) -> WSGIApp:
    """Let in only what may come in.

    Without a password: requests that name this machine as their host, so that a page elsewhere that points its own
    name at this machine gets nothing. With one: requests with HTTP basic authentication. In both cases a browser's
    request from another site's page is refused.
    """
    expected = base64.b64encode(f"{USER}:{password}".encode()).decode()

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "")
        origin = environ.get("HTTP_ORIGIN")
        if (origin is not None and origin.partition("://")[2] != host) or (
            not password and host.rpartition(":")[0].strip("[]") not in LOOPBACK and host not in LOOPBACK
        ):
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"this dashboard answers to its own machine only\n"]
        given = environ.get("HTTP_AUTHORIZATION", "").partition("Basic ")[2]
        if password and not hmac.compare_digest(given.encode(), expected.encode()):
            start("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", 'Basic realm="mmsearch"')])
            return [b"a password is needed\n"]
        return app(environ, start)

    return guarded


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread a request: a long poll must not hold up the page."""

    daemon_threads = True
    address_family = WSGIServer.address_family


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are no news; to the log, not to the terminal."""
        logging.getLogger("mmsearch.dashboard").debug(format, *args)


def save_note(opened: OpenStudy) -> None:
    """The note that the dashboard shows on the study's page: data, space and command."""
    config = opened.config
    lines = [
        f"# {config.study.name}",
        "",
        f"Data: `{config.data.source}`. A trial's value is the best epoch's `{config.metric}` on the validation rows "
        f"({config.data.fraction:.0%} of the training rows). Trial 0 has the defaults.",
        "",
        "| parameter | searched over | default |",
        "|---|---|---|",
    ]
    for name, dimension in config.dimensions.varying().items():
        lines.append(f"| `{name}` | {_words(dimension)} | {show(dimension.default)} |")
    lines += [
        "",
        f"Sampler {config.search.sampler}, pruner {config.search.pruner}, at most {config.search.max_epochs} epochs, "
        f"patience {config.search.patience}.",
        "",
        "```",
        f"mmsearch launch {config.file} --trials {opened.total()}",
        f"mmsearch retrain-best {config.file}",
        "```",
    ]
    optuna_dashboard.save_note(opened.optuna, "\n".join(lines) + "\n")


def _words(dimension: Range | Choices) -> str:
    if isinstance(dimension, Choices):
        return ", ".join(show(option) for option in dimension.options)
    extra = ", logarithmic" if dimension.log else f", in steps of {show(dimension.step)}" if dimension.step else ""
    return f"{show(dimension.low)} to {show(dimension.high)}{extra}"
