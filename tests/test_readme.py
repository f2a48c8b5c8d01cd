"""The README's example runs as it stands, and its commands are where a reader looks for them."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture(scope="module")
def text():
    return README.read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def test_example_runs(text, capsys):
    (example,) = blocks(text, "python")
    exec(compile(example, "README.md", "exec"), {})
    assert "of the best possible" in capsys.readouterr().out


@pytest.mark.parametrize(("heading", "needed"), [("Try it", "dal demo"), ("Test it", "pytest")])
def test_commands_stand_alone(text, heading, needed):
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    (command,) = blocks(section, "sh")
    assert needed in command
    assert len(command.strip().splitlines()) == 1


def test_files_named_exist(text):
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / name).exists(), name
