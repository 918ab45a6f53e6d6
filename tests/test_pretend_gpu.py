"""The path of a GPU on a CPU that obeys CUDA's rules about devices (pretend_gpu.py): no tensor on the wrong one."""
import importlib
import json
import math
import types

import architectures
import bitsandbytes  # it, peft and transformers look for CUDA when they are imported: before one is pretended
import peft
import pytest
import torch
import transformers
from conftest import load_policy
from pretend_gpu import PretendGPU
from test_common import folder_of, shaken  # noqa: F401, a fixture
from test_scripts import read_lines, run, untimed

import bench
import common
import evaluate
import fit_verifier
import ppo_passk
from fast import captured
from fast.choose import Fast
from support import gpu_report, load, measure, processes
from support.errors import UserError

SCRIPTS = {"ppo_passk": ["--k", 4], "bon_sft": ["--n", 4], "bon_rl": ["--n", 4],
           "cat_passk sft": ["--n", 4, "--mode", "sft"], "cat_passk": ["--n", 4, "--kl-coef", 0.01],
           "cat_majority sft": ["--n", 4, "--mode", "sft"], "cat_majority": ["--n", 4], "cat_bon": ["--n", 4]}
SMALL = ["--steps", 2, "--prompts", 3, "--max-new-tokens", 8, "--eval-samples", 4, "--eval-problems", 3]
for flags in SCRIPTS.values():
    flags += [] if "sft" in flags else ["--samples", 4]


