"""References from the pages to the code: links to lines, tests and claims, formulas, commands, lists of functions.

    python tests/references.py    update line numbers, claim anchors and list sizes in README.md and docs/

The text of a link names its target. [`name`](../file.py#L12) is the line that defines `name`; other code must occur on
exactly one line of the file. [`name`](../results/claims.md#...) is the claim of that name. README.md also uses
`file.py:12` `name`. Run this file after moving code; tests/test_docs.py fails until then.
"""
import ast
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPTS = ["ppo_passk", "bon_sft", "bon_rl", "cat_passk", "cat_majority", "cat_bon"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DISPLAY = re.compile(r"^\$\$\n(.*?)^\$\$$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`]+)`\$|(?<![\\$`\w])\$(?=[^\s$`])([^$`\n]*[^\s$`\\])\$(?![\w$])")
SPAN = re.compile(r"\$`[^`]+`\$|`[^`]+`")  # inline code or inline formula
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\(([^()\s]+)\)")
LINE = re.compile(r"\[`([^`]+)`\]\(((?:\.\./)*)([\w/]+\.py)#L(\d+)\)")
CLAIM = re.compile(r"\[`([\w-]+)`\]\(((?:\.\./)*results/claims\.md)#([\w-]+)\)")
NUMBERED = re.compile(r"`([\w/]+\.py):(\d+)` `(\w+)`")
LIST = re.compile(r"^(weight|loss) +(\d+)((?: +[\w.]+|\n +[\w.]+)+)$", re.MULTILINE)


def source(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def pages():
    """README.md and the pages in docs/."""
    paths = ["README.md"]
    for folder, _, names in sorted(os.walk(os.path.join(ROOT, "docs"))):
        relative = os.path.relpath(folder, ROOT)
        paths += [os.path.join(relative, name) for name in sorted(names) if name.endswith(".md")]
    return paths


def page_of(script):
    """The path of a script's page."""
    return f"docs/{script}.md"


# ------------------------------------------------------------------------------------------------------ parts of a page

def blocks(text, language):
    """The fenced blocks in a language; "" for blocks without one."""
    return [body for name, body in FENCE.findall(text) if name == language]


def formulas(text):
    """[(TeX, whether it is displayed)] in order."""
    text = SPAN.sub(lambda match: match[0] * match[0].startswith("$"), FENCE.sub("", text))
    matches = [(match.start(), match[1].strip(), True) for match in DISPLAY.finditer(text)]
    rest = DISPLAY.sub(lambda match: " " * len(match[0]), text)
    matches += [(match.start(), (match[1] or match[2]).strip(), False) for match in INLINE.finditer(rest)]
    return [(tex, display) for _, tex, display in sorted(matches)]


def without_code(text):
    """A page without fenced blocks and formulas, which may contain text that looks like a link."""
    for kind in (FENCE, DISPLAY, INLINE):
        text = kind.sub("", text)
    return text


def links(text):
    """[(whether it is an image, text, target)]."""
    return [(bool(mark), " ".join(words.split()), target) for mark, words, target in LINK.findall(without_code(text))]


def prose(text):
    """The words of running text, without code, formulas, tables, images, exercises and comments."""
    text = re.sub(r"<!--.*?-->|<details>.*?</details>", "", text, flags=re.DOTALL)
    text = without_code(text)
    text = LINK.sub(lambda match: "" if match[1] else match[2], text)
    text = re.sub(r"`[^`]*`", "", text)
    lines = [line for line in text.split("\n") if not line.startswith(("|", "#"))]
    return [word for word in " ".join(lines).split() if re.search(r"\w", word)]


def anchors(text):
    """The anchors of a page's headings, as GitHub generates them."""
    seen = {}
    slugs = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", text), re.MULTILINE):
        words = LINK.sub(lambda match: match[2], heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        repeats = seen.get(slug, 0)
        seen[slug] = repeats + 1
        slugs.add(f"{slug}-{repeats}" if repeats else slug)
    return slugs


def lists(script):
    """The functions to paste -> {"weight": (names, number of lines as stated), "loss": the same or absent}."""
    return {kind: (names.split(), int(lines)) for kind, lines, names in LIST.findall(source(page_of(script)))}


# -------------------------------------------------------------------------------------------------------- parts of code

def definitions(path):
    """{name: source lines} of the top-level functions and classes of a file, including decorators."""
    text = source(path)
    lines = text.split("\n")
    return {node.name: lines[min(d.lineno for d in [*node.decorator_list, node]) - 1:node.end_lineno]
            for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def taken(script, names):
    """Source of functions as a user would paste it, `common.name` from common.py -> (text, number of lines)."""
    parts = [definitions("common.py" if name.startswith("common.") else f"{script}.py")[name.split(".")[-1]]
             for name in names]
    return "\n\n\n".join("\n".join(part) for part in parts), sum(map(len, parts))


def line_of(path, code):
    """Number of the line that defines a name, or of the only line that contains the code.  Raises LookupError."""
    pattern = rf"\s*(def|class) {code}\b" if code.isidentifier() else rf".*{re.escape(code)}"
    numbers = [number for number, line in enumerate(source(path).split("\n"), 1) if re.match(pattern, line)]
    if len(numbers) != 1:
        raise LookupError(f"`{code}` is on {len(numbers)} lines of {path}, but a link needs exactly one")
    return numbers[0]


def claim_of(name):
    """The anchor of a claim in results/claims.md.  Raises LookupError."""
    matches = [anchor for anchor in anchors(source("results/claims.md"))
               if re.fullmatch(rf"{name}-(holds|in-part|fails)", anchor)]
    if len(matches) != 1:
        raise LookupError(f"results/claims.md has {len(matches)} claims named `{name}`")
    return matches[0]


# ----------------------------------------------------------------------------------------------------------- the pages

def mended(page):
    """The text of a page with its numbers and anchors updated from the code.  Raises LookupError."""
    script = os.path.basename(page)[:-3]

    def of_line(match):
        return f"[`{match[1]}`]({match[2]}{match[3]}#L{line_of(match[3], match[1])})"

    def of_claim(match):
        return f"[`{match[1]}`]({match[2]}#{claim_of(match[1])})"

    def of_number(match):
        return f"`{match[1]}:{line_of(match[1], match[3])}` `{match[3]}`"

    def of_list(match):
        size = taken(script, match[3].split())[1]
        return f"{match[1]:6} {size:3}{match[3]}"
    text = LINE.sub(of_line, source(page))
    text = CLAIM.sub(of_claim, text)
    text = NUMBERED.sub(of_number, text)
    return LIST.sub(of_list, text) if script in SCRIPTS else text


def main():
    for page in pages():
        text = mended(page)
        if text != source(page):
            with open(os.path.join(ROOT, page), "w", encoding="utf-8") as file:
                file.write(text)
            print(page)


if __name__ == "__main__":
    try:
        main()
    except LookupError as error:
        sys.exit(str(error))
