"""Arithmetic in words, a task for a real model: python results/words.py > words.jsonl

1,600 distinct problems: 1,200 for training, 100 for validation, 300 for test. No result is negative. Each line looks
like {"prompt": "38 plus 5 is", "answer": "43", "solution": " 43", "split": "train"}.
"""
import os
import random
import sys

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
from support.output import consoles, to_json


def main():
    rng, seen = random.Random(0), set()
    while len(seen) < 1600:
        a, b, c = rng.randint(10, 60), rng.randint(2, 30), rng.randint(2, 9)
        sums = ((f"{a} plus {b}", a + b), (f"{a} minus {b}", a - b), (f"{c} times {b}", c * b))
        text, value = rng.choice(sums)
        if value < 0 or text in seen:
            continue
        problem = {"prompt": f"{text} is", "answer": str(value), "solution": f" {value}", "split": "test"}
        if len(seen) < 1200:
            problem["split"] = "train"
        elif len(seen) < 1300:
            problem["split"] = "valid"
        seen.add(text)
        print(to_json(problem))


if __name__ == "__main__":
    with consoles():
        main()
