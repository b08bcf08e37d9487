#!/usr/bin/env python3
"""Write the parts of README.md that are made from the program: help texts, the table of parameters, the tree.

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
COMMANDS = ("init", "launch", "status", "dashboard", "retrain-best", "predict", "export", "data")

# What has no docstring of its own.
TOP_LEVEL = {
    "Makefile": "make demo, make test, make test-fast",
    "pyproject.toml": "the package, its dependencies and tools",
    "constraints.txt": "the exact versions that were tested",
    "Dockerfile": "one image for every service",
    "docker-compose.yml": "PostgreSQL, workers that scale, the dashboard",
    "studies/digits.toml": "the default study, commented",
    "studies/smoke.toml": "a first try: seconds a trial",
    "storage/": "what runs leave (git-ignored)",
    "docs/": "the pictures of this page",
    "mmsearch/data/demo/": "the demo data, its sources and licences",
}


def help_texts() -> str:
    parts = []
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mmsearch", command, "--help"],
            env={"COLUMNS": "110", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        text = done.stdout.replace("python -m mmsearch", "mmsearch").strip()
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
    for folder in ("scripts", "tests"):
        for path in sorted((ROOT / folder).glob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            rows.append((str(path.relative_to(ROOT)), first_sentence(text)))
    width = max(len(name) for name, _ in rows) + 2
    return "```text\n" + "\n".join(f"{name:<{width}}{text}" for name, text in rows) + "\n```\n"


def main() -> None:
    text = README.read_text()
    made = text
    for name, content in (("help", help_texts()), ("parameters", parameters()), ("tree", tree())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, _, rest = made.partition(begin)
        made = head + begin + content + end + rest.partition(end)[2]
    if "--check" in sys.argv:
        if made != text:
            sys.exit("README.md is out of date: run scripts/readme.py")
    else:
        README.write_text(made)


if __name__ == "__main__":
    main()
