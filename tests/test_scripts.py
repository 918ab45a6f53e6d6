"""The scripts as a user runs them: real runs on the embedded model, resume, errors, help."""
import contextlib
import importlib
import io
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time

import pytest
import references
import safetensors.torch
import torch
from conftest import ROOT, load_policy

import common
import evaluate
import ppo_passk
import tasks
from support import load, plots, processes
from support.errors import UserError
from support.run import batch_of

SCRIPTS = ["ppo_passk.py", "bon_sft.py", "bon_rl.py", "cat_passk.py", "cat_majority.py", "cat_bon.py",
           "fit_verifier.py", "evaluate.py", "bench.py", "models/make_tiny.py"]
SMALL = ["--prompts", "8", "--samples", "8", "--k", "4", "--eval-samples", "8", "--eval-problems", "20"]
TIMING = {"seconds", "tokens_per_s", "samples_per_s", "memory_gb"}


def command(script, *flags):
    return [sys.executable, os.path.join(ROOT, script), *map(str, flags)]


def run(main, *flags):
    """main(argv) in this process -> (exit code, standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(f) for f in flags])
            code = 0
        except SystemExit as error:
            code = error.code
    for s, handler in zip((signal.SIGINT, signal.SIGTERM), handlers):
        signal.signal(s, handler)
    return code, out.getvalue(), err.getvalue()


def read_lines(folder, name="metrics.jsonl"):
    with open(os.path.join(folder, name)) as file:
        return [json.loads(line) for line in file]


def untimed(lines):
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


@pytest.fixture(autouse=True, scope="module")
def no_picture():
    """Only test_two_steps looks for the curves of a run in this process; to draw them takes as long as a step or two.
    yields what draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.run.plot_run", lambda folder, result: None)
        yield plots.plot_run


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_in_under_a_second(script):
    for _ in range(3):  # a busy machine may need another go
        started = time.perf_counter()
        done = subprocess.run(command(script, "--help"), capture_output=True, text=True)
        taken = time.perf_counter() - started
        assert done.returncode == 0 and "usage" in done.stdout and not done.stderr
        if taken < 1:
            break
    assert taken < 1


@pytest.mark.parametrize("flags", [
    ["--objective", "mean"], ["--objective", "passk", "--estimator", "centred"],
    ["--objective", "passk", "--estimator", "plain"], ["--objective", "majority", "--task", "routes"],
    ["--kl-coef", "0.1", "--eval-every", "1"], ["--epochs", "2", "--minibatches", "2", "--lr", "1e-2"],
    ["--bits", "4"]], ids=lambda f: " ".join(f))
def test_two_steps(flags, tmp_path, monkeypatch, no_picture):
    """The adapter moves, the files are there, the numbers are finite, and the table is printed."""
    monkeypatch.setattr("support.run.plot_run", no_picture)
    code, out, err = run(ppo_passk.main, *SMALL, "--steps", 2, "--out", tmp_path / "r", "--temperature", "1.1", *flags)
    assert code == 0 and not err, err
    assert "before" in out and "after" in out and "pass@4" in out
    assert set(os.listdir(tmp_path / "r")) == {"args.json", "metrics.jsonl", "samples.jsonl", "result.json",
                                               "checks.jsonl", "curves.png", "adapter", "state.pt", "state.previous.pt"}
    lines = read_lines(tmp_path / "r")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(v) for line in lines for name, v in line.items() if name != "valid")
    assert all(("valid" in line) == ("--eval-every" in flags) for line in lines)
    assert {"loss", "reward", "pass@1", "pass@4", "zero", "kl", "length", "tokens_per_s", "memory_gb"} <= set(lines[0])
    result = json.load(open(tmp_path / "r" / "result.json"))
    for row in ("before", "after"):
        assert ({"pass@1", "pass@4", "maj@4", "bon@4"} <= set(result[row])
                and set(result[row]["pass@4"]) == {"mean", "se"})
    assert abs(result["before"]["kl"]["mean"]) < 0.05 and result["seconds"] > 0
    adapter = safetensors.torch.load_file(tmp_path / "r" / "adapter" / "adapter_model.safetensors")
    assert max(t.abs().max() for n, t in adapter.items() if "lora_B" in n) > 0  # a fresh adapter has B = 0
    import peft
    import transformers
    base = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(ROOT, "models", "tiny"))
    peft.PeftModel.from_pretrained(base, tmp_path / "r" / "adapter")  # any peft user can load it


@pytest.mark.parametrize("flags", [[], ["--temperature", "0.7"], ["--minibatches", "2", "--epochs", "2"],
                                   ["--kl-coef", "0.5", "--reference", "base"]], ids=lambda f: " ".join(f) or "default")
