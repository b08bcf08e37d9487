"""The trial table in every form: exact for programs, rounded and escaped for print, columns and rows as asked for."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pty
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from conftest import MMSEARCH, Run, environment, require
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from pyarrow import parquet

from mmsearch.config import load_config
from mmsearch.errors import UsageError
from mmsearch.results.formats import to_csv, to_json, to_parquet
from mmsearch.results.markup import escape_markdown, escape_tex, markdown_table, tex_table
from mmsearch.results.tables import choose_columns, choose_states, default_columns, render_table, select_rows
from mmsearch.search.storage import FAIL_REASON
from mmsearch.search.study import open_study
from mmsearch.search.values import VIOLATED

QUICK = settings(max_examples=80, deadline=None)
FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)
NASTY = ("_&%#${}~^\\", "<>|*[]\"'`?`!`", "--- a -- b", "*", "[32, 64]", "-0.5", "2\n3", "naïve Übermaß", "")
# What pdflatex cannot have without another encoding of fonts is not ours to change.
DOCUMENT = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n%s\n\\end{document}\n"


@pytest.fixture
def workspace(searched: Path, tmp_path: Path) -> Path:
    shutil.copytree(searched, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def exported(mmsearch: Run, *options: object) -> list[dict[str, Any]]:
    """The table as JSON has it."""
    rows: list[dict[str, Any]] = json.loads(mmsearch("export", "--format", "json", *options).stdout)
    return rows


def with_trials(workspace: Path) -> None:
    """Add two trials that went wrong to the searched study."""
    began = datetime(2026, 3, 1, 12, tzinfo=UTC).astimezone().replace(tzinfo=None)  # as Optuna has them: local
    reasons = (
        (TrialState.FAIL, FAIL_REASON, "=HYPERLINK(1)"),
        (TrialState.PRUNED, VIOLATED, "parameters = 9 violates"),
    )
    with open_study(load_config(workspace / "studies" / "digits.toml", reading=True)) as opened:
        for state, name, text in reasons:
            trial = create_trial(state=state, user_attrs={name: text})
            trial.datetime_start, trial.datetime_complete = began, began + timedelta(seconds=1.5)
            opened.optuna.add_trial(trial)


def test_columns_as_asked_for(mmsearch: Run, workspace: Path) -> None:
    wanted = "value,number,image.*,optimizer.lr,started,finished,seed,host"
    rows = exported(mmsearch, "--columns", wanted)
    assert list(rows[0]) == [
        "value", "number", "image.encoder", "image.mlp.units_1", "optimizer.lr", "started", "finished", "seed", "host",
    ]  # fmt: skip
    everything = exported(mmsearch, "--columns", "*")
    assert [{name: row[name] for name in rows[0]} for row in everything] == rows
    default = exported(mmsearch)
    assert list(default[0])[:6] == ["number", "state", "value", "duration_s", "epochs", "best_epoch"]
    assert list(default[0])[-1] == "parameters"
    assert not {"started", "worker", "reason"} & set(default[0])
    for row, known in zip(everything, default, strict=True):
        took = datetime.fromisoformat(row["finished"]) - datetime.fromisoformat(row["started"])
        assert row["started"].endswith("Z")
        assert took.total_seconds() == known["duration_s"]


def test_times_are_in_utc_wherever_one_looks_from(mmsearch: Run, workspace: Path) -> None:
    command = ("export", "--columns", "number,started,finished")
    here, elsewhere = (mmsearch(*command, env={"TZ": zone}).stdout for zone in ("UTC", "America/New_York"))
    assert here == elsewhere


def test_rows_as_asked_for(mmsearch: Run, workspace: Path) -> None:
    rows = exported(mmsearch)
    done = [row for row in rows if row["state"] == "COMPLETE"]
    ranked = sorted(done, key=lambda row: (-row["value"], row["number"]))
    assert exported(mmsearch, "--state", "complete", "--top", 2) == ranked[:2]
    by_number = sorted(ranked[:2], key=lambda row: row["number"])
    assert exported(mmsearch, "--top", 2, "--sort", "number") == by_number
    empty = mmsearch("export", "--state", "waiting,Failed", "--columns", "number,optimizer.*").stdout
    assert empty == "number,optimizer.lr\n"


def test_what_is_no_column_or_no_state_is_one_sentence(mmsearch: Run, workspace: Path) -> None:
    said = mmsearch("export", "--columns", "number,lr", code=2).stderr
    assert '"lr" is no column; did you mean "optimizer.lr"?; there are number, state, value' in said
    assert len(said.splitlines()) == 1
    with pytest.raises(UsageError, match=r'"audio.\*.kernel" matches no column; there are number'):
        choose_columns([], "number,audio.*.kernel")
    with pytest.raises(
        UsageError, match=r'"complet" is no state; did you mean "complete"\?; there are complete, pruned'
    ):
        choose_states("pruned,complet")


def test_parquet_has_what_json_has(mmsearch: Run, workspace: Path) -> None:
    with_trials(workspace)
    mmsearch("export", "--format", "parquet", "--columns", "*", "-o", "trials.parquet")
    table = parquet.read_table(workspace / "trials.parquet")
    assert json.loads(to_json(table.to_pylist())) == exported(mmsearch, "--columns", "*")
    kinds = {field.name: field.type for field in table.schema}
    assert kinds["number"] == kinds["epochs"] == kinds["image.mlp.units_1"] == pyarrow.int64()
    assert kinds["value"] == kinds["optimizer.lr"] == kinds["duration_s"] == pyarrow.float64()
    assert kinds["state"] == kinds["image.encoder"] == kinds["reason"] == pyarrow.string()
    assert kinds["started"] == pyarrow.timestamp("us", tz="UTC")
    assert table["image.mlp.units_1"].null_count > 0


def test_a_column_of_nothing_has_its_type(mmsearch: Run, workspace: Path) -> None:
    columns = "number,value,optimizer.lr,image.encoder,image.mlp.units_1,started,host,retry_of"
    mmsearch("export", "--format", "parquet", "--state", "waiting", "--columns", columns, "-o", "none.parquet")
    empty = parquet.read_table(workspace / "none.parquet")
    mmsearch("export", "--format", "parquet", "--columns", columns, "-o", "all.parquet")
    assert empty.num_rows == 0
    assert empty.schema.field("retry_of").type == pyarrow.int64()
    assert empty.schema == parquet.read_table(workspace / "all.parquet").schema


def test_parquet_is_not_for_a_terminal(workspace: Path) -> None:
    ours, theirs = pty.openpty()
    command = [str(MMSEARCH), "export", "--format", "parquet"]
    try:
        done = subprocess.run(
            command, cwd=workspace, env=environment(), stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 2
    assert done.stderr == "mmsearch: a Parquet file is not for a terminal: give it a name, such as -o trials.parquet\n"
    piped = subprocess.run(command, cwd=workspace, env=environment(), stdout=subprocess.PIPE, timeout=60, check=True)
    assert parquet.read_table(pyarrow.BufferReader(piped.stdout)).num_rows == 6


def test_without_pyarrow_it_is_one_sentence(mmsearch: Run, workspace: Path) -> None:
    (workspace / "site").mkdir()
    (workspace / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['pyarrow'] = None\n")
    env = {"PYTHONPATH": str(workspace / "site")}
    said = mmsearch("export", "--format", "parquet", "-o", "trials.parquet", code=2, env=env).stderr
    assert said == (
        "mmsearch: a Parquet file needs pyarrow, which is not installed; pip install 'mmsearch[parquet]' brings it\n"
    )
    assert not (workspace / "trials.parquet").exists()


def test_a_reason_is_shown_where_there_is_one(mmsearch: Run, workspace: Path) -> None:
    with_trials(workspace)
    rows = exported(mmsearch)
    assert [row["reason"] for row in rows] == [None] * 6 + ["=HYPERLINK(1)", "parameters = 9 violates"]
    plain = list(csv.DictReader(io.StringIO(mmsearch("export").stdout)))
    assert plain[6]["reason"] == "'=HYPERLINK(1)"  # which a spreadsheet shows, and does not run
    times = exported(mmsearch, "--columns", "started,finished", "--state", "failed")
    assert times == [{"started": "2026-03-01T12:00:00.000000Z", "finished": "2026-03-01T12:00:01.500000Z"}]


def test_what_people_read_is_rounded_and_its_best_row_is_bold(mmsearch: Run, workspace: Path) -> None:
    best = exported(mmsearch, "--top", 1)[0]
    columns = "number,value,duration_s,optimizer.lr,image.encoder,parameters"
    words = [
        str(best["number"]), f"{best['value']:.4f}", f"{best['duration_s']:.1f}", f"{best['optimizer.lr']:.4g}",
        best["image.encoder"], str(best["parameters"]),
    ]  # fmt: skip
    lines = mmsearch("export", "--format", "md", "--columns", columns).stdout.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["number", "macro_f1", "duration_s", "optimizer.lr", "image.encoder", "parameters"]
    assert [set(cell) for cell in rows[1]] == [{"-", ":"}] * 4 + [{"-"}, {"-", ":"}]
    assert [row for row in rows if row[0].startswith("**")] == [[f"**{word}**" for word in words]]
    assert len({len(line) for line in lines}) == 1
    done = mmsearch("export", "--format", "tex", "--columns", columns)
    bold = [line for line in done.stdout.splitlines() if "textbf" in line]
    assert bold == [" & ".join(f"\\textbf{{{word}}}" for word in words) + " \\\\"]
    assert "number & macro\\_f1 & duration\\_s" in done.stdout
    assert done.stderr == ""
    assert "textbf" not in mmsearch("export", "--format", "tex", "--state", "pruned,failed").stdout


def test_a_latex_table_that_is_too_large_is_said(mmsearch: Run, workspace: Path) -> None:
    done = mmsearch("export", "--format", "tex", "--columns", "*")
    count = len(exported(mmsearch, "--columns", "*")[0])
    assert done.stderr.startswith(f"{count} columns are more than a page holds; --columns number,value,image.*")
    assert done.stdout.startswith("\\begin{tabular}")


@QUICK
@given(st.lists(st.tuples(FLOATS, st.integers(-(2**63), 2**63 - 1), st.booleans() | st.none(), TEXTS), max_size=8))
def test_nothing_is_lost_for_programs(rows: list[tuple[float, int, bool | None, str]]) -> None:
    columns = ("float", "whole", "flag", "text")
    kinds = dict(zip(columns, (float, int, bool, str), strict=True))
    table = parquet.read_table(pyarrow.BufferReader(to_parquet(kinds, rows)))
    assert [tuple(row.values()) for row in table.to_pylist()] == rows
    read = json.loads(to_json([dict(zip(columns, row, strict=True)) for row in rows]))
    finite = [(None if math.isinf(row[0]) else row[0], *row[1:]) for row in rows]
    assert [tuple(row.values()) for row in read] == finite
    plain = list(csv.reader(io.StringIO(to_csv(columns, rows), newline="")))[1:]
    for exact, text in zip(rows, plain, strict=True):
        assert (float(text[0]), int(text[1])) == exact[:2]
        assert text[2] == ("" if exact[2] is None else str(exact[2]))
        assert text[3].removeprefix("'") == exact[3].removeprefix("'")


@QUICK
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_no_text_of_a_csv_is_a_formula(texts: list[str]) -> None:
    (row,) = list(csv.reader(io.StringIO(to_csv(texts, []), newline="")))
    assert all(not cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
    assert to_csv(["a", "b"], [[-1.5, datetime(2026, 1, 2, tzinfo=UTC)]]) == "a,b\n-1.5,2026-01-02T00:00:00.000000Z\n"


def one_line(text: str) -> str:
    """As text is where a cell is one line."""
    return re.sub(r"[\x00-\x20\x7f]+", " ", text)


@QUICK
@given(TEXTS)
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    escaped = escape_markdown(text)
    assert re.sub(r"\\([\\`*\[\]<>|~$_&])", r"\1", escaped) == one_line(text)
    bare = re.sub(r"\\.", "", escaped)
    assert not set(bare) & set("`*[]<>|~$\\")
    assert not re.search(r"&#?\w+;", bare)


@QUICK
@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=4))
def test_a_markdown_table_has_its_cells(rows: list[list[str]]) -> None:
    lines = markdown_table(["a", "b"], rows, "lr", marked={0} if rows else ()).split("\n")[:-1]
    assert len(lines) == len(rows) + 2
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in lines)


@QUICK
@given(TEXTS)
def test_latex_prints_a_text_as_it_is(text: str) -> None:
    """Read back as LaTeX reads it: commands, groups, and then nothing special is left."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<"}
    names |= {"textgreater": ">", "textbar": "|"}
    read = ""
    for command, sign, group, empty, other in re.findall(
        r"\\([a-z]+)\{\}|\\([^a-z])|\{([\[\]*])\}|(\{\})|(.)", escape_tex(text), re.S
    ):
        read += names[command] if command else sign or group or ("" if empty else other)
        assert other not in tuple("\\{}_&%#$~^<>|[]*") or not other
    assert read == one_line(text)
    assert not re.search(r"--|[?!]`", escape_tex(text))


