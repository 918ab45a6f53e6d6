"""The command line: flags that all scripts share, their limits, and one-sentence error messages.

Imports nothing heavy: --help and a wrong flag answer at once.
"""
import argparse
import ast
import errno
import functools
import importlib.util
import math
import os
import signal
import sys
import urllib.parse

from support import ROOT
from support.errors import UserError
from support.output import Console, consoles

TRACKERS = "tensorboard", "wandb", "trackio"
TASK_NAMES = "countdown, routes, program, peptide, gsm8k, math, humaneval, mbpp, codecontests, taco"


class Flags(argparse.Namespace):
    """Parsed flags. `given` holds the names of those on the command line, and is not in vars()."""
    __slots__ = ("given",)


class Parser(argparse.ArgumentParser):
    """Records which flags were given (Flags), and prints its help to any console, also one that closes early."""

    def parse_args(self, argv=None, namespace=None):
        if namespace is not None:
            return super().parse_args(argv, namespace)
        args = super().parse_args(argv, Flags())
        absent = object()  # parse again with this as every default: any other value was given
        found = super().parse_args(argv, Flags(**dict.fromkeys(vars(args), absent)))
        args.given = {name for name, value in vars(found).items() if value is not absent}
        return args

    def format_help(self):
        return super().format_help() + examples() * ("--reward" in self._option_string_actions)

    def _print_message(self, message, file=None):
        if stream := file or sys.stderr:
            console = Console(stream)
            super()._print_message(message, console)
            console.flush()


def examples():
    """The end of the docstring of tasks/: how to write your own task and reward, ten lines each."""
    with open(os.path.join(ROOT, "tasks", "__init__.py"), encoding="utf-8") as file:
        words = ast.get_docstring(ast.parse(file.read()))
    _, mark, rest = words.partition("A task of your own in a file")
    return f"\n{mark}{rest}\n"


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default once: in the words of the help text, else its value; nothing for a flag that is off."""

    def _get_help_string(self, action):
        off = action.default is None or action.default is False
        if off or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Elsewhere(argparse.Action):
    """A flag that something else has replaced: prints `const`, which says what, and exits with code 2."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.exit(2, f"{parser.prog}: error: {self.const}\n")


def answer(parse):
    """For the top of a script: --help and bad flags answer before the heavy imports, and Ctrl-C during these ends the
    process in one line. main() then ends by itself."""
    parse()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background of a shell it is ignored
        signal.signal(signal.SIGINT, leave_at_once)


def leave_at_once(number, frame):
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode())
    os._exit(130)


def base_parser(doc, task, train_problems):
    """A parser with the flags for problems, base and adapter. doc: the script's docstring."""
    p = Parser(description=doc.split("\n")[0], formatter_class=Help)
    g = p.add_argument_group("problems, base and adapter")
    g.add_argument("--task", help=f"{TASK_NAMES}, or your own, FILE.py[:CLASS]; default {task}, or that of --data")
    g.add_argument("--data", help="your own problems: a file (JSON lines, Parquet, CSV, ...), a folder or ORG/NAME of "
                   "the hub; or a copy of the data set --task. An answer is the last \\boxed{...}, else what follows "
                   "'####' or 'answer is', else a number alone")
    g.add_argument("--levels", help="difficulty levels of the task `math`, e.g. 1-3")
    g.add_argument("--train-problems", type=int, default=train_problems,
                   help="use only the first N training problems; 0 = all. Of a data set of the hub no more is read")
    g.add_argument("--allow-unsandboxed-code", action="store_true",
                   help="run model-written programs even where there is no sandbox")
    g.add_argument("--model", help="hub id, local directory, FILE.gguf, or an embedded model; default that of "
                   "--adapter or of the task")
    g.add_argument("--adapter", help="run folder or LoRA directory to continue from, e.g. an SFT warm-up before RL")
    g.add_argument("--bits", type=int, choices=[4, 8, 16, 32],
                   help="precision of the frozen base; default 4 (NF4) on a GPU, 32 on a CPU")
    g.add_argument("--lora-rank", type=int, default=16, help="rank of the LoRA adapter (alpha is twice that)")
    prompt_flags(g)
    computing_flags(g)
    return p


