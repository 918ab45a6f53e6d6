"""Rollouts by an engine: the same run as with the built-in sampler, and one sentence for what goes wrong."""
import json
import os
import time

import peft
import pytest
import torch
from conftest import load_policy
from engine_server import Engine, once
from test_common import shaken
from test_scripts import read_lines, run

import bon_rl
import bon_sft
import cat_bon
import cat_majority
import cat_passk
import common
import evaluate
import ppo_passk
from support import rollouts
from support.errors import UserError

FLAGS = ["--steps", 2, "--prompts", 4, "--samples", 4, "--eval-samples", 4, "--eval-problems", 4]
DRAW = "/v1/completions"
PAIRS = {"passk": (ppo_passk, "--k", 2), "bon_sft": (bon_sft, "--n", 4)}
WEIGHED = {"ppo_passk": (ppo_passk, "--k", 2), "mean": (ppo_passk, "--objective", "mean", "--k", 2),
           "bon_rl": (bon_rl, "--n", 4, "--entropy-coef", 0.1),
           "cat_passk": (cat_passk, "--n", 4), "cat_majority": (cat_majority, "--n", 4),
           "cat_bon": (cat_bon, "--n", 4)}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pictures; a server that is away comes back at once."""
    monkeypatch.setattr("support.run.plot_run", lambda *_: None)
    monkeypatch.setattr("support.plots.plot", lambda *_: None)
    nap = time.sleep
    monkeypatch.setattr("support.engine.time.sleep", lambda seconds: nap(seconds / 100))


@pytest.fixture(scope="module")
def tiny():
    with Engine() as engine:
        yield engine


@pytest.fixture
def engine(tiny):
    tiny.log.clear()
    tiny.faults.clear()
    tiny.adapters.clear()
    yield tiny


def of(model, url, folder, correction="weights", bound=3, patience=60):
    """A policy that a server draws for, begun."""
    policy = shaken(load_policy(model), scale=0.05)
    policy.rollouts = rollouts.Rollouts(rollouts.Server(url, patience), folder / "a", folder, correction, bound)
    policy.rollouts.begin(policy)
    return policy


def close(a, b):
    return a == pytest.approx(b, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_a_run_is_the_run_of_the_built_in_sampler(name, tmp_path):
    """The same samples, losses and evaluations; the engine keeps no adapter, the disk no folder of one."""
    script, *flags = PAIRS[name]
    with Engine("tiny_hasty" if script is bon_sft else "tiny") as engine:
        for out, more in (("own", []), ("engine", ["--rollouts", engine.url])):
            code, said, err = run(script.main, *FLAGS, *flags, "--out", tmp_path / out, *more)
            assert code == 0, err
        assert engine.adapters == {} and len(engine.asked("/v1/load_lora_adapter")) == 3  # before, after each step
        assert len({body["lora_path"] for body in engine.asked("/v1/load_lora_adapter")}) == 3
        assert len(engine.asked(DRAW)) >= 2 * 4
    assert not (tmp_path / "engine" / "rollouts").exists()
    assert "; the engine's: largest" in said and f"rollouts by {engine.url}" in said
    for own, found in zip(read_lines(tmp_path / "own"), read_lines(tmp_path / "engine"), strict=True):
        assert found.keys() - own.keys() == {"engine_gap", "engine_gap_max", "engine_cut"}
        assert found["engine_gap"] <= found["engine_gap_max"] < 1e-4 and found["engine_cut"] == 0
        for key in own.keys() - {"seconds", "tokens_per_s", "samples_per_s", "memory_gb", "diversity"}:
            assert close(found[key], own[key]), (key, found[key], own[key])
    own, found = (json.load(open(tmp_path / out / "result.json")) for out in ("own", "engine"))
    for row in ("before", "after"):
        for key in own[row]:
            assert close(found[row][key]["mean"], own[row][key]["mean"]), (row, key)


@pytest.mark.parametrize("name", WEIGHED)
def test_every_coefficient_has_the_weight_of_its_sample(name, tmp_path, monkeypatch):
    """Weights of 0 leave nothing to learn from, also of the KL."""
    script, *flags = WEIGHED[name]
    original = common.sample

    def weightless(*args):
        drawn = original(*args)
        drawn.weights *= 0
        return drawn
    for weighed in (True, False):
        out = tmp_path / str(weighed)
        code, _, err = run(script.main, *FLAGS[2:6], *flags, "--steps", 1, "--kl-coef", 0.1, "--eval-samples", 0,
                           "--out", out)
        assert code == 0, err
        line, = read_lines(out)
        assert (line["grad_norm"] > 0) == weighed and (line["loss"] != 0) == weighed
        monkeypatch.setattr(common, "sample", weightless)


# ----------------------------------------------------------------------------------------------- what is drawn, and how

PROMPTS = ["c7,3:21>", "c2,7,9:23>", "c1,2,3,4:9>"]


def encoded(policy):
    return [policy.encode(p) for p in PROMPTS]


def test_what_is_asked(engine, tmp_path, monkeypatch):
    """One request for each prompt, with its own seed and every field that sampling depends on, a few at once; the
    adapter once for each version of it."""
    policy = of("tiny", engine.url, tmp_path)
    most = []
    ask = policy.rollouts.server.ask

    def counted(path, *rest):
        most.append(1)
        try:
            return ask(path, *rest)
        finally:
            most.append(-1)
    monkeypatch.setattr(policy.rollouts.server, "ask", counted)
    monkeypatch.setattr("support.engine.PARALLEL", 2)
    prompts = encoded(policy) * 4
    seeds = [2 ** 63 - 1, *range(11)]
    drawn = common.sample(policy, prompts, 3, seeds, 0.8, 12)
    again = common.sample(policy, prompts, 3, seeds, 0.8, 12)
    asked = engine.asked(DRAW)
    assert max(sum(most[:i]) for i in range(len(most))) <= 2
    assert len(asked) == 24 and sorted(body["prompt"] for body in asked[:12]) == sorted(prompts)
    assert {body["seed"] for body in asked} == {2 ** 62 - 1, *range(11)}
    for body in asked:
        assert body["n"] == 3 and body["temperature"] == 0.8 and body["max_tokens"] == 12
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1, 0, 0, 1)
        assert body["presence_penalty"] == body["frequency_penalty"] == body["min_tokens"] == 0
        assert body["stop_token_ids"] == policy.stop and body["ignore_eos"] and body["return_token_ids"]
    assert torch.equal(drawn.tokens, again.tokens) and len(engine.asked("/v1/load_lora_adapter")) == 1
    shaken(policy, scale=0.06, seed=1)
    common.sample(policy, prompts[:1], 3, [1], 0.8, 12)
    loads = engine.asked("/v1/load_lora_adapter")
    assert len(loads) == 2 and list(engine.adapters) == [loads[1]["lora_name"]] != [loads[0]["lora_name"]]
    assert os.listdir(tmp_path / "a") == [loads[1]["lora_name"]]  # the one before is removed


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_are_those_of_the_built_in_sampler(temperature, engine, tmp_path):
    """Tokens, log-probabilities, entropies, lengths: those of common.sample by the policy itself, end-of-sequence token
    included, of completions that ended and of those that were cut."""
    policy = of("tiny", engine.url, tmp_path)
    what = encoded(policy), 6, [2 ** 62 - 1, 5, 6], temperature, 6
    found = common.sample(policy, *what)
    policy.rollouts = None
    own = common.sample(policy, *what)
    assert found.lists() == own.lists()
    last = [row[-1] in policy.stop for rows in own.lists() for row in rows]
    assert any(last) and not all(last)
    assert torch.equal(found.lengths, own.lengths)
    assert torch.allclose(found.logps, own.logps, atol=1e-4)
    assert torch.allclose(found.entropies, own.entropies, atol=1e-3)
    assert torch.allclose(found.weights, own.weights, atol=1e-3) and (own.weights == 1).all() and own.notes == {}


def test_weights(tmp_path):
    """pi / q of each sequence, by the engine's own answers in bfloat16, cut at the bound; 1 without a correction."""
    with Engine("tiny", bits=16) as engine:
        policy = of("tiny", engine.url, tmp_path)
        prompts = encoded(policy) * 3
        for correction, bound in (("weights", 100), ("exact", 1.05), ("none", 3)):
            policy.rollouts.correction = correction
            policy.rollouts.bound = bound
            drawn = common.sample(policy, prompts, 6, range(9), 1.0, 12)
            q = [[engine.given[tuple(x), tuple(row)] for row in rows] for x, rows in zip(prompts, drawn.lists())]
            ratio = (drawn.logps.double().sum(-1) - torch.tensor(q)).exp()
            wanted = torch.ones_like(ratio) if correction == "none" else ratio.clamp(max=bound)
            assert torch.allclose(drawn.weights.double(), wanted, atol=0.01)  # equal rows of other batches, nearly so
            assert ratio.std() > 0.005 and 1e-3 < drawn.notes["engine_gap"] < drawn.notes["engine_gap_max"] < 1
            assert (drawn.notes["engine_cut"] > 0) == (bound == 1.05)