def test_what_reaches_the_optimiser(flags, whole, tmp_path, monkeypatch):
    """At ratio 1 every gradient is -(1/B) sum_prompts sum_i c_i grad log pi(y_i), c = A - beta KL coefficients, over
    the prompts of its minibatch, those without signal counted; plain rows of softmax(logits / T) say what it must
    be."""
    seen, gradients, rates = {}, [], []
    sample, advantages = common.sample, ppo_passk.advantages

    def clip(parameters, max_norm):
        gradients.append(torch.cat([p.grad.flatten().clone() for p in parameters]))
        return 0.0

    def keep(name, function):
        def wrapped(*args, **options):
            seen.setdefault(name, (args, function(*args, **options)))
            return seen[name][1]
        return wrapped
    monkeypatch.setattr(processes, "clip_gradient", clip)
    monkeypatch.setattr(common, "sample", keep("sample", sample))
    monkeypatch.setattr(ppo_passk, "advantages", keep("advantages", advantages))
    # the policy stays
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: rates.append(self.param_groups[0]["lr"]))
    monkeypatch.setattr(load, "micro_batch", lambda lm: 300)  # tokens: a few micro-batches, as a large model has them
    # from an adapter that has moved: a fresh one equals the base, and a KL of zero could not show a mistake
    code, _, err = run(ppo_passk.main, "--adapter", whole, "--prompts", 12, "--samples", 6, "--k", 3, "--steps", 2,
                       "--lr", 0.5, "--eval-samples", 0, "--out", tmp_path / "r", *flags)
    assert code == 0, err
    args = ppo_passk.parser().parse_args(flags)
    (policy, prompts, n, *_), drawn = seen["sample"]
    A = seen["advantages"][1]
    assert 0 < (A != 0).float().mean() < 1  # some samples were dropped, some were not
    assert len(gradients) == 2 * args.epochs * args.minibatches
    assert rates == [0.5] * (len(rates) // 2) + [0.25] * (len(rates) // 2)

    def plain(b, row):
        logits = (policy.lm(input_ids=torch.tensor([prompts[b] + row])).logits[0, len(prompts[b]) - 1:-1]
                  / args.temperature)
        return torch.log_softmax(logits, -1)[torch.arange(len(row)), row].sum()
    gap = torch.zeros(12, 6)
    with torch.no_grad():
        for b, rows in enumerate(drawn.lists()):
            for i, row in enumerate(rows):
                with policy.reference():
                    ref = plain(b, row)
                gap[b, i] = plain(b, row) - ref
    c = A - args.kl_coef / 6 * (gap - (gap.sum(1, keepdim=True) - gap) / 5)
    assert gap.abs().max() > 0.01 or not args.kl_coef
    for part in range(args.minibatches):
        for p in policy.parameters():
            p.grad = None
        mine = range(part, 12, args.minibatches)
        for b in mine:
            for i, row in enumerate(drawn.lists()[b]):
                (-c[b, i] / len(mine) * plain(b, row)).backward()
        wanted = torch.cat([p.grad.flatten() for p in policy.parameters()])
        for epoch in range(args.epochs):
            assert (gradients[epoch * args.minibatches + part] - wanted).norm() < 1e-3 * wanted.norm()


def unmoved(monkeypatch, script):
    """Makes a script keep what its updates depend on, and leaves the policy where it is -> {what: list}."""
    seen = {name: [] for name in ("sample", "seeds", "batch", "policy", "gradient", "max_norm", "rate", "decay")}
    sample = common.sample

    def keep_sample(policy, prompts, k, seeds, *rest):
        seen["seeds"] += seeds
        seen["policy"].append(policy)
        seen["sample"].append((prompts, sample(policy, prompts, k, seeds, *rest)))
        return seen["sample"][-1][1]

    def keep_batch(problems, *rest):
        seen["batch"].append(rest)
        return batch_of(problems, *rest)

    def clip(parameters, max_norm):
        seen["max_norm"].append(max_norm)
        seen["gradient"].append(torch.cat([p.grad.flatten().clone() for p in parameters]))
        return 0.0

    def step(optimizer):
        group, = optimizer.param_groups
        seen["rate"].append(group["lr"])
        seen["decay"].append(group["weight_decay"])
    monkeypatch.setattr(common, "sample", keep_sample)
    monkeypatch.setattr(script, "batch_of", keep_batch)
    monkeypatch.setattr(processes, "clip_gradient", clip)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return seen


def plain_logps(policy, prompt, row, temperature):
    """log pi of every token of a row, by a forward pass of its own."""
    logits = policy.lm(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1:-1] / temperature
    return torch.log_softmax(logits, -1)[torch.arange(len(row)), row]


LOOPS = [("ppo_passk", ["--k", "3"]), ("bon_rl", ["--variant", "rl"]), ("cat_passk", []),
         ("cat_majority", []), ("cat_bon", [])]


def named(value):
    return value if isinstance(value, str) else " ".join(value)


@pytest.mark.parametrize("script,flags", [*LOOPS, ("bon_sft", []), ("cat_passk", ["--mode", "sft"])], ids=named)
def test_the_loop_of_every_script(script, flags, tmp_path, monkeypatch):
    """No two prompts of a run share a seed, the batches are those of its seed, the rate falls from lr to lr / steps,
    weights do not decay, and the gradient's norm is clipped as asked."""
    seen = unmoved(monkeypatch, importlib.import_module(script))
    code, _, err = run(importlib.import_module(script).main, "--task", "countdown", "--prompts", 6, "--steps", 2,
                       "--seed", 7, "--lr", 0.4, "--max-grad-norm", 0.3, "--eval-samples", 0, "--out", tmp_path / "r",
                       *flags, *[] if "sft" in flags else ["--samples", 6])
    assert code == 0, err
    assert len(set(seen["seeds"])) == len(seen["seeds"]) == (12 if seen["sample"] else 0)
    assert bool(seen["sample"]) == ("sft" not in flags)
    assert seen["batch"] == [(6, 1, 7), (6, 2, 7)]
    assert seen["rate"] == pytest.approx([0.4, 0.2])
    assert seen["decay"] == [0.0] * 2 and seen["max_norm"] == [0.3] * 2


@pytest.mark.parametrize("script,flags", LOOPS, ids=named)
def test_the_kl_of_every_script(script, flags, whole, tmp_path, monkeypatch):
    """--kl-coef adds beta (1/B) sum_prompts grad KL to what is descended, on every sample, at the policy's temperature;
    the step line has KL itself, on the first sample of a prompt where beta is 0. The adapter has left the reference."""
    seen, beta, T = unmoved(monkeypatch, importlib.import_module(script)), 5.0, 0.7
    for name, coefficient in (("with", beta), ("without", 0)):
        code, _, err = run(importlib.import_module(script).main, "--adapter", whole, "--reference", "base",
                           "--task", "countdown", "--prompts", 3, "--samples", 3, "--steps", 1, "--temperature", T,
                           "--kl-coef", coefficient, "--eval-samples", 0, "--out", tmp_path / name, *flags)
        assert code == 0, err
    (prompts, drawn), policy = seen["sample"][0], seen["policy"][0]
    assert drawn.lists() == seen["sample"][1][1].lists()
    gap, logps = torch.zeros(3, 3), {}
    for b, rows in enumerate(drawn.lists()):
        for i, row in enumerate(rows):
            with torch.no_grad(), policy.reference():
                reference = plain_logps(policy, prompts[b], row, T).sum()
            logps[b, i] = plain_logps(policy, prompts[b], row, T).sum()
            gap[b, i] = logps[b, i].item() - reference
    assert gap.abs().max() > 0.01
    for name, wanted in (("with", gap.mean()), ("without", gap[:, 0].mean())):
        assert read_lines(tmp_path / name)[0]["kl"] == pytest.approx(wanted.item(), abs=1e-5)
    coefficients = beta / 3 / 3 * (gap - (gap.sum(1, keepdim=True) - gap) / 2)
    wanted = torch.autograd.grad(sum(coefficients[place] * logp for place, logp in logps.items()), policy.parameters())
    wanted = torch.cat([g.flatten() for g in wanted])
    assert (seen["gradient"][0] - seen["gradient"][1] - wanted).norm() < 2e-3 * wanted.norm()


def test_the_second_epoch_is_clipped(tmp_path, monkeypatch):
    """Once the optimiser has moved the policy, ratios are to the policy that sampled, and a token whose ratio has left
    [1 - eps, 1 + eps] in the direction of its advantage has no gradient. The step's loss is the mean over epochs."""
    seen, kept, advantages = unmoved(monkeypatch, ppo_passk), [], ppo_passk.advantages
    monkeypatch.setattr(ppo_passk, "advantages", lambda *args: kept.append(advantages(*args)) or kept[0])

    def step(optimizer):
        generator = torch.Generator().manual_seed(0)
        if len(seen["gradient"]) == 1:
            for p in optimizer.param_groups[0]["params"]:
                p.data += 0.04 * torch.randn(p.shape, generator=generator)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    code, _, err = run(ppo_passk.main, "--prompts", 8, "--samples", 6, "--k", 3, "--estimator", "centred",
                       "--epochs", 2, "--clip", 0.1, "--steps", 1, "--eval-samples", 0, "--out", tmp_path / "r")
    assert code == 0, err
    ((prompts, drawn),), policy, A = seen["sample"], seen["policy"][0], kept[0]
    first, second, sides = 0.0, 0.0, {True: 0, False: 0}
    for b, rows in enumerate(drawn.lists()):
        for i, row in enumerate(rows):
            a, logps = A[b, i].item(), plain_logps(policy, prompts[b], row, 1.0)
            first -= a * len(row) / 8
            for logp, old in zip(logps, drawn.logps[b, i].tolist()):
                rho = (logp - old).exp()
                outside = rho > 1.1 if a > 0 else rho < 0.9
                sides[a > 0] += bool(outside and a)
                second = second - a * ((1.1 if a > 0 else 0.9) if outside else rho) / 8
    assert min(sides.values()) > 3, sides
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(second, policy.parameters())])
    assert (seen["gradient"][1] - wanted).norm() < 2e-3 * wanted.norm()
    line, = read_lines(tmp_path / "r")
    assert line["loss"] == pytest.approx((first + second.item()) / 2, abs=1e-5)
    assert line["length"] == pytest.approx(drawn.lengths.float().mean().item())
    task = tasks.load_task("countdown")
    right = [sum(task.verify(p, policy.decode(row)) for row in rows)
             for p, rows in zip(batch_of(task.train, 8, 1, 0), drawn.lists())]
    assert line["pass@3"] == pytest.approx(sum(common.pass_at_k(6, int(c), 3) for c in right) / 8) and sum(right) > 0


