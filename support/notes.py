"""Notes that a run prints, each at most once, when its metrics suggest that it does not learn what it should."""
import statistics
from collections import deque

PAGE = "docs/troubleshooting.md"  # explains each note
STEPS = 10  # window for most notes, in steps
MANY = 50  # window for gradient norms, which are often large at first
MUCH = 5  # a norm above this multiple of --max-grad-norm counts; moderate clipping is normal and harmless
IDLE = 5  # consecutive steps without a gradient


class Notes:
    """Watches the metrics of a run.  args: its flags; budget: the k or N trained for; task: its task."""

    def __init__(self, args, budget, task):
        self.args = args
        self.budget = budget
        self.task = task
        self.lines = deque(maxlen=STEPS)
        self.norms = deque(maxlen=MANY)
        self.printed = set()  # names of the notes printed so far

    def look(self, line):
        """Print the notes that apply after this step.  line: its keys of METRICS."""
        self.lines.append(line)
        self.norms.append(line["grad_norm"])
        if line["step"] == 1:
            self.say("answers", self.unanswered())
            self.say("even", self.even(line))
        self.say("idle", self.idle())
        if "idle" not in self.printed:  # "idle" covers "alike"
            self.say("alike", self.alike())
        self.say("cut", self.cut())
        self.say("clipped", self.clipped())
        self.say("far", self.far())

    def say(self, name, text):
        """Print a note, unless the text is None or the note of this name has been printed."""
        if text and name not in self.printed:
            print(f"note: {text} ({PAGE})", flush=True)
            self.printed.add(name)

    def recent(self, name):
        """The values of a key in the last steps, without steps that lack it."""
        values = [line.get(name) for line in self.lines]
        return [value for value in values if value is not None]

    def mean(self, name):
        """Mean of a key over the last steps; 0 if no step has it."""
        return statistics.fmean(self.recent(name) or [0.0])

    def unanswered(self):
        sample = getattr(self.task, "unanswered", None)
        if sample:
            return (f"no answer was found in any sample so far; one sample is {sample[-300:]!r}. An answer is "
                    "\\boxed{...}, what follows '####', 'The answer is' or 'Answer:', or a completion that is one "
                    "number: docs/data.md")

    def even(self, line):
        if self.budget > 1 and line.get("w_mean") and line["w_even"] > 0.95:
            return ("all weights are nearly equal, so they have no effect: use shorter targets, a smaller --n, or "
                    "--probability success if the script has it")

    def idle(self):
        last = self.recent("zero")[-IDLE:]
        if len(last) == IDLE and min(last) == 1:
            return ("for five steps all coefficients were 0, so nothing was learned: for example, all samples of a "
                    "prompt may have the same reward. If earlier samples differed, the policy may have collapsed: use "
                    "a lower --lr; otherwise use more samples per prompt, other problems or a warm-up")

    def alike(self):
        if len(self.recent("alike")) < STEPS or self.mean("alike") < 0.9:
            return None
        outcome = "samples of equal reward" if self.task.graded else "only wrong or only correct samples"
        advice = "use harder problems"
        if self.mean("reward") < 0.5:
            advice = "use easier problems, more --samples, or a warm-up (--adapter, a run on gold solutions)"
        return (f"for {STEPS} steps nearly all prompts had {outcome} (mean reward {self.mean('reward'):.2g}), which "
                f"gives little or no gradient: {advice}")

    def cut(self):
        if self.mean("cut") > 0.2:
            return (f"{self.mean('cut'):.0%} of the completions were cut at --max-new-tokens "
                    f"{self.task.max_new_tokens} and scored as they were: raise it, or ask for shorter ones")

    def clipped(self):
        limit = self.args.max_grad_norm
        over = [norm for norm in self.norms if norm > MUCH * limit > 0]
        if len(self.norms) == MANY and len(over) >= 0.9 * MANY:
            median = statistics.median(self.norms)
            return (f"the gradient was clipped to less than a fifth of its norm in {len(over)} of the last {MANY} "
                    f"steps (median norm {median:.2g}, --max-grad-norm {limit:g}), so all steps have nearly the same "
                    "size: raise --max-grad-norm, or use 0 to disable clipping")

    def far(self):
        kl = self.mean("kl")
        length = self.mean("length")
        if length and kl > length:
            return (f"the KL to the reference is above 1 nat per token ({kl:.1f} nats for {length:.1f} tokens): the "
                    "policy is far from the model it started from; use a lower --lr, or --kl-coef if the script has it")
