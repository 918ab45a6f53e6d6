"""The command line: flags that all scripts share, their limits, and error messages.

Imports nothing heavy, so that --help and usage errors respond at once.
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
TASK_NAMES = "countdown, countdown6, routes, program, peptide, gsm8k, math, humaneval, mbpp, codecontests, taco"


class Flags(argparse.Namespace):
    """Parsed flags. `given`, which vars() leaves out, is the set of names given on the command line."""
    __slots__ = ("given",)


class Parser(argparse.ArgumentParser):
    """Records which flags were given (Flags), and prints help to any console, even if its reader exits early."""

    def parse_args(self, argv=None, namespace=None):
        if namespace is not None:
            return super().parse_args(argv, namespace)
        args = super().parse_args(argv, Flags())
        absent = object()  # parse again with this as every default: any other value was given
        marked = super().parse_args(argv, Flags(**dict.fromkeys(vars(args), absent)))
        args.given = {name for name, value in vars(marked).items() if value is not absent}
        return args

    def format_help(self):
        return super().format_help() + examples() * ("--reward" in self._option_string_actions)

    def _print_message(self, message, file=None):
        if stream := file or sys.stderr:
            console = Console(stream)
            super()._print_message(message, console)
            console.flush()


def examples():
    """The end of the docstring of tasks/: examples of a task and a reward of your own."""
    with open(os.path.join(ROOT, "tasks", "__init__.py"), encoding="utf-8") as file:
        docstring = ast.get_docstring(ast.parse(file.read()))
    _, title, text = docstring.partition("A task of your own in a file")
    return f"\n{title}{text}\n"


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Appends default values to help texts, unless a text names the default itself or the flag is off by default."""

    def _get_help_string(self, action):
        off = action.default is None or action.default is False
        if off or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Elsewhere(argparse.Action):
    """A flag that was replaced: prints the message `const` and exits with code 2."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.exit(2, f"{parser.prog}: error: {self.const}\n")


def answer(parse):
    """For the top of a script: handle --help and usage errors before the heavy imports, and let Ctrl-C during the
    imports exit with one line. main() then handles Ctrl-C itself."""
    parse()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores SIGINT
        signal.signal(signal.SIGINT, leave_at_once)


def leave_at_once(number, frame):
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode())
    os._exit(130)


def base_parser(doc, task, train_problems):
    """A parser with the flags for problems, base and adapter. doc: the script's docstring."""
    p = Parser(description=doc.split("\n")[0], formatter_class=Help)
    g = p.add_argument_group("problems, base and adapter")
    g.add_argument("--task", help=f"{TASK_NAMES}, or your own task, FILE.py[:CLASS]; default {task}, or the task of "
                   "--data")
    g.add_argument("--data", help="your own problems: a file (JSON lines, Parquet, CSV, ...), a folder, or ORG/NAME on "
                   "the hub; or a local copy of the data set of --task. The answer is taken from the last "
                   "\\boxed{...}, else from the text after '####' or 'answer is', else it is a single number")
    g.add_argument("--levels", help="difficulty levels of the task `math`, e.g. 1-3")
    g.add_argument("--train-problems", type=int, default=train_problems,
                   help="use only the first N training problems; 0 = all. Of a data set on the hub only these are read")
    g.add_argument("--allow-unsandboxed-code", action="store_true",
                   help="run model-written programs even if no sandbox is available")
    g.add_argument("--model", help="hub id, local directory, FILE.gguf, or an embedded model; default: the base of "
                   "--adapter, else the model of the task")
    g.add_argument("--adapter", help="run folder or LoRA directory to continue from, e.g. an SFT warm-up before RL")
    g.add_argument("--bits", type=int, choices=[4, 8, 16, 32],
                   help="precision of the frozen base model; default 4 (NF4) on a GPU, 32 on a CPU")
    g.add_argument("--lora-rank", type=int, default=16, help="rank of the LoRA adapter (alpha is twice the rank)")
    prompt_flags(g)
    computing_flags(g)
    return p