def test_clip_gradient():
    policy = load_policy("tiny", bits=32)
    for max_norm, wanted in ((2.0, 2.0), (0, 6.0), (100.0, 6.0)):
        n = sum(p.numel() for p in policy.parameters())
        for p in policy.parameters():
            p.grad = torch.full_like(p, 6.0 / n ** 0.5)
        assert processes.clip_gradient(policy.parameters(), max_norm) == pytest.approx(6.0, rel=1e-4)
        assert (torch.cat([p.grad.flatten() for p in policy.parameters()]).norm().item()
                == pytest.approx(wanted, rel=1e-4))
    policy.parameters()[0].grad[0, 0] = math.nan
    with pytest.raises(UserError):
        processes.clip_gradient(policy.parameters(), 1.0)


def test_same_seed_same_run_and_another_seed_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(ppo_passk.main, *SMALL, "--steps", 2, "--seed", seed, "--out", tmp_path / name)[0] == 0
    a, b, c = (untimed(read_lines(tmp_path / n)) for n in "abc")
    assert a == b != c


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    assert run(ppo_passk.main, *SMALL, "--steps", 6, "--save-every", 4, "--out", folder)[0] == 0
    return folder


def same_run(a, b):
    """Bit for bit: metrics, results, adapter."""
    assert untimed(read_lines(a)) == untimed(read_lines(b))
    assert read_lines(a, "samples.jsonl") == read_lines(b, "samples.jsonl")
    x, y = (safetensors.torch.load_file(os.path.join(f, "adapter", "adapter_model.safetensors")) for f in (a, b))
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    x, y = (json.load(open(os.path.join(f, "result.json"))) for f in (a, b))
    assert x["after"] == y["after"] and x["before"] == y["before"]


