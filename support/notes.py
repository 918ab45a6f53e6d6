"""Notes that a run prints about itself, each once: it learns nothing, or not what one thinks."""
import statistics
from collections import deque

PAGE = "docs/troubleshooting.md"  # where each of them stands, with what to look at
STEPS = 10  # that are looked back on
MANY = 50  # for gradients, which are often large at first
MUCH = 5  # times the limit: to clip a little is usual, and does no harm
IDLE = 5  # steps in a row that teach nothing


class Notes:
    """Looks at the lines of a run. args: its flags; budget: the k or N that is trained for; task: its task."""

    def __init__(self, args, budget, task):
        self.args = args
        self.budget = budget
        self.task = task
        self.lines = deque(maxlen=STEPS)
        self.norms = deque(maxlen=MANY)
        self.said = set()

    def look(self, line):
        """Print the notes that this step gives a reason for. line: its keys of METRICS."""
        self.lines.append(line)
        self.norms.append(line["grad_norm"])
        if line["step"] == 1:
            self.say("answers", self.unanswered())
            self.say("even", self.even(line))
        self.say("idle", self.idle())
        if "idle" not in self.said:  # which says as much
            self.say("alike", self.alike())
        self.say("cut", self.cut())
        self.say("clipped", self.clipped())
        self.say("far", self.far())

    def say(self, name, words):
        """Print words, if there are any, unless those of this name have been printed."""
        if words and name not in self.said:
            print(f"note: {words} ({PAGE})", flush=True)
            self.said.add(name)

    def recent(self, name):
        """The values of a key in those of the last steps that have it."""
        found = [line.get(name) for line in self.lines]
        return [value for value in found if value is not None]

    def mean(self, name):
        """Of the last steps; 0 where none has the key."""
        return statistics.fmean(self.recent(name) or [0.0])

    def unanswered(self):
        missed = getattr(self.task, "unanswered", None)
        if missed:
            return (f"no sample so far holds an answer; one is {missed[-300:]!r}. What counts is \\boxed{{...}}, what "
                    "follows '####', 'The answer is' or 'Answer:', and a completion that is one number: docs/data.md")

    def even(self, line):
        if self.budget > 1 and line.get("w_mean") and line["w_even"] > 0.95:
            return ("the weights are all alike, so they do nothing and this is the objective without them: shorter "
                    "targets, a smaller --n, or --probability success where there is one, tell prompts apart")

    def idle(self):
        last = self.recent("zero")[-IDLE:]
        if len(last) == IDLE and min(last) == 1:
            return ("for five steps no sample had a coefficient other than 0, as when all samples of a prompt have the "
                    "same reward, so nothing was learned. If earlier ones differed, the policy may have collapsed: "
                    "take a lower --lr; if not, more samples per prompt, other problems or a warm-up")

    def alike(self):
        if len(self.recent("alike")) < STEPS or self.mean("alike") < 0.9:
            return None
        what = "samples of one reward" if self.task.graded else "no right sample or only right ones"
        advice = "take harder problems"
        if self.mean("reward") < 0.5:
            advice = "take easier problems, more --samples, or a warm-up (--adapter, a run on gold solutions)"
        return (f"over {STEPS} steps nearly all prompts had {what} (mean reward {self.mean('reward'):.2g}), and these "
                f"teach little or nothing: {advice}")

    def cut(self):
        if self.mean("cut") > 0.2:
            return (f"{self.mean('cut'):.0%} of the completions were cut at --max-new-tokens "
                    f"{self.task.max_new_tokens} and judged as they stood: raise it, or ask for shorter ones")

    def clipped(self):
        limit = self.args.max_grad_norm
        over = [norm for norm in self.norms if norm > MUCH * limit > 0]
        if len(self.norms) == MANY and len(over) >= 0.9 * MANY:
            usual = statistics.median(self.norms)
            return (f"the gradient was clipped to less than a fifth at {len(over)} of the last {MANY} steps (median "
                    f"norm {usual:.2g}, --max-grad-norm {limit:g}), so large and small ones move the policy alike: "
                    "raise --max-grad-norm, or give 0 to clip none")

    def far(self):
        kl = self.mean("kl")
        length = self.mean("length")
        if length and kl > length:
            return (f"the KL to the reference is above 1 nat per token ({kl:.1f} nats for {length:.1f} tokens), so the "
                    "policy has left what it was pretrained on: lower --lr, or --kl-coef where there is one")
