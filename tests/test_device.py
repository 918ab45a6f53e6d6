"""--device where there is no GPU (on one: test_pretend_gpu.py), and what --help says of defaults."""
import importlib
import re

import pytest
from test_scripts import SCRIPTS, run

from support import load
from support.errors import UserError

COMMANDS = [path.removesuffix(".py") for path in SCRIPTS if "/" not in path]


@pytest.mark.parametrize("command,device,words", [
    *[(command, "mps", "mps supports neither float64, which sampling needs, nor bitsandbytes")
      for command in COMMANDS],
    ("bench", "cuda:1", "torch sees no GPU here"), ("bench", "gpu", "choose cpu, cuda or cuda:NUMBER")])
def test_one_sentence(command, device, words, tmp_path):
    """From every command; nothing is left of it."""
    out = ["--out", tmp_path / "r"]
    code, _, error = run(importlib.import_module(command).main, "--device", device, *out)
    assert code == 2 and f"error: --device {device}: " in error and words in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command,flags", [
    ("bon_rl", ["--variant", "v"]), ("bon_sft", ["--scores", "verifier"]), ("evaluate", ["--problems", "2"])])
def test_a_verifier_is_on_the_same_device(command, flags, tmp_path, monkeypatch):
    module = importlib.import_module(command)

    def asked(path, bits=None, device=None):
        raise UserError(f"asked for {path} on {device}")
    monkeypatch.setattr(module, "load_verifier", asked)
    code, _, error = run(module.main, *flags, "--device", "cpu", "--verifier", tmp_path, "--out", tmp_path / "r")
    assert code == 2 and f"asked for {tmp_path} on cpu" in error


def test_spellings():
    for asked in ("cpu", None):
        assert load.device_of(asked).type == "cpu"
    for wrong in ("cpu:0", "cuda:x", "cuda:", "CPU", "", "meta", "xpu", "cuda:-1"):
        with pytest.raises(UserError, match="choose cpu, cuda or cuda:NUMBER"):
            load.device_of(wrong)


@pytest.mark.parametrize("command", [*COMMANDS, "make_tiny"])
def test_a_default_is_a_value_or_words(command):
    """Once for each flag: "(default: 8)", or a sentence; nothing for what is off or absent."""
    module = importlib.import_module(command)
    code, out, _ = run(getattr(module, "parse_args", module.main), "--help")
    assert code == 0
    parts = [" ".join(part.split()) for part in re.split(r"\n  (?=-)", out)]
    values = [part for part in parts if "(default: " in part]
    assert len(values) > 5
    for part in parts:
        assert "(default: None)" not in part and "(default: False)" not in part and "(default: [])" not in part, part
        assert part.count("(default: ") <= 1 and ("(default: " not in part or part.count("default") == 1), part


def test_defaults_that_are_values(capsys):
    """They are there, zero and yes among them."""
    _, out, _ = run(importlib.import_module("cat_passk").main, "--help")
    words = " ".join(out.split())
    for shown in ("--n N ", "(default: 16)", "0 = never (default: 0)", "(default: True)", "(default: 0.0)"):
        assert shown in words