def test_resume_after_kill_9(whole, tmp_path):
    """Killed between checkpoints, the log running ahead of them: every step once, and the same bits at the end."""
    folder = tmp_path / "r"
    child = subprocess.Popen(command("ppo_passk.py", *SMALL, "--steps", 6, "--save-every", 2, "--out", folder),
                             stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (os.path.exists(folder / "metrics.jsonl") and len(read_lines(folder)) >= 3):
        assert child.poll() is None
        time.sleep(0.005)
    child.kill()
    child.wait()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "torn')  # a torn line, as a kill in mid-write leaves it
    code, out, err = run(ppo_passk.main, "--out", folder, "--resume", "--save-every", 3)
    assert code == 0, err
    assert [line["step"] for line in read_lines(folder)] == [1, 2, 3, 4, 5, 6]
    same_run(whole, folder)


def test_interrupt_saves_and_resumes(whole, tmp_path):
    folder = tmp_path / "r"
    child = subprocess.Popen(command("ppo_passk.py", *SMALL, "--steps", 6, "--save-every", 100, "--out", folder),
                             stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (os.path.exists(folder / "metrics.jsonl") and read_lines(folder)):
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130 and "--resume" in out
    code, out, err = run(ppo_passk.main, "--out", folder, "--resume")
    assert code == 0, err
    same_run(whole, folder)


def test_resume_refuses_other_flags(whole):
    code, _, err = run(ppo_passk.main, "--out", whole, "--resume", "--lr", "1")
    assert code == 2 and "--lr" in err
    assert run(ppo_passk.main, "--out", whole, "--resume", "--k", "4")[0] == 0  # agrees with args.json


def test_continue_from_an_adapter(whole, tmp_path):
    code, out, err = run(ppo_passk.main, *SMALL, "--steps", 1, "--adapter", whole, "--out", tmp_path / "r")
    assert code == 0, err
    before, after = (json.load(open(tmp_path / "r" / "result.json"))["before"],
                     json.load(open(whole / "result.json"))["after"])
    assert before["pass@4"] == after["pass@4"]
    assert abs(before["kl"]["mean"]) < 1e-4 < abs(after["kl"]["mean"])  # the reference is the start of THIS run


@pytest.mark.parametrize("flags,words", [
    (["--model", "no/such-model"], "no/such-model"), (["--task", "chess"], "chess"),
    (["--data", "no-such.jsonl"], "no-such.jsonl"), (["--k", "9", "--samples", "8"], "--k 9"), (["--k", "0"], "--k"),
    (["--temperature", "0"], "--temperature"), (["--lr", "x"], "--lr"), (["--clip", "0.2"], "--clip"),
    (["--objective", "majority", "--k", "3", "--samples", "8"], "multiple"), (["--k", "8:x"], "--k"),
    (["--k", "1:8"], "FIRST:LAST must not increase"), (["--k", "8:0"], "--k must be at least 1"),
    (["--k", "9:1", "--samples", "8"], "--k 9:1"),
    (["--objective", "majority", "--k", "4:1"], "majority trains for a single k"),
    (["--objective", "maxrl", "--estimator", "solved"], "equal to --samples"),
    (["--k", "16", "--estimator", "constant"], "--objective maxrl"),
    (["--objective", "maxrl", "--k", "16:8", "--estimator", "constant"], "equal to --samples"),
    (["--out", "/proc/no/run"], "/proc/no/run"), (["--resume"], "--out"),
    (["--resume", "--out", "no-such-run"], "no-such-run"), (["--adapter", "no-such-adapter"], "no-such-adapter"),
    (["--estimator", "centred", "--k", "8", "--samples", "8"], "centred"), (["--temperature", "nan"], "--temperature"),
    (["--lr", "-1"], "--lr"), (["--eval-samples", "-1"], "--eval-samples"),
    (["--eval-every", "1", "--eval-samples", "0"], "--eval-every"), (["--max-new-tokens", "510"], "--max-new-tokens"),
    (["--task", "routes", "--levels", "1"], "level")],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_errors_are_one_sentence(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(ppo_passk.main, *flags)
    assert code == 2 and words in err.replace("\n", " ") and "Traceback" not in err
    assert len(err.strip().split("\n")[-1]) < 600
    if "usage" not in err:
        assert err.count("\n") == 1


def test_k_that_falls(tmp_path, monkeypatch):
    """Each step has its k, the first is reported everywhere, and the run resumes."""
    seen, advantages = [], ppo_passk.advantages
    monkeypatch.setattr(ppo_passk, "advantages", lambda *given: seen.append(given[1:3]) or advantages(*given))
    code, out, err = run(ppo_passk.main, *SMALL, "--steps", 3, "--k", "4:1", "--objective", "maxrl", "--out",
                         tmp_path / "r")
    assert code == 0, err
    assert seen == [(4, "maxrl"), (2, "maxrl"), (1, "maxrl")] and "objective maxrl, k 4:1, n 8" in out
    assert json.load(open(tmp_path / "r" / "args.json"))["flags"]["k"] == "4:1"
    assert all("pass@4" in line for line in read_lines(tmp_path / "r"))
    assert "pass@4" in (tmp_path / "r" / "adapter" / "README.md").read_text()
    assert run(ppo_passk.main, "--out", tmp_path / "r", "--resume", "--k", "4:1")[0] == 0
    for k, message in (("4:2", "--k is 4:1, not 4:2"), (4, "--k is 4:1, not 4")):
        code, _, err = run(ppo_passk.main, "--out", tmp_path / "r", "--resume", "--k", k)
        assert code == 2 and message in err
    for damaged in ("4:", 4.0, True, "4"):
        found = json.load(open(tmp_path / "r" / "args.json"))
        found["flags"]["k"] = damaged
        (tmp_path / "r" / "args.json").write_text(json.dumps(found))
        code, _, err = run(ppo_passk.main, "--out", tmp_path / "r", "--resume")
        assert code == 2 and f"has --k {damaged}, which this script does not take" in err


def test_a_full_folder_is_not_overwritten(whole):
    before = sorted((n, os.path.getmtime(whole / n)) for n in os.listdir(whole))
    code, _, err = run(ppo_passk.main, *SMALL, "--steps", 1, "--out", whole)
    assert code == 2 and "--resume" in err
    assert before == sorted((n, os.path.getmtime(whole / n)) for n in os.listdir(whole))


def test_a_broken_line_is_named(tmp_path):
    data = tmp_path / "p.jsonl"
    data.write_text('{"prompt": "1+1", "answer": "2"}\n{"prompt": "1+2"\n')
    code, _, err = run(ppo_passk.main, "--data", data, "--out", tmp_path / "r")
    assert code == 2 and "p.jsonl" in err and "2" in err and err.count("\n") == 1


def test_own_problems_end_to_end(tmp_path):
    """--data FILE.jsonl with math-verify behind it, through training and evaluation."""
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"c{a},{b}:{a + b}>", "answer": str(a)}) + "\n"
                            for a in range(1, 10) for b in range(1, 4)))
    code, out, err = run(ppo_passk.main, *SMALL, "--data", data, "--steps", 2, "--max-new-tokens", 6,
                         "--out", tmp_path / "r")
    assert code == 0 and not err, err
    code, out, err = run(evaluate.main, tmp_path / "r", "--samples", 4, "--k", "1,4", "--max-new-tokens", 6,
                         "--out", tmp_path / "e")
    assert code == 0 and "pass@4" in out, err
    assert all(entry["id"].startswith("p.jsonl:") for entry in read_lines(tmp_path / "e", "pool-1.jsonl"))
    code, out, err = run(evaluate.main, tmp_path / "r", "--task", "routes", "--problems", 3, "--samples", 4, "--k", "4",
                         "--out", tmp_path / "f")
    assert all(entry["id"].startswith("routes/") for entry in read_lines(tmp_path / "f", "pool-1.jsonl"))


