"""The fast paths of common.sample and common.score: the same draws and log-probabilities, where that is cheaper.

Three ideas. Completions of one prompt share its keys and values, computed once, with gradient, and handed out to them
(shared.py). The adapter is folded into a copy of the weights, so that a linear layer is one product instead of three
(folded.py). And completions of one prompt share a row under a 4-D mask, so that its keys are stored and read once for
all of them (packed.py). A model of 0.2 M parameters, whose cost is calls and not arithmetic, gets the last two: with 64
prompts x 16 samples of countdown sampling was measured to be 1.4 to 1.7 times as fast, the update 1.9 times. A real one
gets the first, which needs no mask, and where it is float32 the second, for sampling only: in the update the gradient
of the copy would cost more than the small products. On a GPU a token of all rows is captured as one graph
(captured.py). choose.py says what a model gets, and why; tests compare all of it with the plain versions, which a run
takes with --plain.
"""
