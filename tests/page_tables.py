"""Tables of the pages that are made of the code: between <!-- table NAME --> and <!-- end of table --> in docs/.

    python tests/page_tables.py    writes them anew

Whoever changes what they are made of runs this file; tests/test_pages_running.py fails until then.
"""
import json
import os
import re
import sys

import references
from architectures import NOT_TRIED, REFUSED, RIGHT
from references import ROOT

sys.path[:0] = [ROOT]  # also where this file is a program

PLACE = re.compile(r"(<!-- table (\w+) -->\n\n).*?(\n\n<!-- end of table -->)", re.DOTALL)
SAMPLE = 700  # tokens, of prompt and completion
RANK = 16  # of the adapter
MAKERS = ["openr1", "dapo", "deepscaler", "numina", "gsm8k_verl", "trl", "apps", "mbpp_plus"]  # of test_own_data.py
NAMES = ["OpenR1-Math", "DAPO-Math-17k", "DeepScaleR", "NuminaMath", "GSM8K in verl's form", "conversations as in TRL",
         "APPS", "MBPP+"]
NUMBER = 3  # of the row that is shown


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def code(names):
    return ", ".join(f"`{name}`" for name in names)


# -------------------------------------------------------------------------------------------------------------- tables

def names():
    """The table of names in the docstring of tasks/shapes.py, a row for each field."""
    from tasks import shapes
    body = shapes.__doc__.split("\n\n")[1]
    fields = re.findall(r"^    (\w+) +(\S.*(?:\n {8,}\S.*)*)", body, re.MULTILINE)
    return table(["field", "columns, the first that is there"], [[f"`{field}`", " ".join(words.split())]
                                                                 for field, words in fields])


def rows():
    """[(name of a data set, a row of it)]."""
    import test_own_data
    return [(name, getattr(test_own_data, maker)(NUMBER)) for name, maker in zip(NAMES, MAKERS, strict=True)]


def understood(row):
    """(problem, {field: columns that it was found in})."""
    from tasks import shapes
    used = {}
    problem, _ = shapes.problem_of(row, "row", used=used)
    return problem, used


def schemas():
    """Which columns of the eight data sets are taken."""
    found = []
    for name, row in rows():
        problem, used = understood(row)
        judge = used.get("answer") or used.get("tests")
        judged = problem.answer if "answer" in used else "tests"
        cells = [" and ".join(sorted(columns)) for columns in (used["prompt"], judge, used.get("solution", ()))]
        found.append([name, *cells, f"`{judged}`"])
    return table(["data set", "prompt from", "judged by", "solution from", "answer"], found)


def examples():
    """A row of each data set, a line for each column."""
    parts = []
    for name, row in rows():
        fields = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in row.items()]
        joined = "{" + ",\n ".join("\n  ".join(broken(field)) for field in fields) + "}"
        assert json.loads(joined) == json.loads(json.dumps(row))
        parts.append(f"{name}:\n\n```json\n{joined}\n```")
    return "\n\n".join(parts)


def broken(field, most=116):
    """The text of a field in lines, cut between its parts."""
    lines = [""]
    for part in re.split(r'(?<=[,:]) (?="|\{|\[)', field):
        if lines[-1] and len(lines[-1]) + len(part) + 1 > most:
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]} {part}".strip()
    return lines


def models():
    """The sweep over architectures, a row for each outcome."""
    found = [[f"right; {path}", str(len(kinds)), ", ".join(kinds)] for path, kinds in RIGHT.items()]
    found += [[f"refused: {reason}", str(len(kinds)), ", ".join(kinds)] for reason, kinds in REFUSED.items()]
    found.append(["not tried: other senses than text, or drafts for another model", str(len(NOT_TRIED)),
                  ", ".join(NOT_TRIED)])
    return table(["outcome", "how many", "architectures, as `model_type` names them"], found)


def memory():
    """GB of models in the shapes of bench.py, computed: weights, adapter, a sample in the update, a row decoded."""
    from support.measure import SHAPES
    found = []
    for name in ("0.5b", "1.5b", "7b"):
        vocabulary = 151936
        linear, outputs = linear_of(*SHAPES[name])
        embedding = vocabulary * SHAPES[name][0] * (1 + (name == "7b"))  # the others share it with the output
        four = linear * (0.5 + 0.127 / 8) + 2 * embedding
        adapter = RANK * outputs * 16  # value, gradient, two moments in float32
        found.append([name, *map(gigabytes, (four, 2 * (linear + embedding), adapter,
                                             *of_a_sample(*SHAPES[name], vocabulary)))])
    return table(["shape of Qwen2.5", "weights in NF4", "in bfloat16", f"adapter of rank {RANK}, AdamW",
                  f"a sample of {SAMPLE} tokens in the update", "the same while decoded"], found)


def linear_of(hidden, wide, layers, heads, groups):
    """(elements, inputs and outputs together) of the linear layers."""
    narrow = hidden // heads * groups
    shapes = [(hidden, hidden)] * 2 + [(hidden, narrow)] * 2 + [(hidden, wide)] * 3
    return layers * sum(a * b for a, b in shapes), layers * sum(a + b for a, b in shapes)


def of_a_sample(hidden, wide, layers, heads, groups, vocabulary):
    """Bytes of a sample in the update, and of one while it is decoded: what support/load.py reckons with, which
    tests/test_pages_running.py compares."""
    keys = hidden // heads * groups
    update = SAMPLE * (100 * layers * hidden + 24 * vocabulary)
    decoded = 2.5 * 2 * layers * keys * SAMPLE + 20 * vocabulary
    return update, decoded


def gigabytes(count):
    return f"{count / 1e9:.2f} GB" if count < 1e9 else f"{count / 1e9:.1f} GB"


TABLES = {"names": names, "schemas": schemas, "examples": examples, "models": models, "memory": memory}


# --------------------------------------------------------------------------------------------------------------- pages

def mended(page):
    """The text of a page with its tables as the code has them."""
    return PLACE.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], references.source(page))


def main():
    for page in references.pages():
        text = mended(page)
        if text != references.source(page):
            with open(os.path.join(ROOT, page), "w", encoding="utf-8") as file:
                file.write(text)
            print(page)


if __name__ == "__main__":
    main()