def test_a_split_that_is_not_there(tmp_path):
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"c{a},2>", "answer": str(a), "split": "train"}) + "\n"
                            for a in range(1, 9)))
    code, _, err = run(ppo_passk.main, *SMALL, "--data", data, "--steps", 1, "--max-new-tokens", 4,
                       "--out", tmp_path / "r")
    assert code == 2 and "test" in err and err.count("\n") == 1
    code, _, err = run(ppo_passk.main, *SMALL, "--data", data, "--steps", 1, "--max-new-tokens", 4, "--eval-samples", 0,
                       "--out", tmp_path / "s")
    assert code == 0, err


def test_prompts_that_do_not_fit_are_left_out(tmp_path):
    data = tmp_path / "p.jsonl"
    data.write_text("".join(
        json.dumps({"prompt": "c" + "1" * (510 if a == 3 else a), "answer": "5", "split": split}) + "\n"
        for a in range(1, 9) for split in ("train" if a < 7 else "test",)))
    code, out, err = run(ppo_passk.main, *SMALL, "--data", data, "--steps", 2, "--max-new-tokens", 4,
                         "--out", tmp_path / "r")
    assert code == 0 and "left out 1 of 6" in out, err


def test_default_folders_are_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(ppo_passk.main, *SMALL, "--steps", 1, "--eval-samples", 0)[0] == 0
    assert sorted(os.listdir("runs")) == ["ppo_passk-countdown-passk-1", "ppo_passk-countdown-passk-2"]


# ------------------------------------------------------------------------------------------------------------- evaluate

def test_evaluate_compares_and_rescores(whole, tmp_path):
    code, out, err = run(evaluate.main, "tiny", whole, "--samples", 8, "--k", "1,4", "--problems", 20,
                         "--out", tmp_path / "e")
    assert code == 0 and "paired" in out, err
    report = json.load(open(tmp_path / "e" / "result.json"))
    assert set(os.listdir(tmp_path / "e")) == {"result.json", "curves.png", "pool-1.jsonl", "pool-2.jsonl"}
    code, _, err = run(evaluate.main, "--samples", 8, "--k", "1", "--out", tmp_path / "e")
    assert code == 2 and "not empty" in err
    rows = list(report["results"])
    difference = report["results"][rows[1]]["pass@4"]["mean"] - report["results"][rows[0]]["pass@4"]["mean"]
    assert next(iter(report["paired"].values()))["pass@4"]["mean"] == pytest.approx(difference)
    code, out, err = run(evaluate.main, "--pool", tmp_path / "e" / "pool-1.jsonl", tmp_path / "e" / "pool-2.jsonl",
                         "--k", "1,4", "--score", "oracle", "--out", tmp_path / "f")
    assert code == 0, err
    a, b = ([common.pass_at_k(8, int(sum(entry["rewards"])), 4) for entry in read_lines(tmp_path / "e", name)]
            for name in ("pool-1.jsonl", "pool-2.jsonl"))
    paired = next(iter(report["paired"].values()))["pass@4"]["se"]  # of the differences, problem by problem
    assert paired == pytest.approx(statistics.stdev(y - x for x, y in zip(a, b)) / 20 ** 0.5)
    again = json.load(open(tmp_path / "f" / "result.json"))["results"]
    for a, b in zip(again.values(), report["results"].values()):
        assert a["pass@4"] == b["pass@4"] and a["maj@4"] == b["maj@4"]
        assert a["bon@4"]["mean"] == pytest.approx(a["pass@4"]["mean"])  # the oracle picks a right one if there is one