def parser(doc, script, task="countdown", samples=16, prompts=64, steps=100, train_problems=0, kl=True, test_n=None,
           exact=False):
    """A parser for a training script, with the flags that all of them share and this script's defaults; the script adds
    its paper's. doc: the script's docstring.  kl: whether it can penalise KL, which needs sampled completions.
    test_n: default budgets of --plot-weights; None if the script has no weight.
    exact: whether the script knows an exact correction for samples of an engine."""
    p = base_parser(doc, task, train_problems)
    g = p.add_argument_group("training")
    g.add_argument("--samples", type=int, default=samples, help="samples per prompt, where the policy is sampled")
    g.add_argument("--prompts", type=int, default=prompts, help="prompts per step B")
    g.add_argument("--steps", type=int, default=steps, help="steps: batches of prompts")
    g.add_argument("--lr", type=float,
                   help="peak learning rate (AdamW), decays to 0; default 2e-3 for a model of less than 5 M "
                        "parameters, by size and mode down to 2e-5 for others, printed")
    g.add_argument("--max-grad-norm", type=float, default=1.0, help="clip the gradient's norm; 0 = never")
    g.add_argument("--temperature", type=float, default=1.0, help="sampling and scoring temperature T")
    g.add_argument("--max-new-tokens", type=int, default=0, help="longest completion in tokens; 0 = the task's own")
    if kl:
        g.add_argument("--kl-coef", type=float, default=0.0, help="beta of KL(pi || reference); 0 = measured only")
        g.add_argument("--kl-prompts", type=int, default=32,
                       help="without --kl-coef: measure the KL on one sample of each of N prompts per step; 0 = never")
    g.add_argument("--reference", choices=["start", "base"], default="start",
                   help="KL reference: the start of this run, or the base")
    g.add_argument("--seed", type=int, default=0, help="initialisation, data order and sampling")
    if test_n:
        g = p.add_argument_group("a picture of the weight")
        g.add_argument("--plot-weights", action="store_true",
                       help="no training: picture and numbers of the weight against test budgets")
        g.add_argument("--test-n", default=test_n, help="test budgets of --plot-weights, comma-separated")
    correction_flags(rollouts_flags(p), exact)
    g = p.add_argument_group("evaluation and run folder")
    g.add_argument("--eval-samples", type=int, default=64,
                   help="samples per test problem before and after; 0 = no evaluation")
    g.add_argument("--eval-problems", type=int,
                   help="problems to evaluate on, 0 = all; default all for a model of less than 5 M parameters, else "
                        "those of 4,096 completions")
    g.add_argument("--eval-every", type=int, default=0,
                   help="evaluate on validation problems every N steps; 0 = never")
    g.add_argument("--save-every", type=int, default=25, help="steps between checkpoints")
    g.add_argument("--track", choices=["none", *TRACKERS], default="none",
                   help="show the run on a dashboard too: step lines once a checkpoint holds them, results and "
                        "curves.png. wandb sends them to its server, the others keep them on this machine")
    g.add_argument("--out", help=f"run folder; default runs/{script}-<task>-<what>-<number>")
    g.add_argument("--resume", action="store_true", help="continue the run in --out; --model, --data, "
                   "--adapter and --verifier may be given again where they have moved")
    return p


def prompt_flags(parser):
    """Flags shared with evaluate.py: columns of your own data, what judges it, and how prompts are given to a model."""
    parser.add_argument("--columns", help="columns of --data by field, e.g. prompt=problem,answer="
                        "reward_model.ground_truth; default by their names (docs/data.md)")
    parser.add_argument("--skip-bad-rows", action="store_true", help="leave out rows of --data that are not problems, "
                        "and count them")
    parser.add_argument("--reward", help="what judges the samples of --data instead of its answers, your own "
                        "FILE.py:FUNCTION: f(prompt, completion, answer=None, **row), or as in TRL f(prompts, "
                        "completions, **columns)")
    parser.add_argument("--reward-processes", type=int, default=0, help="call --reward in N processes, with a limit of "
                        "FUNCTION.limit seconds (60 without it) that is counted when it strikes; 0 = in this one")
    parser.add_argument("--chat", action=argparse.BooleanOptionalAction, default=None,
                        help="put prompts through the tokenizer's chat template, or not; default what the task says, "
                             "where there is one. A clock in it stands at 26 Jul 2024")
    parser.add_argument("--system", help="text of a system message before the prompt, for a chat template")


def rollouts_flags(parser):
    """What every command has that may have an engine sample.  Returns the group."""
    g = parser.add_argument_group("rollouts by an engine (support/rollouts.py)")
    g.add_argument("--rollouts", metavar="URL", help="vLLM server that draws the samples, e.g. http://127.0.0.1:8000")
    g.add_argument("--rollouts-dir", metavar="DIR",
                   help="where adapters are written for the server to read; default rollouts/ in the run folder")
    g.add_argument("--rollouts-timeout", type=float, default=600,
                   help="seconds that an answer may take, and that the server may be away")
    return g


def correction_flags(group, exact):
    """What a training script has of it too. exact: whether the script knows an exact form."""
    forms = ["none", "weights", "exact"] if exact else ["none", "weights"]
    default = ", default exact for passk, else weights" if exact else ", default weights"
    group.add_argument("--rollouts-correction", choices=forms,
                       help="what samples of an engine that differs from the policy are weighed with: nothing, pi / q "
                            "of each completion (exact for the mean of the rewards)" + ", or the exact form" * exact
                            + default)
    group.add_argument("--rollouts-bound", type=float, default=3.0, help="largest weight pi / q; larger ones are cut")