def test_a_column_is_chosen_once_and_by_its_own_name_first() -> None:
    rows = [{"number": 1, "a": 2, "a.b": 3, "started": None}]
    assert choose_columns(rows, "a*,number,a, a.b") == ["a", "a.b", "number"]
    assert default_columns(rows) == ["number", "a", "a.b"]
    assert choose_columns([], "value,seed") == ["value", "seed"]
    assert render_table([], "csv") == "number,state,value,duration_s,epochs,best_epoch\n"


def test_the_best_are_taken_before_they_are_ordered() -> None:
    rows = [{"number": number, "state": state} for number, state in ((3, "COMPLETE"), (1, "COMPLETE"), (2, "PRUNED"))]
    assert [row["number"] for row in select_rows(rows, (), 2, "number")] == [1, 3]
    assert [row["number"] for row in select_rows(rows, ("PRUNED",), 2)] == [2]
    assert [row["number"] for row in select_rows(rows)] == [3, 1, 2]


@pytest.mark.slow
def test_latex_compiles_with_booktabs_alone(mmsearch: Run, workspace: Path) -> None:
    pdflatex = require("pdflatex")
    with_trials(workspace)
    table = mmsearch("export", "--format", "tex", "--sort", "best", "--columns", "number,value,*lr,reason").stdout
    nasty = tex_table(["*", "_&%"], [[one, two] for one in NASTY for two in NASTY], "lr", marked={0, 3})
    body = f"{table}\n\n\\scriptsize\n{nasty}\n\n{' '.join(map(escape_tex, NASTY))}"
    (workspace / "table.tex").write_text(DOCUMENT % body)
    done = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=workspace, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in (workspace / "table.log").read_text(errors="replace")
