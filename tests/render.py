"""The pages as a browser shows them: Markdown and formulas converted, links and pictures checked in what comes out.

    npm install --prefix /tmp/katex katex && python tests/render.py --katex /tmp/katex --out /tmp/pages

writes a page of HTML for README.md and each page of docs/ and results/, and ends with a sentence for every formula that
KaTeX refuses, every link, anchor or picture that is not there and every picture whose text says nothing. Needs
markdown-it-py; without KaTeX (or node) formulas stay as they are, and are not checked. With chromium, a picture of a
page:

    chromium --headless --no-sandbox --screenshot=page.png --window-size=1280,4000 /tmp/pages/docs/ppo_passk.html
"""
import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

from references import DISPLAY, FENCE, INLINE, ROOT, SPAN, anchors, pages, source

RESULTS = ["results/README.md", "results/claims.md", "results/elsewhere.md", "results/speed.md", "results/which.md"]
PROGRAM = """
const katex = require(process.argv[1] + "/node_modules/katex");
const found = JSON.parse(require("fs").readFileSync(0)).map(([tex, display]) => {
    try {
        return [katex.renderToString(tex, {displayMode: display, throwOnError: true, strict: "error"}), null];
    } catch (error) {
        return [null, error.message];
    }
});
console.log(JSON.stringify(found));
"""
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 sans-serif; max-width: 1012px; margin: auto; padding: 16px; background: #fff; color: #1f2328; }
pre { overflow: auto; padding: 16px; background: #8881; } code { background: #8882; padding: .1em .3em; }
pre code { background: none; padding: 0; } img { max-width: 100%; } .formula { overflow-x: auto; }
table { display: block; overflow: auto; border-collapse: collapse; } td, th { border: 1px solid #8886; padding: 6px; }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #f0f6fc; } a { color: #4493f8; } }
"""


def katex(formulas, folder):
    """[(HTML, None) or (None, what is wrong)] of [(TeX, display)]."""
    done = subprocess.run(["node", "-e", PROGRAM, os.path.abspath(folder)], input=json.dumps(formulas),
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"node cannot run KaTeX of {folder}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def put_aside(text):
    """Markdown -> (the same with a word in the place of each formula, [(TeX, display)])."""
    kept = []
    found = []

    def keep(match):
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"

    def take(display):
        def place(match):
            tex = match[1] or match[2]
            found.append((tex.strip(), display))
            return f"FORMULA{len(found) - 1}X"
        return place
    text = FENCE.sub(keep, text)
    text = SPAN.sub(lambda match: match[0] if match[0].startswith("$") else keep(match), text)
    text = DISPLAY.sub(take(True), text)
    text = INLINE.sub(take(False), text)
    return re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], text), found


def convert(path, folder=None):
    """A page -> (body as HTML, [what is wrong with its formulas])."""
    from markdown_it import MarkdownIt
    text, formulas = put_aside(source(path))
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    shown = [(html.escape(tex), None) for tex, _ in formulas]
    if folder:
        shown = katex(formulas, folder)
    faults = [f"{path}: {why}: {formulas[i][0]}" for i, (_, why) in enumerate(shown) if why]

    def formula(match):
        i = int(match[1])
        tag = "div" if formulas[i][1] else "span"
        return f'<{tag} class="formula">{shown[i][0] or html.escape(formulas[i][0])}</{tag}>'
    return re.sub(r"FORMULA(\d+)X", formula, body), faults


class Targets(HTMLParser):
    """What the links and pictures of a page point at."""

    def __init__(self):
        super().__init__()
        self.links = []
        self.pictures = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "a":
            self.links.append(given.get("href") or "")
        if tag == "img":
            self.pictures.append((given.get("src") or "", given.get("alt") or ""))


def dead(path, body):
    """A sentence for each link, anchor or picture of a page that is not there, or says nothing."""
    targets = Targets()
    targets.feed(body)
    faults = [f"{path}: the text of {target} says nothing" for target, text in targets.pictures
              if len(text.split()) < 4]
    for target in targets.links + [target for target, _ in targets.pictures]:
        name, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
        if not os.path.exists(os.path.join(ROOT, file)):
            faults.append(f"{path}: {target} is not there")
        elif anchor and file.endswith(".md") and anchor not in anchors(source(file)):
            faults.append(f"{path}: {target} has no such heading")
        elif anchor and file.endswith(".py") and int(anchor.removeprefix("L")) > source(file).count("\n"):
            faults.append(f"{path}: {target} has no such line")
    return faults


def write(path, body, folder, out):
    """A page of HTML, with what it shows beside it."""
    style = ""
    if folder:
        place = os.path.join(out, "katex")
        shutil.copytree(os.path.join(folder, "node_modules", "katex", "dist"), place, dirs_exist_ok=True)
        up = "../" * path.count("/")
        style = f'<link rel="stylesheet" href="{up}katex/katex.min.css">'
    file = os.path.join(out, path.removesuffix(".md") + ".html")
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(f'<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">{style}'
                     f"<style>{STYLE}</style><title>{path}</title><body>{body}</body>\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--katex", help="folder that npm installed KaTeX into")
    parser.add_argument("--out", help="folder for the pages as HTML")
    args = parser.parse_args(argv)
    faults = []
    for path in [*pages(), *RESULTS]:
        body, wrong = convert(path, args.katex)
        faults += wrong + dead(path, body)
        if args.out:
            write(path, body, args.katex, args.out)
    if args.out:
        figures = os.path.join(ROOT, "results", "figures")
        shutil.copytree(figures, os.path.join(args.out, "results", "figures"), dirs_exist_ok=True)
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