def parser(doc, script, task="countdown", samples=16, prompts=64, steps=100, train_problems=0, kl=True, test_n=None,
           exact=False):
    """A parser with the flags that all training scripts share; the script adds those of its paper.

    doc     the script's docstring
    kl      whether the script can penalise the KL divergence, which needs sampled completions
    test_n  default budgets for --plot-weights; None: the script has no such weight
    exact   whether the script has an exact correction for samples of an inference engine
    The other arguments are this script's defaults.
    """
    p = base_parser(doc, task, train_problems)
    g = p.add_argument_group("training")
    g.add_argument("--samples", type=int, default=samples, help="samples per prompt, if the policy is sampled")
    g.add_argument("--prompts", type=int, default=prompts, help="prompts per step, B")
    g.add_argument("--steps", type=int, default=steps, help="number of steps, each on one batch of prompts")
    g.add_argument("--lr", type=float,
                   help="peak learning rate (AdamW), decays to 0; default 2e-3 for models below 5 M parameters, else "
                        "by size and mode, down to 2e-5; the run prints it")
    g.add_argument("--max-grad-norm", type=float, default=1.0, help="clip the gradient norm to this value; 0 = never")
    g.add_argument("--temperature", type=float, default=1.0, help="sampling and scoring temperature T")
    g.add_argument("--max-new-tokens", type=int, default=0,
                   help="maximum length of a completion in tokens; 0 = the task's default")
    if kl:
        g.add_argument("--kl-coef", type=float, default=0.0,
                       help="coefficient beta of KL(pi || reference); 0 = only measure it")
        g.add_argument("--kl-prompts", type=int, default=32,
                       help="without --kl-coef: measure the KL on one sample for each of N prompts per step; 0 = never")
    g.add_argument("--reference", choices=["start", "base"], default="start",
                   help="KL reference: the policy at the start of this run, or the base model")
    g.add_argument("--seed", type=int, default=0, help="seed for initialisation, data order and sampling")
    if test_n:
        g = p.add_argument_group("plot of the weight")
        g.add_argument("--plot-weights", action="store_true",
                       help="do not train, but plot and print the training weight against test budgets")
        g.add_argument("--test-n", default=test_n, help="test budgets for --plot-weights, comma-separated")
    correction_flags(rollouts_flags(p), exact)
    g = p.add_argument_group("evaluation and run folder")
    g.add_argument("--eval-samples", type=int, default=64,
                   help="samples per test problem before and after training; 0 = no evaluation")
    g.add_argument("--eval-problems", type=int,
                   help="problems to evaluate on, 0 = all; default all for models below 5 M parameters, else as many "
                        "as give 4,096 completions")
    g.add_argument("--eval-every", type=int, default=0,
                   help="evaluate on validation problems every N steps; 0 = never")
    g.add_argument("--save-every", type=int, default=25, help="steps between checkpoints")
    g.add_argument("--track", choices=["none", *TRACKERS], default="none",
                   help="log the run to a dashboard, too: metrics at every checkpoint, results and curves.png. wandb "
                        "sends them to its server, the others store them on this machine")
    g.add_argument("--out", help=f"run folder; default runs/{script}-<task>-<what>-<number>")
    g.add_argument("--resume", action="store_true", help="continue the run in --out; give --model, --data, --adapter "
                   "or --verifier again if its files have moved")
    return p


def prompt_flags(parser):
    """Flags shared with evaluate.py: columns and rewards of your own data, and the chat template."""
    parser.add_argument("--columns", help="columns of --data by field, e.g. prompt=problem,answer="
                        "reward_model.ground_truth; default: recognised by name (docs/data.md)")
    parser.add_argument("--skip-bad-rows", action="store_true", help="skip rows of --data that are not valid problems, "
                        "and count them")
    parser.add_argument("--reward", help="your own reward function for the samples of --data, used instead of its "
                        "answers: FILE.py:FUNCTION with f(prompt, completion, answer=None, **row), or as in TRL "
                        "f(prompts, completions, **columns)")
    parser.add_argument("--reward-processes", type=int, default=0, help="call --reward in N processes, with a time "
                        "limit of FUNCTION.limit seconds (default 60), and count timeouts; 0 = in this process, "
                        "without a limit")
    parser.add_argument("--chat", action=argparse.BooleanOptionalAction, default=None,
                        help="apply the tokenizer's chat template to prompts, or not; default: as the task says, if "
                             "there is a template. For a template that uses the date, it is always 26 Jul 2024")
    parser.add_argument("--system", help="system message for the chat template")