def test_a_pool_by_plain_forward_passes(whole):
    """Every number of a pool against rows computed one by one, away from T = 1 and from the reference; the draws of a
    problem are its own, whatever is drawn beside it and in which block."""
    policy, task = load_policy("tiny", adapter=str(whole), reference="base"), tasks.load_task("countdown")
    problems, T = task.test[:3], 3.0
    pool = evaluate.draw_pool(policy, task, problems, 10, T, seed=3, kl=True)
    for p, entry in zip(problems, pool, strict=True):
        prompt = policy.encode(p.prompt)
        seed = common.seed_of("evaluate", 3, p.id)
        rows, = common.sample(policy, [prompt], 10, [seed], T, task.max_new_tokens).lists()
        assert len({len(row) for row in rows}) > 1  # a mean over tokens is not one over samples
        assert entry["completions"] == [policy.decode(row) for row in rows]
        assert entry["lengths"] == [len(row) for row in rows]
        assert entry["rewards"] == [task.verify(p, text) for text in entry["completions"]]
        with torch.no_grad():
            logps = [plain_logps(policy, prompt, row, T) for row in rows]
            gold = plain_logps(policy, prompt, policy.encode_solution(p.solution), T).sum()
            logits = [policy.lm(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1:-1] for row in rows]
            with policy.reference():
                gaps = [logp.sum() - plain_logps(policy, prompt, row, T).sum() for logp, row in zip(logps[:8], rows)]
        entropy = sum(torch.distributions.Categorical(logits=x / T).entropy().sum().item() for x in logits)
        assert entry["logps"] == pytest.approx([x.mean().item() for x in logps], abs=1e-4)
        assert entry["gold"] == pytest.approx(gold.item(), abs=1e-4)
        assert entry["kl"] == pytest.approx(sum(gaps).item() / 8, abs=1e-4) and abs(entry["kl"]) > 1e-3
        assert entry["entropy"] == pytest.approx(entropy / sum(map(len, rows)), abs=1e-4)
    values = evaluate.metrics(pool, [2])
    assert values["length"] == [sum(e["lengths"]) / 10 for e in pool]
    assert values["reward"] == [sum(e["rewards"]) / 10 for e in pool]
    assert values["bon@2"] == [common.bon_at_k(e["logps"], e["rewards"], 2) for e in pool]
    task.max_new_tokens = 1
    blocks = evaluate.draw_pool(policy, task, problems[:2], 8192, T)  # 8,192 samples are a block
    assert [e["gold"] for e in blocks] == pytest.approx([e["gold"] for e in pool[:2]], abs=1e-4)


def test_evaluate_without_training_equals_before(whole, tmp_path):
    """The training script and evaluate.py call the same function: same seed, same figures."""
    code, out, err = run(evaluate.main, "tiny", "--task", "countdown", "--samples", 8, "--k", "1,4", "--problems", 20,
                         "--out", tmp_path / "e")
    before = json.load(open(whole / "result.json"))["before"]
    assert json.load(open(tmp_path / "e" / "result.json"))["results"]["tiny"]["pass@4"] == before["pass@4"]


def test_co_scaling_fit(tmp_path):
    a, b = -1.7, -0.4
    exact = {"T=1": {f"pass@{n}": {"mean": math.exp(a * n ** b)} for n in (1, 2, 4, 8, 16)}}
    exact["T=1"]["pass@32"] = {"mean": 1.0}  # says nothing of a and b
    fit = evaluate.co_scaling(exact)["T=1"]
    assert fit["a"] == pytest.approx(a) and fit["b"] == pytest.approx(b) and fit["rmse"] < 1e-12
    code, out, err = run(evaluate.main, "--samples", 8, "--k", "1,2,4,8", "--problems", 20, "--temperature", "0.5,1",
                         "--co-scaling", "--out", tmp_path / "e")
    assert code == 0 and out.count("co-scaling") == 2 and os.path.exists(tmp_path / "e" / "co_scaling.png"), err


@pytest.mark.parametrize("flags", [["--k", "1,99", "--samples", "8"], ["--k", "a"], ["--temperature", "0"],
                                   ["--temperature", "nan"], ["--pool", "no-such.jsonl"], ["--task", "chess"],
                                   ["no/such-model"], ["--out", "/proc/no/e"], ["--problems", "-1"],
                                   ["--co-scaling", "--k", "8"]], ids=" ".join)