@pytest.fixture(autouse=True, scope="module")
def no_picture():
    """curves.png takes a seventh of the time of these runs and knows of no device; it is drawn in test_house.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.run.plot_run", lambda folder, result: None)
        yield


def test_the_device_obeys():
    """What CUDA refuses is refused; what makes the host wait is counted; without it nothing is left of the device."""
    with PretendGPU() as gpu:
        x = torch.ones(3, device="cuda")
        assert x.is_cuda and (x * 2).device.type == "cuda" and x.cpu().device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError):
            x.numpy()
        with gpu.phase("wait"):
            x.sum().item()
            x[x > 0]
            torch.tensor([1.0]).to("cuda")
        y = torch.ones(2, requires_grad=True)
        (y.to("cuda") * 3).sum().backward()
        assert not y.grad.is_cuda
    assert gpu.syncs["wait"].total() == 2 and gpu.copies["wait"].total() == 1
    assert not torch.cuda.is_available() and not x.is_cuda


def test_graphs():
    """What is captured has no effect, and does the same to the same memory at every replay; what cannot be captured is
    refused, and leaves no trace either."""
    with PretendGPU() as gpu:
        x, total, host = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda"), [1]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 2
            y[1:] += 1
            total += y * host[0]
        assert total.tolist() == [0, 0, 0]
        host[0] = 100  # the graph has the value that it was captured with
        with gpu.phase("replay"):
            graph.replay()
        x += 1
        graph.replay()
        assert total.tolist() == [2 + 4, 3 + 5, 3 + 5] and y.tolist() == [4, 5, 5]
        assert gpu.kernels["replay"].total() == 1
        for wrong in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.cpu(), lambda: torch.ones(1).to("cuda")):
            with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
                x += 1
                wrong()
        assert x.tolist() == [2, 2, 2]


def drawn_both_ways(policy, monkeypatch, temperature=1.0, steps=26):
    """Samples captured, in segments of 8 tokens, and by the plain loop, some of which end early."""
    monkeypatch.setattr(captured, "SEGMENT", 8)
    monkeypatch.setattr(captured, "EVERY", 4)
    size = policy.lm.config.vocab_size
    policy.stop = list(range(size - size // 12 - 1, size))
    prompts = [[3, 4, 5], [3, 4, 5, 6, 7, 8, 9], [5] * 20]
    found = common.sample(policy, prompts, 6, [1, 2, 3], temperature, steps)
    policy.fast.captured = False
    plain = common.sample(policy, prompts, 6, [1, 2, 3], temperature, steps)
    policy.fast.captured = True
    return found, plain


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2", "gemma"])
def test_captured_and_plain_draw_the_same(folder_of, kind, monkeypatch):
    """In float32, on five architectures, with rows that leave at the ends of segments and within."""
    with PretendGPU() as gpu:
        policy = shaken(load_policy(folder_of(kind), bits=32), scale=0.05)
        assert "decoded in CUDA graphs, adapter computed in two kernels" in policy.note
        found, plain = drawn_both_ways(policy, monkeypatch, temperature=0.8)
        assert found.lists() == plain.lists() and len({n for row in plain.lengths.tolist() for n in row}) > 5
        for a, b in ((found.logps, plain.logps), (found.entropies, plain.entropies)):
            assert (a - b).abs().max().item() < 1e-4
        with policy.reference():  # the adapter off
            found, plain = drawn_both_ways(policy, monkeypatch)
        assert found.lists() == plain.lists()
    assert not gpu.mismatches


def in_float32(policy):
    """The policy with the same weights in float32, those of a 4-bit base too, scored by the plain way."""
    for module in policy.lm.modules():
        module.compute_dtype = torch.float32
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor.data = tensor.data.float() if tensor.is_floating_point() else tensor.data
    policy.fast = None
    return policy


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2", "gemma"])
def test_captured_is_as_exact_as_plain(folder_of, kind, bits, monkeypatch):
    """In bfloat16 and 4 bits another order of sums draws another token now and then. The log-probabilities are as near
    as those of the plain loop to what the weights give in float32."""
    with PretendGPU() as gpu:
        policy = shaken(load_policy(folder_of(kind), bits=bits), scale=0.05)
        how = {16: "adapter computed in two kernels", 4: "weights de-quantised for rollouts"}[bits]
        assert f"decoded in CUDA graphs, {how}" in policy.note, policy.note
        both, off = drawn_both_ways(policy, monkeypatch), []
        prompts = [x for x in ([3, 4, 5], [3, 4, 5, 6, 7, 8, 9], [5] * 20) for _ in range(6)]
        in_float32(policy)
        for drawn in both:
            true = common.sequence_logps(policy, prompts, [y for rows in drawn.lists() for y in rows])
            gap = true - drawn.logps.flatten(0, 1).double().sum(-1).cpu()
            off.append((gap.abs() / drawn.lengths.flatten().cpu()).mean().item())
    assert 0 < off[0] < 2 * off[1] and not gpu.mismatches, off  # of 18 samples: it moves by a quarter


def test_memory_for_dequantised_weights(monkeypatch):
    """Where there is none, a token is decoded in 4 bits, captured too."""
    monkeypatch.setattr(load, "free_memory", lambda _: 2 ** 18)
    with PretendGPU():
        policy = load_policy("tiny", bits=4)
        assert "decoded in CUDA graphs, weights de-quantised for each token" in policy.note
        monkeypatch.undo()
        found, plain = drawn_both_ways(policy, monkeypatch)
        assert found.lists() == plain.lists()


def test_what_cannot_be_captured_is_decoded_kernel_by_kernel(folder_of, monkeypatch):
    """And load_policy says so: a device without graphs, a model that looks at values, a sliding window, 8 bits."""
    looks = transformers.LlamaModel.forward

    def forward(self, *args, **kwargs):
        kwargs["inputs_embeds"] = self.embed_tokens(kwargs.pop("input_ids"))
        assert kwargs["inputs_embeds"].sum().item() < 1e9
        return looks(self, *args, **kwargs)

    def refused():
        raise RuntimeError("this device has no graphs\nand more")
    drawn = []
    with PretendGPU() as gpu:
        with monkeypatch.context() as patch:
            patch.setattr(transformers.LlamaModel, "forward", forward)
            policy = load_policy(folder_of("llama"), bits=32)
            assert "kernel by kernel (LlamaForCausalLM captured: called a synchronizing CUDA" in policy.note
            drawn.append(common.sample(policy, [[3, 4]], 4, [1], max_new_tokens=9).lists())
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "CUDAGraph", refused)
            policy = load_policy(folder_of("llama"), bits=32)
            assert "kernel by kernel (LlamaForCausalLM captured: this device has no graphs)" in policy.note
            drawn.append(common.sample(policy, [[3, 4]], 4, [1], max_new_tokens=9).lists())
        policy = load_policy(folder_of("llama"), bits=32)
        drawn.append(common.sample(policy, [[3, 4]], 4, [1], max_new_tokens=9).lists())
        assert drawn[0] == drawn[1] == drawn[2]
        assert "its cache does more than append" in load_policy(folder_of("gemma2"), bits=32).note
        assert "kernel by kernel (8 bits)" in load_policy("tiny", bits=8).note
    assert not gpu.mismatches


@pytest.mark.parametrize("bits", [4, 16, 32])
def test_a_graph_that_computes_something_else_is_not_taken(bits, monkeypatch):
    """What it draws is scored: it shows in bfloat16, too, where other tokens than the plain loop's may be right."""
    step = captured.Decoder.step

    def wrong(self):
        step(self)
        self.logits.mul_(0.5)
    monkeypatch.setattr(captured.Decoder, "step", wrong)
    with PretendGPU():
        policy = load_policy("tiny", bits=bits)
    assert "kernel by kernel (LlamaForCausalLM captured: different log-probabilities)" in policy.note


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_sampler_and_scorer(bits):
    """In every precision the sampler and the scorer agree, and every LoRA tensor gets a gradient on the device."""
    with PretendGPU() as gpu:
        policy = load_policy("tiny", bits=bits)
        assert policy.device.type == "cuda" and "Pretend" in policy.note
        prompts = [policy.encode(x) for x in ("c7,3:21>", "c2,7,9:23>", "c1,2,3,4:9>")]
        drawn = common.sample(policy, prompts, 8, range(3), max_new_tokens=8)
        ys = [y for rows in drawn.lists() for y in rows]
        for index, logps, _ in common.score(policy, [x for x in prompts for _ in range(8)], ys):
            old = drawn.logps.flatten(0, 1).sum(-1)[index.to("cuda")]
            assert (logps.sum(-1) - old).abs().max().item() < (1e-3 if bits == 32 else 0.5)
            logps.sum().backward()
        assert all(p.grad is not None and p.grad.is_cuda for p in policy.parameters())
    assert not gpu.mismatches