def test_exact_is_what_the_step_trains_with(engine, tmp_path, monkeypatch):
    """By default for passk with loo; with other estimators it is refused, and w alone the default."""
    seen = []
    original = ppo_passk.passk_reweighted
    monkeypatch.setattr(ppo_passk, "passk_reweighted", lambda *args: seen.append(args) or original(*args))
    flags = [*FLAGS[2:], "--steps", 1, "--eval-samples", 0, "--k", 2, "--rollouts", engine.url]
    code, _, err = run(ppo_passk.main, *flags, "--out", tmp_path / "a")
    assert code == 0 and len(seen) == 1, err
    assert json.load(open(tmp_path / "a" / "args.json"))["flags"]["rollouts_correction"] == "exact"
    code, _, err = run(ppo_passk.main, *flags, "--out", tmp_path / "b", "--estimator", "plain")
    assert code == 0 and len(seen) == 1, err
    assert json.load(open(tmp_path / "b" / "args.json"))["flags"]["rollouts_correction"] == "weights"
    code, _, err = run(ppo_passk.main, *flags, "--out", tmp_path / "c", "--estimator", "plain",
                       "--rollouts-correction", "exact")
    assert code == 2 and "exact needs --objective passk and --estimator loo" in err


def test_evaluation(engine, tmp_path):
    """The same figures as by the built-in sampler, of a run and of its base, whose adapters do not stay."""
    flags = [*FLAGS, "--eval-samples", 0, "--k", 2]
    assert run(ppo_passk.main, *flags, "--out", tmp_path / "r", "--lr", 0.02)[0] == 0
    found = {}
    for out, more in (("own", []), ("engine", ["--rollouts", engine.url, "--rollouts-dir", tmp_path / "d"])):
        code, _, err = run(evaluate.main, "tiny", tmp_path / "r", "--problems", 4, "--samples", 4, "--k", "1,4",
                           "--temperature", 0.7, "--out", tmp_path / out, *more)
        assert code == 0, err
        found[out] = json.load(open(tmp_path / out / "result.json"))["results"]
    for row in found["own"]:
        for key, cell in found["own"][row].items():
            assert close(found["engine"][row][key]["mean"], cell["mean"]), (row, key)
    assert engine.adapters == {} and not (tmp_path / "d").exists()
    assert len(engine.asked("/v1/load_lora_adapter")) == 2