def test_evaluate_errors(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(evaluate.main, *flags)
    assert code == 2 and err.count("\n") == 1, err


def test_metrics_of_graded_rewards():
    """Graded tasks report max@k in place of pass@k; equal budgets count once."""
    entry = {"rewards": [0.5, 2.0, -1.0], "answers": ["a", None, "b"], "logps": [-1.0, -3.0, -2.0],
             "lengths": [2, 3, 4]}
    values = evaluate.metrics([entry, entry], [1, 2], graded=True)
    assert (values["max@2"] == pytest.approx([(2.0 + 0.5 + 2.0) / 3] * 2)
            and values["bon@2"] == pytest.approx([(0.5 + 0.5 - 1.0) / 3] * 2))
    assert not any(name.startswith(("pass", "maj")) for name in values)
    row = {n: evaluate.mean_se(v) for n, v in values.items()}
    assert "max@2" in evaluate.table({"a": row})
    assert evaluate.numbers("2,1,1", int, "--k") == [1, 2]
    pool = [{"rewards": [1.0, 0.0, 1.0], "answers": ["a", "b", "c"], "logps": [-1.0, -3.0, -2.0], "lengths": [2, 3, 4],
             "kl": 0.3}]
    assert evaluate.metrics(pool, [3])["maj@3"] == pytest.approx([2 / 3]) and evaluate.metrics(pool, [3])["kl"] == [0.3]


def test_table():
    """The columns asked for, by kind and then budget, what repeats pass@1 left out; "-" where a row has no value."""
    cell = lambda mean, se: {"mean": mean, "se": se}
    a = {"maj@1": cell(0.5, 0.1), "pass@1": cell(0.5, 0.1), "maj@4": cell(0.625, 0.0625), "pass@2": cell(0.6, 0.1),
         "pass@4": cell(0.75, 0.05), "length": cell(7, 1)}
    text = evaluate.table({"first": a, "b": {"pass@4": cell(1.0, 0.0)}}, ("pass", "maj"), (1, 4))
    header, first, second = (re.split(r"\s{2,}", line.strip()) for line in text.split("\n"))
    assert header == ["pass@1", "pass@4", "maj@4"]
    assert first == ["first", "0.500 ±0.100", "0.750 ±0.050", "0.625 ±0.062"]
    assert second == ["b", "-", "1.000 ±0.000", "-"]


def test_table_of_runs(whole, tmp_path):
    done = subprocess.run(command("results/table.py", whole, tmp_path, "--columns", "pass@4,seconds"),
                          capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and "no result" in done.stdout
    after = json.load(open(whole / "result.json"))["after"]["pass@4"]
    assert f"{after['mean']:.3f} ±{after['se']:.3f}" in done.stdout


@pytest.mark.parametrize("flags,why", [
    (["--steps", "0"], "--steps and"), (["--layers", "0"], "--steps and"), (["--batch", "1"], "--batch"),
    (["--lr", "0"], "--lr"), (["--width", "65"], "--width"), (["--tasks", "chess"], "not an embedded task"),
    (["--tasks", "routes,routes"], "twice"), (["--tasks", "program,routes"], "alphabets of their own"),
    (["--cut", "0.5"], "--cut"), (["--tasks", "countdown", "--cut", "1"], "--cut"),
    (["--tasks", "peptide", "--start", "tiny"], "alphabet of peptide"), (["--out", "/proc/no/tiny"], "cannot write")])
def test_make_tiny_errors(flags, why, tmp_path):
    import make_tiny
    code, _, err = run(make_tiny.main, "--out", tmp_path / "t", *flags)
    assert code == 2 and err.count("\n") == 1 and re.search(why, err), err


def test_make_tiny_learns_and_repeats_itself(tmp_path, monkeypatch):
    """The recipe at 3 % of its length: the same seed gives the same file, which loads, and the losses fall."""
    import make_tiny
    measure = evaluate.evaluate
    monkeypatch.setattr(evaluate, "evaluate", lambda policy, task, problems, **options: measure(
        policy, task, problems[:20], **options))
    small = ["--steps", 60, "--layers", 1, "--batch", 16]
    outs = []
    for name in "ab":
        code, out, err = run(make_tiny.main, *small, "--out", tmp_path / name)
        assert code == 0, err
        outs.append(out)
    a, b = (safetensors.torch.load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    losses = [float(x) for x in re.findall(r"loss ([0-9.]+)", outs[0])]
    assert len(losses) == 2 and max(losses) < 2.8 < math.log(28)
    assert {"countdown", "routes", "parameters", "seconds"} <= set(json.load(open(tmp_path / "a" / "result.json")))


@pytest.mark.parametrize("base,names", [
    ("tiny", ["countdown", "routes"]), ("tiny_program", ["program"]), ("tiny_countdown6", ["countdown6"])])
def test_the_shipped_model_is_small_and_as_good_as_it_says(base, names):
    folder = os.path.join(ROOT, "models", base)
    assert sum(os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder)) < 1e6
    recorded = json.load(open(os.path.join(folder, "result.json")))
    policy = load_policy(base, bits=32)
    import tasks
    for name in names:
        task = tasks.load_task(name)
        assert task.base == base
        found, _ = evaluate.evaluate(policy, task, task.valid[:100], samples=32, ks=(1, 32), seed=5)
        for k in (1, 32):
            assert (abs(found[f"pass@{k}"]["mean"] - recorded[name][f"pass@{k}"]["mean"])
                    < 4 * found[f"pass@{k}"]["se"] + 0.02)
        if name == "countdown6":  # room at every k
            assert 0.02 < recorded[name]["pass@1"]["mean"] < 0.05 and recorded[name]["pass@32"]["mean"] < 0.6
            continue
        assert (0.15 < recorded[name]["pass@1"]["mean"] < 0.45
                and recorded[name]["pass@32"]["mean"] > recorded[name]["pass@1"]["mean"] + 0.3)


def test_the_hasty_model_stops_early_and_can_do_the_rest():
    """Small; half as good as tiny or less, because most of its samples leave numbers out."""
    folder = os.path.join(ROOT, "models", "tiny_hasty")
    assert sum(os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder)) < 1e6
    recorded = json.load(open(os.path.join(folder, "result.json")))
    assert {"start": "tiny", "cut": 0.6, "tasks": "countdown"}.items() <= recorded["flags"].items()
    import tasks
    task, (hasty, tiny) = tasks.load_task("countdown"), (load_policy(n, bits=32) for n in ("tiny_hasty", "tiny"))
    problems = task.valid[:100]
    found, pool = evaluate.evaluate(hasty, task, problems, samples=32, ks=(1, 32), seed=5)
    usual, _ = evaluate.evaluate(tiny, task, problems, samples=32, ks=(1, 32), seed=5)
    for k in (1, 32):
        assert (abs(found[f"pass@{k}"]["mean"] - recorded["countdown"][f"pass@{k}"]["mean"])
                < 4 * found[f"pass@{k}"]["se"] + 0.02)
        assert found[f"pass@{k}"]["mean"] < (0.5 if k == 1 else 0.95) * usual[f"pass@{k}"]["mean"]
    short = [len(re.findall("[0-9]", c)) < p.prompt.split(":")[0].count(",") + 1
             for p, entry in zip(problems, pool) for c in entry["completions"]]
    assert 0.5 < sum(short) / len(short) < 0.7


def test_a_task_brings_its_base(tmp_path):
    """Without --model; args.json records which one it was, as if it had been given."""
    import bon_sft
    import cat_bon
    for script, task, base, flags in ((ppo_passk, "program", "tiny_program", SMALL),
                                      (ppo_passk, "countdown6", "tiny_countdown6", SMALL),
                                      (bon_sft, "program", "tiny_program", ["--prompts", 8]),
                                      (bon_sft, "countdown", "tiny_hasty", ["--prompts", 8]),
                                      (cat_bon, "countdown", "tiny", ["--prompts", 8])):
        folder = tmp_path / f"{script.__name__}-{task}"
        code, _, err = run(script.main, "--task", task, *flags, "--steps", 1, "--eval-samples", 0, "--out", folder)
        assert code == 0, err
        assert json.load(open(folder / "args.json"))["flags"]["model"] == base
        assert run(script.main, "--out", folder, "--resume", "--model", base)[0] == 0
        code, _, err = run(script.main, "--out", folder, "--resume", "--model", "tiny_peptide")
        assert code == 2 and f"--model is {base}" in err
    code, _, err = run(ppo_passk.main, *SMALL, "--steps", 1, "--eval-samples", 0, "--adapter",
                       tmp_path / "bon_sft-countdown", "--out", tmp_path / "on")  # so does what is gone on from
    assert code == 0 and json.load(open(tmp_path / "on" / "args.json"))["flags"]["model"] == "tiny_hasty", err
    code, _, err = run(evaluate.main, "--task", "program", "--samples", 4, "--k", 1, "--problems", 5,
                       "--out", tmp_path / "e")
    assert code == 0 and list(json.load(open(tmp_path / "e" / "result.json"))["results"]) == ["tiny_program"], err


# ---------------------------------------------------------------------------------------------------------------- bench

@pytest.mark.parametrize("flags", [["--rows", "16", "--precision", "base,lora,4bit"],
                                   ["--shape", "0.1b", "--rows", "2", "--k", "2", "--prompt-tokens", "4",
                                    "--new-tokens", "3", "--precision", "4bit"]],
                         ids=["tiny", "random shape"])
def test_bench(flags):
    import bench
    code, out, err = run(bench.main, *flags, "--repeat", 1)
    assert code == 0 and not err, err
    lines = json.loads(out.strip().split("\n")[-1])["lines"]
    assert {line["what"] for line in lines} == {"sampler", "update"}
    assert all(line["memory_gb"] > 0 for line in lines)
    assert all(line["ratio"] > 0 if line.get("zero") != 1 else "ratio" not in line for line in lines)
    assert all(line["tokens_per_s" if line["what"] == "sampler" else "update_tokens_per_s"] > 0 for line in lines)
    assert all(line["zero"] > 0 for line in lines if line.get("objective") == "passk")


# --------------------------------------------------------------------------------------------------------------- README

def readme():
    with open(os.path.join(ROOT, "README.md")) as file:
        return file.read()


def test_readme_commands_parse(monkeypatch):
    """Every command line of the README, and of the pages it leads to, is one that the parsers of the script and of its
    launcher accept."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser
    monkeypatch.setattr("support.flags.installed", lambda tracker: None)  # a dashboard's package need not be there
    parsers = {name: importlib.import_module(name).parse_args for name in ("evaluate", "bench", "make_tiny")}
    for name in ("words", "references", "page_tables", "architectures"):  # they take no flags
        parsers[name] = lambda argv: [].index(argv) if argv else None
    parsers["claims"] = lambda argv: argv == ["NAME"] or importlib.import_module("claims").parse_args(argv)
    parsers["table"] = lambda argv: importlib.import_module("table").parser().parse_args(argv)
    for name in ("ppo_passk", "bon_sft", "bon_rl", "cat_passk", "cat_majority", "cat_bon", "fit_verifier"):
        module = importlib.import_module(name)
        parsers[name] = lambda argv, module=module: module.check_flags(module.parser().parse_args(argv))
    text = "".join(map(references.source, [*references.pages(), "results/README.md", "results/speed.md"]))
    text = text.replace("\\\n", " ")
    text = re.sub(r"(?<!`)`(?!`)[^`]+`", lambda match: " ".join(match[0].split()), text)  # a span may go over two lines
    commands = re.findall(r"(python|torchrun|accelerate launch) ([^\n`|&;#>]*?\.py\b)([^\n`|&;#>]*)", text)
    found = set()
    for launcher, script, flags in commands:
        *before, script = script.split()
        if launcher == "torchrun":
            get_args_parser().parse_args([*before, script])
        elif launcher != "python":
            launch_command_parser().parse_args([*before, script])
        assert os.path.exists(os.path.join(ROOT, script)) and not (launcher == "python" and before), script
        found.add((launcher, script))
        if "--help" not in flags:
            parsers[os.path.basename(script)[:-3]](shlex.split(flags.replace("...", "")))
    assert len(commands) >= 30 and {launcher for launcher, _ in found} == {"python", "torchrun", "accelerate launch"}
    assert ("python", "results/table.py") in found and ("python", "models/make_tiny.py") in found


def test_a_run_prints_its_own_lines_only(tmp_path):
    """No load bars, notices or warnings of other libraries, in a process of its own."""
    done = subprocess.run(command("ppo_passk.py", *SMALL, "--steps", 1, "--bits", 4, "--out", tmp_path / "r"),
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    allowed = re.compile(r"\S*r: tiny|cpu \(|sampling and scoring: |prompts |to repeat it: |what the keys|the first "
                         r"samples, |  c\S+> -> |step 1/1|\s+pass@1|\s+distinct|before|after|\d+ s; everything")
    assert all(allowed.match(line) for line in done.stdout.strip().split("\n")), done.stdout