@pytest.mark.parametrize("bits", [4, 16, 32])
@pytest.mark.parametrize("kind,how", [
    ("qwen3_5_text", "plain (Qwen3_5ForCausalLM has recurrent layers)"),
    ("mamba2", "plain (Mamba2ForCausalLM has no cache that can be shared"),
    ("gpt_oss", "decoded kernel by kernel (GptOssForCausalLM captured: its cache does more than append"),
    ("qwen3_moe", "samples of a prompt share its keys and values, decoded ")])
def test_states_and_experts(kind, how, bits, tmp_path):
    """A hybrid, one without attention and fused experts; what cannot be captured says so."""
    folder = architectures.save(tmp_path, architectures.config_of(kind), std=0.05)
    with PretendGPU() as gpu:
        policy = shaken(load_policy(folder, bits=bits), scale=0.05)
        assert how in policy.note and "stay as they are" in policy.note
        prompts = [[3, 4, 5], [3, 4, 5, 6, 7, 8, 9]]
        drawn = common.sample(policy, prompts, 3, [1, 2], max_new_tokens=9)
        ys = [y for rows in drawn.lists() for y in rows]
        for index, logps, _ in common.score(policy, [x for x in prompts for _ in range(3)], ys):
            old = drawn.logps.flatten(0, 1).sum(-1)[index.to("cuda")]
            assert (logps.sum(-1) - old).abs().mean().item() < (1e-3 if bits == 32 else 0.5)
            logps.sum().backward()
        assert all(p.grad is not None and p.grad.is_cuda for p in policy.parameters())
    assert not gpu.mismatches


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("graphs", [True, False])
def test_the_host_hardly_waits(bits, graphs):
    """In the sampler, at most once per 8 tokens and 8 times a call; in the scorer, per micro-batch."""
    with PretendGPU() as gpu:
        policy = load_policy("tiny", bits=bits)
        policy.fast.captured = graphs
        policy.stop = []
        prompts = [policy.encode(x) for x in ("c7,3:21>", "c2,7,9:23>", "c1,2,3,4:9>")]
        with gpu.phase("sample"):
            drawn = common.sample(policy, prompts, 8, range(3), max_new_tokens=32)
        ys = [y for rows in drawn.lists() for y in rows]
        with gpu.phase("score"):
            for _, logps, _ in common.score(policy, [x for x in prompts for _ in range(8)], ys):
                logps.sum().backward()
    assert not graphs or gpu.kernels["sample"].total() < 32 * 30  # two tokens and the prompts launched, 30 replayed
    assert gpu.syncs["sample"].total() <= 32 // 8 + 8 and gpu.syncs["score"].total() <= 3, gpu.report()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no more"), RuntimeError("CUDA error: out of memory"),
                                   RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")], ids=range(3))
