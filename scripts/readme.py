#!/usr/bin/env python3
"""Write what is made from the program: the table of commands in README.md, and docs/reference.md with all the rest.

readme.py           write them
readme.py --check   exit 1 where they are out of date
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

from mmsearch.hyperparameters import TABLE, Parameter, show

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference.md"
COMMANDS = (
    "init",
    "preflight",
    "launch",
    "worker",
    "status",
    "stop",
    "enqueue",
    "dashboard",
    "confirm",
    "retrain-best",
    "predict",
    "export",
    "compare",
    "report",
    "data",
    "fetch",
    "replay",
    "clean",
)
INTRODUCTION = """# Reference

Made from the program by `scripts/readme.py`: every command, every parameter of a study's `[space]`, every file.

## Every command

{help}
## Every parameter

Filters, units and kernels have one parameter a layer: with `depth = 3` there are `filters_1`, `filters_2` and
`filters_3`. A parameter under the name of a choice, such as `image.cnn.kernel`, applies only where that choice is
taken. `features.*` apply where the audio rows are waveforms.

{parameters}
## Every file

{tree}"""

# What has no docstring of its own.
TOP_LEVEL = {
    "Makefile": "make demo, make test, make test-fast, make bench, make bench-quick",
    "pyproject.toml": "the package, its dependencies and tools",
    "constraints.txt": "the exact versions that were tested",
    "Dockerfile": "one image for every service",
    "docker-compose.yml": "PostgreSQL, the search, workers that scale, the dashboard",
    "deploy/slurm.sh": "an array job for Slurm, each task a worker",
    "studies/digits.toml": "the default study, commented",
    "studies/smoke.toml": "a first try: seconds a trial",
    "studies/wide.toml": "every family of the factory",
    "studies/dual_conv.toml": "the write-up 000: its grid; dual_conv_random.toml: its random search",
    "studies/three_conv.toml": "the write-up 001",
    "studies/conv_lstm.toml": "the write-up 004",
    "storage/": "what runs leave (git-ignored)",
    "docs/": "this page, and the pictures of the README",
    "benchmarks/results/": "what was measured, with the commands",
    "mmsearch/data/demo/": "the demo data, its sources and licences",
}


def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mmsearch", *command, "--help"],
        env={"COLUMNS": "110", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.replace("python -m mmsearch", "mmsearch").strip()


def commands() -> str:
    lines = ["| command | what it does |", "|---|---|"]
    for command in COMMANDS:
        paragraph = help_of(command).split("\n\n")[1]
        lines.append(f"| `mmsearch {command}` | {' '.join(paragraph.split()).removesuffix('.')} |")
    return "\n".join(lines) + "\n"


def help_texts() -> str:
    parts = []
    for command in COMMANDS:
        text = help_of(command)
        summary = f"<details><summary><code>mmsearch {command}</code></summary>"
        parts.append(f"{summary}\n\n```text\n{text}\n```\n\n</details>\n")
    return "\n".join(parts)


def parameters() -> str:
    lines = ["| parameter | allowed | default | what it is |", "|---|---|---|---|"]
    for parameter in TABLE.values():
        if re.search(r"_[2-9]$", parameter.name):
            continue
        lines.append(
            f"| `{numbered(parameter.name)}` | {allowed(parameter)} | {defaults(parameter)} | {what(parameter)} |"
        )
    return "\n".join(lines) + "\n"


def numbered(name: str) -> str:
    return re.sub(r"_1$", "_N", name)


def allowed(parameter: Parameter) -> str:
    return re.sub(r"^(one of|a whole number from|a number from) ", "", parameter.allowed())


def defaults(parameter: Parameter) -> str:
    stem = parameter.name.removesuffix("_1")
    if stem == parameter.name:
        return show(parameter.default)
    return ", ".join(show(p.default) for name, p in TABLE.items() if re.fullmatch(rf"{re.escape(stem)}_\d", name))


def what(parameter: Parameter) -> str:
    return parameter.help.replace("layer 1", "layer N")


def first_sentence(text: str) -> str:
    return re.split(r"\.(?:\s|$)", text.splitlines()[0])[0]


def tree() -> str:
    rows = []
    for path in sorted((ROOT / "mmsearch").rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        rows.append((str(path.relative_to(ROOT)), first_sentence(text)))
    for name, text in TOP_LEVEL.items():
        assert (ROOT / name).exists(), name
        rows.append((name, text))
    for folder in ("scripts", "benchmarks", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            rows.append((str(path.relative_to(ROOT)), first_sentence(text)))
    width = max(len(name) for name, _ in rows) + 2
    return "```text\n" + "\n".join(f"{name:<{width}}{text}" for name, text in rows) + "\n```\n"


def main() -> None:
    begin, end = "<!-- commands -->\n", "<!-- end of commands -->"
    head, _, rest = README.read_text().partition(begin)
    made = {
        README: head + begin + commands() + end + rest.partition(end)[2],
        REFERENCE: INTRODUCTION.format(help=help_texts(), parameters=parameters(), tree=tree()),
    }
    for path, text in made.items():
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run scripts/readme.py")


if __name__ == "__main__":
    main()
