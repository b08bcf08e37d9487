"""Where workers' time goes: every second has its place, and the summary says it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsearch.search import clock as clock_module
from mmsearch.search.clock import (
    EPOCHS,
    FILES,
    REST,
    SAMPLING,
    START_UP,
    STORAGE,
    WAITING,
    Clock,
    Ledger,
    Spent,
)


class Watch:
    """A clock that goes on only when it is told to."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr("mmsearch.search.clock.time.perf_counter", made.perf_counter)
    monkeypatch.setattr(clock_module, "_age_s", lambda: 2.0)
    return made


def test_every_second_has_one_purpose(watch: Watch) -> None:
    clock = Clock()
    watch.now += 1
    with clock.spent(SAMPLING):  # of the first trial
        watch.now += 3
    with clock.spent(WAITING):
        watch.now += 5
    assert clock.read() == {START_UP: 6.0, WAITING: 5.0}

    def epochs() -> Iterator[int]:
        for epoch in range(3):
            watch.now += 10
            yield epoch

    for epoch in clock.within(EPOCHS, epochs()):
        watch.now += 0.25
        with clock.spent(STORAGE):
            watch.now += 0.5
            with clock.spent(FILES):
                watch.now += 0.125
            watch.now += 0.5
            if epoch == 2:
                break
    with clock.spent(SAMPLING):
        watch.now += 4
    found = clock.read()
    assert found == {START_UP: 6.0, WAITING: 5.0, EPOCHS: 30.0, REST: 0.75, STORAGE: 3.0, FILES: 0.375, SAMPLING: 4.0}
    assert sum(found.values()) == watch.now - 100 + 2


def test_what_breaks_off_is_counted_too(watch: Watch) -> None:
    clock = Clock()

    def breaks() -> Iterator[int]:
        watch.now += 7
        raise MemoryError
        yield 0

    with pytest.raises(MemoryError):
        for _ in clock.within(EPOCHS, breaks()):
            pass
    watch.now += 1
    assert clock.read() == {START_UP: 2.0, EPOCHS: 7.0, REST: 1.0}


def test_a_clock_knows_when_its_process_began() -> None:
    assert Clock().read()[START_UP] > 0.01  # Python alone takes longer to start


def test_a_worker_that_died_is_told_apart(watch: Watch) -> None:
    ledger = Ledger()
    for worker in ("a", "b", "c"):
        ledger.begin(worker)
    watch.now += 100
    ledger.take("a", {START_UP: 4.0, EPOCHS: 40.0, SAMPLING: 1.0})
    ledger.take("b", {START_UP: 6.0, EPOCHS: 58.0, STORAGE: 1.0}, last=True)
    ledger.end("b")
    watch.now += 30
    ledger.end("a")  # 130 s after its start, of which it told 45
    ledger.end("c")  # which never said a word
    spent = ledger.spent()
    assert spent == Spent(2, {START_UP: 10.0, EPOCHS: 98.0, SAMPLING: 1.0, STORAGE: 1.0}, 85.0 + 130.0)
    assert spent.in_words() == (
        "98.0 % of 2 min in epochs; sampling 1.0 %, storage 1.0 %; start-up 5.0 s each; "
        "4 min lost with workers that died"
    )


def test_words_of_time() -> None:
    assert Spent(0, {}, 12.0).in_words() is None
    assert Spent(1, {START_UP: 3.0, WAITING: 9.0}, 0.0).in_words() is None
    only = Spent(1, {START_UP: 3.0, EPOCHS: 60.0, WAITING: 12.0, FILES: 0.001}, 0.0)
    assert only.in_words() == "100.0 % of 60 s in epochs; start-up 3.0 s; 12 s waiting for others' last trials"


def test_the_summary_says_where_the_time_went(searched: Path) -> None:
    (line,) = [line for line in (searched / "launch.out").read_text().splitlines() if line.startswith("workers ")]
    trained = re.match(r"workers   (\d+\.\d) % of [^;]+ in epochs; (.*?); start-up (\d+\.\d) s each", line)
    assert trained, line
    shares = {name: float(share) for name, share in re.findall(r"([a-z ]+) (\d+\.\d) %", trained[2])}
    assert {" sampling", " storage"} <= {f" {name.strip()}" for name in shares}
    assert float(trained[1]) + sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert float(trained[3]) > 0.1