def test_rows_are_halved_where_memory_ends(monkeypatch, error):
    """Until they fit, with the same draws; one row that does not is the end, and so is another error."""
    plain, sizes = Fast.decode, []

    def most(rows):
        def loop(fast, policy, prompts, u, temperature):
            sizes.append(u.shape[0] * u.shape[1])
            if sizes[-1] > rows:
                raise error
            return plain(fast, policy, prompts, u, temperature)
        return loop
    with PretendGPU():
        policy = load_policy("tiny", bits=32)
        prompts = [policy.encode(x) for x in ("c7,3:21>", "c2,7,9:23>", "c1,2,3,4:9>")]
        whole = common.sample(policy, prompts, 5, range(3), max_new_tokens=8)
        monkeypatch.setattr(Fast, "decode", most(3))
        parts = common.sample(policy, prompts, 5, range(3), max_new_tokens=8)
        assert parts.lists() == whole.lists() and (parts.logps - whole.logps).abs().max().item() < 1e-5
        assert sizes == [15, 5, 2, 3, 10, 5, 2, 3, 5, 2, 3]
        monkeypatch.setattr(Fast, "decode", most(0))
        with pytest.raises(type(error)):
            common.sample(policy, prompts, 5, range(3), max_new_tokens=8)

        def wrong(*_):
            sizes.append("wrong")
            raise RuntimeError("shapes differ")
        monkeypatch.setattr(Fast, "decode", wrong)
        with pytest.raises(RuntimeError, match="shapes differ"):
            common.sample(policy, prompts, 5, range(3), max_new_tokens=8)
        assert sizes.count("wrong") == 1


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2", "opt"])
def test_a_row_longer_than_a_micro_batch(folder_of, kind):
    """Its layers are computed again in the backward pass, with the same gradient; the others' are not."""
    with PretendGPU() as gpu:
        policy = shaken(load_policy(folder_of(kind), bits=32))
        x, y = [[3, 4, 5], [6]], [[7, 8, 9, 10] * 6, [3, 0]]
        kernels, gradients = [], []
        for most in (1000, 20):
            policy.model.zero_grad()
            with gpu.phase(most):
                for _, logps, _ in common.score(policy, x, y, 1.0, most):
                    logps.sum().backward()
            kernels.append(gpu.kernels[most]["addmm"] + gpu.kernels[most]["mm"])
            gradients.append([p.grad.clone() for p in policy.parameters()])
        assert all((a - b).abs().max().item() < 1e-3 * (1 + a.abs().max().item()) for a, b in zip(*gradients))
        assert kernels[1] > kernels[0] and not any("forward" in vars(m) for m in policy.lm.modules())


