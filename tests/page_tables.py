"""Tables generated from the code, between <!-- table NAME --> and <!-- end of table --> in the pages of docs/.

    python tests/page_tables.py    update them

Run this file after changing their sources; tests/test_pages_running.py fails until then.
"""
import json
import os
import re
import sys

import references
from architectures import NOT_TRIED, REFUSED, RIGHT
from references import ROOT

sys.path[:0] = [ROOT]  # also where this file is a program

PLACE = re.compile(r"<!-- table (\w+) -->\n.*?<!-- end of table -->", re.DOTALL)
SAMPLE = 700  # tokens of prompt and completion
RANK = 16  # of the adapter
MAKERS = ["openr1", "dapo", "deepscaler", "numina", "gsm8k_verl", "trl", "apps", "mbpp_plus"]  # of test_own_data.py
NAMES = ["OpenR1-Math", "DAPO-Math-17k", "DeepScaleR", "NuminaMath", "GSM8K in verl's form", "conversations as in TRL",
         "APPS", "MBPP+"]
NUMBER = 3  # of the example row


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def code(names):
    return ", ".join(f"`{name}`" for name in names)


# -------------------------------------------------------------------------------------------------------------- tables

def names():
    """The column names in the docstring of tasks/shapes.py, one row per field."""
    from tasks import shapes
    body = shapes.__doc__.split("\n\n")[1]
    fields = re.findall(r"^    (\w+) +(\S.*(?:\n {8,}\S.*)*)", body, re.MULTILINE)
    return table(["field", "columns, first match wins"], [[f"`{field}`", " ".join(words.split())]
                                                                 for field, words in fields])


def rows():
    """[(name of a data set, example row)]."""
    import test_own_data
    return [(name, getattr(test_own_data, maker)(NUMBER)) for name, maker in zip(NAMES, MAKERS, strict=True)]


def understood(row):
    """(problem, {field: columns it was read from})."""
    from tasks import shapes
    used = {}
    problem, _ = shapes.problem_of(row, "row", used=used)
    return problem, used


def schemas():
    """The columns used from each of the eight data sets."""
    lines = []
    for name, row in rows():
        problem, used = understood(row)
        judge = used.get("answer") or used.get("tests")
        judged = f"`{problem.answer}`" if "answer" in used else "(tests)"
        cells = [" and ".join(sorted(columns)) for columns in (used["prompt"], judge, used.get("solution", ()))]
        lines.append([name, *cells, judged])
    return table(["data set", "prompt from", "judged by", "solution from", "answer"], lines)


def examples():
    """An example row of each data set, as a table of columns and their values in JSON."""
    parts = []
    for name, row in rows():
        fields = [[f"`{column}`", f"`{json.dumps(value, ensure_ascii=False)}`"] for column, value in row.items()]
        parts.append(f"**{name}**\n\n{table(['column', 'value'], fields)}")
    return "\n\n".join(parts)


def models():
    """The sweep over architectures, one row per outcome."""
    lines = [[f"right; {path}", str(len(kinds)), ", ".join(kinds)] for path, kinds in RIGHT.items()]
    lines += [[f"refused: {reason}", str(len(kinds)), ", ".join(kinds)] for reason, kinds in REFUSED.items()]
    lines.append(["not tried: not text models, or draft models for another model", str(len(NOT_TRIED)),
                  ", ".join(NOT_TRIED)])
    return table(["outcome", "number", "architectures (`model_type`)"], lines)


def memory():
    """Computed memory of models in the shapes of bench.py: weights, adapter, a sample in the update and in decoding."""
    from support.measure import SHAPES
    lines = []
    for name in ("0.5b", "1.5b", "7b"):
        vocabulary = 151936
        linear, outputs = linear_of(*SHAPES[name])
        embedding = vocabulary * SHAPES[name][0] * (1 + (name == "7b"))  # the smaller ones tie it to the output
        four = linear * (0.5 + 0.127 / 8) + 2 * embedding
        adapter = RANK * outputs * 16  # value, gradient, two moments in float32
        lines.append([name, *map(gigabytes, (four, 2 * (linear + embedding), adapter,
                                             *of_a_sample(*SHAPES[name], vocabulary)))])
    return table(["shape of Qwen2.5", "weights in NF4", "in bfloat16", f"adapter of rank {RANK}, AdamW",
                  f"a sample of {SAMPLE} tokens in the update", "the same in decoding"], lines)


def linear_of(hidden, wide, layers, heads, groups):
    """(number of weights, sum of inputs and outputs) of the linear layers."""
    narrow = hidden // heads * groups
    shapes = [(hidden, hidden)] * 2 + [(hidden, narrow)] * 2 + [(hidden, wide)] * 3
    return layers * sum(a * b for a, b in shapes), layers * sum(a + b for a, b in shapes)


def of_a_sample(hidden, wide, layers, heads, groups, vocabulary):
    """(bytes of a sample in the update, bytes in decoding), as support/load.py estimates them;
    tests/test_pages_running.py compares the two."""
    keys = hidden // heads * groups
    update = SAMPLE * (100 * layers * hidden + 24 * vocabulary)
    decoded = 2.5 * 2 * layers * keys * SAMPLE + 20 * vocabulary
    return update, decoded


def gigabytes(count):
    return f"{count / 1e9:.2f} GB" if count < 1e9 else f"{count / 1e9:.1f} GB"


TABLES = {"names": names, "schemas": schemas, "examples": examples, "models": models, "memory": memory}


# --------------------------------------------------------------------------------------------------------------- pages

def mended(page):
    """The text of a page with its tables generated from the code."""
    def generated(match):
        return f"<!-- table {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end of table -->"
    return PLACE.sub(generated, references.source(page))


def main():
    for page in references.pages():
        text = mended(page)
        if text != references.source(page):
            with open(os.path.join(ROOT, page), "w", encoding="utf-8") as file:
                file.write(text)
            print(page)


if __name__ == "__main__":
    main()