# ---------------------------------------------------------------------------------------------- never wrong in silence

def sentence(call, *words):
    with pytest.raises(UserError) as found:
        call()
    said = str(found.value)
    assert "\n" not in said and all(word in said for word in words), said


WRONG = {"another base": ({"model": "tiny_hasty"}, 1.0), "raw": ({"raw": True}, 0.5), "top-k": ({"top": 2}, 1.0),
         "raw and top-k": ({"raw": True, "top": 2}, 1.0), "a hotter one": ({"raw": True}, 1.5)}


@pytest.mark.parametrize("name", WRONG)
def test_an_engine_that_draws_otherwise(name, tmp_path):
    options, temperature = WRONG[name]
    with Engine(**options) as engine:
        policy = of("tiny", engine.url, tmp_path)
        sentence(lambda: common.sample(policy, encoded(policy) * 4, 16, range(12), temperature, 12),
                 "--logprobs-mode processed_logprobs", "--generation-config vllm", "serve the base model of this run")


@pytest.mark.parametrize("bits", [16, 4])
def test_an_engine_of_another_precision_is_no_fault(bits, tmp_path):
    with Engine("tiny", bits=bits) as engine:
        policy = of("tiny", engine.url, tmp_path)
        common.sample(policy, encoded(policy) * 3, 8, range(9), 0.7, 12)


def changed(**fields):
    """An answer with other fields in its last choice."""
    def change(value):
        value["choices"][0] |= fields
        return value
    return change


def fewer(value):
    return {"choices": value["choices"][1:]}