def test_a_gpu_without_bfloat16(monkeypatch):
    """It trains a 4-bit base in float32, and says that it cannot do 16 bits."""
    with PretendGPU():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        with pytest.raises(UserError, match="--bits 16 needs bfloat16, which Pretend H100 does not support"):
            load_policy("tiny", bits=16)
        assert "8-bit base (as asked), compute float32, because this GPU does not" in load_policy("tiny", bits=8).note
        monkeypatch.undo()


def test_a_run_on_a_gpu_without_bfloat16(tmp_path, monkeypatch):
    """As on a T4: in 4 bits by default, all that is not quantised in float32, captured too; and it says so."""
    with PretendGPU() as gpu:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        code, out, error = run(ppo_passk.main, *SCRIPTS["ppo_passk"], *SMALL, "--eval-samples", 0, "--out",
                               tmp_path / "run")
        assert measure.whole_bits() == 32
        monkeypatch.undo()
    assert code == 0 and not gpu.mismatches, error
    assert "4-bit base (default on a GPU), compute float32, because this GPU does not support bfloat16" in out
    assert "in CUDA graphs, weights de-quantised for rollouts" in out
    lines = read_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2] and all(math.isfinite(line["loss"]) for line in lines)


def test_the_cpu_of_a_machine_with_a_gpu(tmp_path):
    """--device cpu: nothing touches the card, and the numbers are those of a machine without one."""
    training = [*SCRIPTS["ppo_passk"], *SMALL, "--eval-samples", 0]
    assert run(ppo_passk.main, *training, "--out", tmp_path / "without")[0] == 0
    fitting = ["--train-problems", 4, "--eval-problems", 2, "--epochs", 1, "--samples", 2]
    judging = ["tiny", "--problems", 3, "--samples", 2, "--k", 1]
    words = "cpu (1 thread(s)), 32-bit base"
    with PretendGPU() as gpu:
        for main, flags, said in ((ppo_passk.main, [*training, "--out", tmp_path / "with"], words),
                                  (evaluate.main, [*judging, "--out", tmp_path / "e"], words),
                                  (fit_verifier.main, [*fitting, "--out", tmp_path / "v"], words)):
            code, out, error = run(main, *flags, "--device", "cpu")
            assert code == 0 and said in out and "Pretend" not in out, error
    assert not gpu.tags and not any(gpu.kernels.values())
    assert untimed(read_lines(tmp_path / "with")) == untimed(read_lines(tmp_path / "without"))
    assert (tmp_path / "with" / "adapter" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "without" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_which_gpu(monkeypatch):
    """The one asked for; of several processes each its own; one sentence for what there is not."""
    chosen = []
    with PretendGPU():
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        assert [load.device_of(asked).index for asked in (None, "cuda", "cuda:0")] == [0, 0, 0]
        refused("cuda:1", "there is no GPU 1, torch sees 1, counted from 0")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert "cuda:1 (Pretend H100), 4-bit" in load.load_base("tiny", 4, "cuda:1")[2]
        assert "cuda (Pretend H100), 4-bit" in load.load_base("tiny")[2]
        assert chosen == [torch.device("cuda", 1), torch.device("cuda", 0)]
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr(processes, "WORLD", 2)
        assert [load.device_of(asked) for asked in (None, "cuda", "cpu")] == [
            torch.device("cuda", 1), torch.device("cuda", 1), torch.device("cpu")]
        refused("cuda:0", "would put all 2 processes on one GPU: use cuda, which gives each process another one")
        monkeypatch.setenv("LOCAL_RANK", "2")
        refused(None, "start no more processes than there are GPUs, or use cpu")
        monkeypatch.undo()


def refused(asked, words):
    with pytest.raises(UserError) as error:
        load.device_of(asked)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_16_bits_are_not_offered_where_they_do_not_fit(monkeypatch):
    monkeypatch.setattr(load, "free_memory", lambda _: 2 ** 20)
    with PretendGPU():
        assert "4-bit base (default on a GPU)," in load_policy("tiny").note


ONE_MODE = [name for name in SCRIPTS if " " not in name]


@pytest.mark.parametrize("name,bits", [(name, bits) for i, name in enumerate(ONE_MODE)
                                       for j, bits in enumerate((8, 16, 32)) if (i + j) % 3])
def test_every_precision_of_each_script(name, bits, tmp_path):
    """Two steps and no evaluation; a script in two of three precisions, which are loaded and scored by shared code."""
    module = importlib.import_module(name.split()[0])
    with PretendGPU() as gpu:
        code, printed, error = run(module.main, *SCRIPTS[name], *SMALL, "--bits", bits, "--eval-samples", 0, "--out",
                                   tmp_path / "run")
    assert code == 0 and f"{bits}-bit base (as asked)" in printed, error
    assert not gpu.mismatches and len(read_lines(tmp_path / "run")) == 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_steps_of_each_script(name, tmp_path):
    """A run with its evaluations, in the default precision of a GPU."""
    module, out = importlib.import_module(name.split()[0]), tmp_path / "run"
    with PretendGPU() as gpu:
        code, printed, error = run(module.main, *SCRIPTS[name], *SMALL, "--out", out)
        assert code == 0 and "cuda (Pretend H100), 4-bit base (default on a GPU; it would fit with" in printed, error
    assert not gpu.mismatches and len(read_lines(out)) == 2
    args, result = (json.loads((out / f"{part}.json").read_text()) for part in ("args", "result"))
    assert args["flags"]["bits"] == 4 and {"before", "after"} <= result.keys()


def test_gpu_report(tmp_path, monkeypatch):
    """Its parts, in this process, on a model of a few layers; what was written when a part ends is a whole report."""
    args = bench.parse_args(["--gpu-report", str(tmp_path), "--rows", "8,16", "--k", "4", "--prompt-tokens", "6",
                             "--new-tokens", "10", "--vocabulary", "512"])
    gpu_report.prepare(args)
    gpu_report.record(str(tmp_path), "start", device="Pretend H100", date="today", command="this", commit=None,
                      versions={"torch": torch.__version__})
    monkeypatch.setitem(measure.SHAPES, "7b", measure.SHAPES["micro"])  # with what a card of 24 GB does
    monkeypatch.setattr(gpu_report, "rates", lambda: (1e9, 1e9))
    monkeypatch.setattr(gpu_report.small_card, "__defaults__", (24e9, 12))
    with PretendGPU() as gpu:
        gpu_report.shape_part(str(tmp_path), "7b", args)
    assert not gpu.mismatches
    gpu_report.command_part(str(tmp_path), "tests", ["-c", "print('3 passed'); raise SystemExit(1)"], 60)
    gpu_report.command_part(str(tmp_path), "slow", ["-c", "import time; time.sleep(60)"], 1)
    lines = gpu_report.read(tmp_path)
    assert not any("note" in line for line in lines)  # what failed
    found = [line for line in lines if line.get("what") == "sampler"]
    assert [line["rows"] for line in found] == [8, 16] * 2
    assert all(line[name] > 0 for line in found for name in ("tokens_per_s", "bound", "of_bound", "peak_gb"))
    rivals = [(line["rows"], line["who"]) for line in lines if line.get("what") == "against"]
    assert rivals == [(rows, who) for rows in (16, 8) for who in ("sampler", "kernel by kernel", "generate")] * 2
    assert [line for line in lines if line["part"] == "7b on 24 GB"][0]["tokens"] == 12
    assert lines[-2]["output"] == "3 passed" and lines[-2]["exit_code"] == 1 and lines[-1]["exit_code"] == "stopped"
    text = (tmp_path / "gpu.md").read_text()
    assert text.count("| sampler |") == 4 + 4 and "## 7b, 4 bits" in text
    assert (tmp_path / "output.log").read_text() == "3 passed\n"
    assert json.loads((tmp_path / "gpu.json").read_text()) == lines


def test_a_figure_that_fails_is_named_and_the_next_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "markdown", lambda lines: "")
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), ValueError("no")):
        with gpu_report.attempt(str(tmp_path), "7b, 4 bits"):
            raise error
    assert [line["note"] for line in gpu_report.read(tmp_path)] == [
        "failed: OutOfMemoryError: CUDA out of memory. Tried to allocate", "failed: ValueError: no"]