def check_rollouts(args):
    """What argparse cannot judge about them; sets the default of the correction.  Raises UserError."""
    names = [name for name in vars(args) if name.startswith("rollouts_")]
    if not args.rollouts:
        refuse(args, names, "without --rollouts")
        return
    parts = urllib.parse.urlsplit(args.rollouts)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--rollouts {args.rollouts}: give the address of a server, like http://127.0.0.1:8000")
    if not 0 < args.rollouts_timeout < math.inf:
        raise UserError(f"--rollouts-timeout must be positive, not {args.rollouts_timeout}")
    if "rollouts_correction" not in names:
        return
    if not 1 <= args.rollouts_bound < math.inf:
        raise UserError(f"--rollouts-bound must be at least 1, not {args.rollouts_bound}")
    args.rollouts_correction = args.rollouts_correction or "weights"
    if args.rollouts_correction == "none":
        refuse(args, ["rollouts_bound"], "with --rollouts-correction none")


def computing_flags(parser):
    """Flags of every command that samples or scores."""
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; default the GPU where there is one, of several "
                        "processes each its own")
    parser.add_argument("--plain", action="store_true",
                        help="sample and score by the loops of common.py alone: the same draws and figures within "
                             "rounding, more slowly")


def refuse(args, names, where):
    """Raises UserError if one of these flags was given: it would do nothing."""
    for name in sorted(names):
        if name in args.given:
            raise UserError(f"--{name.replace('_', '-')} does nothing {where}: leave it out")


def check_common(args, positive=(), not_negative=(), plotted=()):
    """Check in the flags that all scripts share what argparse cannot, and that a script's own are at least 1 (positive)
    or not negative.  plotted: those that --plot-weights uses.  Raises UserError."""
    for name in ("samples", "prompts", "steps", "lora_rank", "save_every", *positive):
        if not getattr(args, name, 1) >= 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    for name in ("lr", "max_grad_norm", "kl_coef", "kl_prompts", "max_new_tokens", "train_problems", "eval_samples",
                 "eval_problems", "eval_every", *not_negative):
        if not 0 <= (getattr(args, name, 0) or 0) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must not be negative, and finite; it is {getattr(args, name)}")
    if not 0 < args.temperature < math.inf:
        raise UserError(f"--temperature must be positive, not {args.temperature}")
    installed(getattr(args, "track", "none"))
    if getattr(args, "eval_every", 0) and not args.eval_samples:
        raise UserError("--eval-every needs --eval-samples of at least 1")
    if "rollouts" in args:
        check_rollouts(args)
    if "test_n" in args:
        numbers(args.test_n, int, "--test-n")
        if args.plot_weights:
            refuse(args, args.given - {"plot_weights", "test_n", "out", *plotted}, "with --plot-weights")
        else:
            refuse(args, ["test_n"], "without --plot-weights")


def installed(tracker):
    """Raises UserError if the package of a dashboard is not installed."""
    if tracker == "none":
        return
    found = importlib.util.find_spec(tracker)
    if found is None or found.origin is None:  # wandb keeps its files in a folder of its own name
        raise UserError(f"--track {tracker} needs a package that is not installed: pip install {tracker}")


def numbers(text, kind, flag):
    """The distinct positive numbers of a comma-separated flag, in order.  Raises UserError."""
    try:
        values = sorted({kind(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not 0 < values[0] <= values[-1] < math.inf:
        raise UserError(f"{flag} {text!r}: give positive numbers separated by commas")
    return values


def cli(main):
    """Decorator of every script's main(argv): a mistake of the user ends in one sentence and exit code 2, Ctrl-C in one
    line and 130. Then folders made for runs that have computed nothing are removed."""
    @functools.wraps(main)
    def wrapped(argv=None):
        with consoles():
            return guarded(main, argv)
    return wrapped


def guarded(main, argv):
    import torch

    from support import folder, processes, rollouts
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        processes.init_processes()
        return main(argv)
    except UserError as error:
        message = error
    except torch.OutOfMemoryError:
        message = ("out of GPU memory: lower --max-new-tokens, load the base with --bits 4, or take a smaller model "
                   "(docs/troubleshooting.md)")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = (f"{error.strerror}: what was saved is intact; make room and run the command again, a training "
                   "run with --resume")
    except KeyboardInterrupt as error:
        message, way_on = None, str(error)
    finally:
        rollouts.leave()
        processes.leave()
    folder.remove_unused()
    script = os.path.basename(sys.argv[0])
    if message is None:
        if not processes.RANK:
            print(f"{script}: interrupted{way_on}", file=sys.stderr)
        raise SystemExit(130)
    who = f"process {processes.RANK}: " if processes.RANK else ""
    print(f"{script}: error: {who}{message}", file=sys.stderr)
    raise SystemExit(2)