def rollouts_flags(parser):
    """Flags of every command that can sample with an inference engine.  Returns the group."""
    g = parser.add_argument_group("rollouts by an inference engine (support/rollouts.py)")
    g.add_argument("--rollouts", metavar="URL", help="vLLM server that draws the samples, e.g. http://127.0.0.1:8000")
    g.add_argument("--rollouts-dir", metavar="DIR",
                   help="folder where the server reads adapters; default rollouts/ in the run folder")
    g.add_argument("--rollouts-timeout", type=float, default=600,
                   help="seconds to wait for an answer, and for a server that does not respond")
    return g


def correction_flags(group, exact):
    """Flags for rollouts that only training scripts have.  exact: whether the script has an exact correction."""
    forms = ["none", "weights", "exact"] if exact else ["none", "weights"]
    default = ", default exact for passk, else weights" if exact else ", default weights"
    group.add_argument("--rollouts-correction", choices=forms,
                       help="correction for samples of an engine whose distribution q differs from the policy pi: "
                            "none, weights pi / q of each completion (exact for the mean reward)"
                            + ", or the exact form" * exact + default)
    group.add_argument("--rollouts-bound", type=float, default=3.0,
                       help="upper bound of the weights pi / q; larger ones are clipped")


def check_rollouts(args):
    """Check the flags for rollouts beyond argparse, and set the default correction.  Raises UserError."""
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
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; default: a GPU if there is one, a different one "
                        "for each process")
    parser.add_argument("--plain", action="store_true",
                        help="sample and score only with the loops of common.py: slower, with the same samples and "
                             "results up to rounding")


def refuse(args, names, where):
    """Raises UserError if one of these flags was given, because it has no effect.  where: end of the sentence."""
    for name in sorted(names):
        if name in args.given:
            raise UserError(f"--{name.replace('_', '-')} has no effect {where}: leave it out")


def check_common(args, positive=(), not_negative=(), plotted=()):
    """Check the flags that all scripts share, beyond what argparse checks.  positive, not_negative: further flags that
    must be at least 1, or at least 0; plotted: flags that --plot-weights uses.  Raises UserError."""
    for name in ("samples", "prompts", "steps", "lora_rank", "save_every", *positive):
        if not getattr(args, name, 1) >= 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    for name in ("lr", "max_grad_norm", "kl_coef", "kl_prompts", "max_new_tokens", "train_problems", "eval_samples",
                 "eval_problems", "eval_every", *not_negative):
        if not 0 <= (getattr(args, name, 0) or 0) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be finite and not negative, not {getattr(args, name)}")
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
    spec = importlib.util.find_spec(tracker)
    if spec is None or spec.origin is None:  # no origin: a folder named wandb/, where wandb stores its files
        raise UserError(f"--track {tracker} needs a package that is not installed: pip install {tracker}")


def numbers(text, kind, flag):
    """The distinct positive numbers of a comma-separated flag, in ascending order.  Raises UserError."""
    try:
        values = sorted({kind(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not 0 < values[0] <= values[-1] < math.inf:
        raise UserError(f"{flag} {text!r} must be positive numbers separated by commas")
    return values


def cli(main):
    """Decorator for main(argv) of every script: UserError exits with a one-sentence message and code 2, Ctrl-C with one
    line and code 130. In both cases, folders of runs that have computed nothing are removed."""
    @functools.wraps(main)
    def wrapped(argv=None):
        with consoles():
            return guarded(main, argv)
    return wrapped


def guarded(main, argv):
    """Call main(argv), and turn expected errors and Ctrl-C into a message and an exit code."""
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
        message = ("out of GPU memory: lower --max-new-tokens, load the base with --bits 4, or use a smaller model "
                   "(docs/troubleshooting.md)")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = (f"{error.strerror}: saved files are intact; free some space and run the command again, a training "
                   "run with --resume")
    except KeyboardInterrupt as error:
        message = None
        hint = str(error)
    finally:
        rollouts.leave()
        processes.leave()
    folder.remove_unused()
    script = os.path.basename(sys.argv[0])
    if message is None:
        if not processes.RANK:
            print(f"{script}: interrupted{hint}", file=sys.stderr)
        raise SystemExit(130)
    process = f"process {processes.RANK}: " if processes.RANK else ""
    print(f"{script}: error: {process}{message}", file=sys.stderr)
    raise SystemExit(2)