def test_the_plan_of_the_report(tmp_path, monkeypatch):
    """Parts in their order, each with seconds of its own; what the time left does not hold is named."""
    clock, told = [0.0], []

    def child(folder, command, seconds):
        told.append((command[command.index("--part") + 1] if "--part" in command else command[-1], seconds))
        clock[0] += seconds
        return ("stopped" if "step" in told[-1][0] else 0), ["5 passed"], 1.0
    monkeypatch.setattr(gpu_report, "child", child)
    monkeypatch.setattr(gpu_report.time, "time", lambda: clock[0])
    args = bench.parse_args(["--gpu-report", str(tmp_path), "--rows", "8"])
    gpu_report.prepare(args)
    gpu_report.report(args)
    assert [(part.split("/")[-1], seconds) for part, seconds in told] == [
        ("shape:1.5b:190", 190), ("test_gpu.py", 120), ("shape:7b:190", 190)]
    notes = {line["part"]: line["note"] for line in gpu_report.read(tmp_path) if "note" in line}
    assert notes == {name: "left out: 0 s were left" for name in ("step 1.5b", "ppo_passk.py", "shape 0.5b")}
    told.clear()
    clock[0] = 0.0
    args = bench.parse_args(["--gpu-report", str(tmp_path / "b"), "--rows", "8", "--parts", "ppo,step", "--shape",
                             "7b"])
    gpu_report.prepare(args)
    gpu_report.report(args)
    assert [part.split("/")[-1] for part, _ in told] == ["step:7b:130", "run"]
    assert gpu_report.read(tmp_path / "b")[1]["note"] == "stopped at its time limit"