ANSWERS = {"too few": (fewer, "2 completions instead of 3"), "no JSON": (lambda _: "<html>", "without token ids"),
           "no ids": (changed(token_ids=None), "without token ids"),
           "empty": (changed(token_ids=[], logprobs={"token_logprobs": []}), "without token ids"),
           "aborted": (changed(finish_reason="abort"), "finish_reason 'abort'"),
           "cut early": (changed(finish_reason="length", token_ids=[5], logprobs={"token_logprobs": [-1]}), "'length'"),
           "no end": (changed(finish_reason="stop", token_ids=[5], logprobs={"token_logprobs": [-1]}), "'stop'"),
           "a logp too few": (changed(logprobs={"token_logprobs": []}), "a completion of"),
           "other vocabulary": (changed(finish_reason="length", token_ids=[999] * 12,
                                        logprobs={"token_logprobs": [-1] * 12}), "serve the base model of this run"),
           "an error": (500, "HTTP 500: a fault"), "bad request": (400, "HTTP 400: a fault")}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_wrong_answer(name, engine, tmp_path):
    """Once: asked again, unless it is the request that is wrong. For ever: one sentence."""
    how, words = ANSWERS[name]
    policy = of("tiny", engine.url, tmp_path)
    what = encoded(policy), 3, range(3), 1.0, 12
    wanted = common.sample(policy, *what)

    def fault():
        return once(how, words.split(": ")[-1]) if isinstance(how, int) else once(change=how)
    if how != 400:
        engine.faults.append(fault())
        assert torch.equal(common.sample(policy, *what).tokens, wanted.tokens)
    engine.faults += [fault() for _ in range(99)]
    sentence(lambda: common.sample(policy, *what), f"--rollouts {engine.url}: no samples", words, "--resume")
    asked = sum(body["model"] in policy.rollouts.names for body in engine.asked(DRAW))  # threads of others may go on
    assert asked < 20 and (how != 400 or asked < 9)


def test_a_server_that_comes_back(engine, tmp_path, capsys):
    """It hangs up, is busy, is started again and knows no adapter: the same draws, and one line that says so."""
    policy = of("tiny", engine.url, tmp_path)
    what = encoded(policy), 3, range(3), 1.0, 12
    wanted = common.sample(policy, *what).tokens
    for faults in ([once(), once()], [once(503), once(429)]):
        engine.faults += faults
        assert torch.equal(common.sample(policy, *what).tokens, wanted)
    assert 1 <= capsys.readouterr().out.count("retrying for 60 s") <= 4
    engine.restart()
    assert torch.equal(common.sample(policy, *what).tokens, wanted)
    assert list(engine.adapters) == policy.rollouts.names
    shaken(policy, scale=0.06, seed=1)
    engine.faults.append(once(path="/v1/load_lora_adapter"))
    engine.faults.append(once(400, "has already been loaded", path="/v1/load_lora_adapter"))
    engine.faults.append(once(500, path="/v1/unload_lora_adapter"))
    common.sample(policy, *what)
    assert [*engine.adapters][-1:] == policy.rollouts.names


def test_a_server_that_is_slow(engine, tmp_path, monkeypatch):
    policy = of("tiny", engine.url, tmp_path, patience=0.3)
    engine.faults += [once(wait=0.5)]
    sentence(lambda: common.sample(policy, encoded(policy), 3, range(3), 1.0, 12), "no answer to /v1/completions",
             "timed out", "--rollouts-timeout", "--resume")


