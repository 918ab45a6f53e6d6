"""ruff, with the rules of pyproject.toml, has nothing to say."""
import subprocess
import sys

from conftest import ROOT


def test_ruff():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