def test_the_bound_of_the_report():
    """By hand: a step of R rows reads the weights once and the keys and values of each row's context."""
    args = types.SimpleNamespace(prompt_tokens=100, new_tokens=50, k=4, seed=0, vocabulary=20, skip_generate=True)
    policy = load_policy("tiny", bits=32)
    policy.stop = []
    base = sum(p.numel() for p in policy.lm.parameters() if not p.requires_grad)
    context = 2 * 4 * 64 * 4  # K and V, layers, width, bytes
    line = gpu_report.sampler(policy, 8, args, 1e9)
    assert line["bound"] == pytest.approx(8 * 1e9 / (4 * base + 8 * context * (100 + 25)))
    assert gpu_report.update(policy, 8, args, 1e9)["of_matrix_rate"] > 0


def test_mistakes_about_the_report(tmp_path):
    (tmp_path / "gpu.jsonl").write_text("")
    (tmp_path / "file").write_text("")
    for flags, why in (([tmp_path], "already contains a report"), ([tmp_path / "file"], "cannot write to --gpu-report"),
                       ([tmp_path / "new", "--rows", "9"], "multiples of --k 8"),
                       ([tmp_path / "new", "--parts", "all"], "--parts: unknown part 'all'; choose from shape, tests")):
        code, _, error = run(bench.main, "--gpu-report", *flags)
        assert code == 2 and why in error and error.count("\n") == 1