def test_a_server_that_goes_away_and_a_resume(tmp_path, monkeypatch):
    """The last checkpoint stays whole; when the server is back, --resume draws the same step again, from another one
    too."""
    flags = [*FLAGS[2:], "--steps", 3, "--save-every", 1, "--k", 2, "--eval-samples", 0]
    with Engine() as engine:
        code, _, err = run(ppo_passk.main, *flags, "--rollouts", engine.url, "--out", tmp_path / "whole")
        assert code == 0, err

    def gone(handler, path, body):
        if path == DRAW and len(engine.asked("/v1/load_lora_adapter")) == 2:
            handler.hang_up()
            return "answered"
    with Engine() as engine:
        engine.faults += [gone] * 99
        code, _, err = run(ppo_passk.main, *flags, "--rollouts", engine.url, "--rollouts-timeout", 3, "--out",
                           tmp_path / "r")
        assert code == 2 and "no answer to /v1/completions" in err and err.count("\n") == 1, err
        assert engine.adapters == {}
    assert len(read_lines(tmp_path / "r")) == 1
    code, _, err = run(ppo_passk.main, "--out", tmp_path / "r", "--resume")
    assert code == 2 and "cannot list the models of a vLLM server" in err and err.count("\n") == 1, err
    with Engine() as engine:
        code, _, err = run(ppo_passk.main, "--out", tmp_path / "r", "--resume", "--rollouts", engine.url)
        assert code == 0, err
    for one, other in zip(read_lines(tmp_path / "whole"), read_lines(tmp_path / "r"), strict=True):
        for key in ("loss", "reward", "length", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key


def test_adapters_of_a_killed_run_are_unloaded(engine, tmp_path):
    """Those of its own name; others are left alone."""
    killed = of("tiny", engine.url, tmp_path)
    other = of("tiny", engine.url, tmp_path / "another run")
    rollouts.OPEN.clear()
    left = killed.rollouts.names[0]
    policy = of("tiny", engine.url, tmp_path)
    assert {*engine.adapters} == {*policy.rollouts.names, *other.rollouts.names}
    assert left not in os.listdir(tmp_path / "a")
    policy.rollouts.close()
    assert [*engine.adapters] == other.rollouts.names and not (tmp_path / "a").exists()


def test_a_full_disk(engine, tmp_path, monkeypatch):
    """One sentence, and the last checkpoint whole."""
    save = rollouts.save_adapter
    flags = [*FLAGS[2:], "--steps", 3, "--save-every", 1, "--k", 2, "--eval-samples", 0, "--rollouts", engine.url]

    def full(model, where):
        if len(engine.asked("/v1/load_lora_adapter")) == 2:
            with rollouts.writing(where):
                raise OSError(28, "No space left on device")
        save(model, where)
    monkeypatch.setattr(rollouts, "save_adapter", full)
    code, _, err = run(ppo_passk.main, *flags, "--out", tmp_path / "r")
    assert code == 2 and "No space left on device" in err and "--resume" in err and err.count("\n") == 1, err
    assert engine.adapters == {} and not (tmp_path / "r" / "rollouts").exists()
    monkeypatch.setattr(rollouts, "save_adapter", save)
    code, _, err = run(ppo_passk.main, "--out", tmp_path / "r", "--resume")
    assert code == 0 and len(read_lines(tmp_path / "r")) == 3, err


REFUSED = {"rank": ({"r": 32}, "LoRA rank 32 is greater than max_lora_rank"), "dora": ({"use_dora": True}, "load DoRA"),
           "bias": ({"lora_bias": True}, "load biases"), "modules": ({"modules_to_save": ["norm"]}, "whole modules")}


@pytest.mark.parametrize("name", REFUSED)
def test_adapters_that_vllm_does_not_load(name, engine, tmp_path):
    """One sentence before the first step, and no folder is left."""
    more, words = REFUSED[name]
    lm, tokenizer, _ = common.load.load_base("tiny", 32)
    config = peft.LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], **more})
    peft.get_peft_model(lm, config).save_pretrained(tmp_path / "adapter")
    code, _, err = run(ppo_passk.main, *FLAGS, "--k", 2, "--adapter", tmp_path / "adapter", "--rollouts", engine.url,
                       "--out", tmp_path / "r")
    assert code == 2 and words in err and err.count("\n") == 1, err
    assert not (tmp_path / "r").exists() and engine.asked(DRAW) == [] and engine.adapters == {}


FLAG_ERRORS = [(["--rollouts-bound", 2], "--rollouts-bound has no effect without --rollouts"),
               (["--rollouts", "localhost:8000"], "give the address of a server"),
               (["--rollouts", "http://127.0.0.1:1"], "cannot list the models of a vLLM server"),
               (["--rollouts", "URL", "--rollouts-timeout", 0], "--rollouts-timeout must be positive"),
               (["--rollouts", "URL", "--rollouts-bound", 0.5], "--rollouts-bound must be at least 1"),
               (["--rollouts", "URL", "--rollouts-correction", "none", "--rollouts-bound", 2], "with --rollouts-corr"),
               (["--rollouts", "URL", "--temperature", 0.001], "with --rollouts it must be at least 0.01"),
               (["--rollouts", "URL", "--max-new-tokens", 100], "with a larger --max-model-len")]


@pytest.mark.parametrize("flags,words", FLAG_ERRORS)
def test_flags(flags, words, engine, tmp_path):
    flags = [engine.url if flag == "URL" else flag for flag in flags]
    engine.longest = 64
    try:
        code, _, err = run(ppo_passk.main, *FLAGS, "--k", 2, *flags, "--out", tmp_path / "r")
    finally:
        engine.longest = 512
    assert code == 2 and words in err and err.count("\n") == 1, err
    assert not (tmp_path / "r").exists()


def test_a_server_without_adapters_at_run_time(engine, tmp_path):
    engine.faults.append(once(404, "Not Found", path="/v1/load_lora_adapter"))
    sentence(lambda: of("tiny", engine.url, tmp_path), "does not load the adapter",
             "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", "--rollouts-dir")
