#!/usr/bin/env python3
"""Turns the HTML pages of the Debian Administrator's Handbook into two plain texts for the demo.

    tools/handbook-text.py .../debian-handbook/html/en-US --calibration demo/calibration.txt \\
        --evaluation demo/evaluation.txt

Pages are taken in reading order. Those from the page --held-out-from on go to the evaluation text, so that
the model is never measured on what it was calibrated with. Listings are left out: what is kept is prose.
"""

import argparse
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """The headings and paragraphs of one page, and the name of the next."""

    HEADINGS = ("h1", "h2", "h3", "h4")
    VOID = ("br", "hr", "img", "link", "meta", "input", "col")

    def __init__(self, file: Path):
        super().__init__(convert_charrefs=True)
        self.next: str | None = None
        self.blocks: list[str] = []
        self.open: list[str] = []  # of each open element: "block", "skip" or ""
        self.text: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        if tag == "link" and names.get("rel") == "next":
            self.next = names["href"]
        if tag in self.VOID:
            return
        is_block = tag in self.HEADINGS or names.get("class") == "para"
        if is_block:
            self.end_block()
        self.open.append("block" if is_block else "skip" if tag == "pre" else "")

    def handle_startendtag(self, tag, attributes):
        if tag in self.VOID:
            self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        if tag not in self.VOID and self.open and self.open.pop() == "block":
            self.end_block()

    def handle_data(self, data):
        if "block" in self.open and "skip" not in self.open:
            self.text.append(data)

    def end_block(self):
        block = " ".join("".join(self.text).split())
        self.text.clear()
        if block:
            self.blocks.append(block)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("book", type=Path, metavar="HTML_DIR", help="the folder with index.html")
    arguments.add_argument("--calibration", type=Path, required=True, metavar="FILE")
    arguments.add_argument("--evaluation", type=Path, required=True, metavar="FILE")
    arguments.add_argument("--held-out-from", default="workstation.html", metavar="PAGE",
                           help="the first page of the evaluation text (default: %(default)s)")
    options = arguments.parse_args()
    if not (options.book / "index.html").is_file():
        raise SystemExit(f"{options.book} has no index.html; mend: name the book's folder of one language")

    pages: dict[str, list[str]] = {}
    name = Page(options.book / "index.html").next
    while name and name not in pages:
        page = Page(options.book / name)
        pages[name] = page.blocks
        name = page.next
    names = list(pages)
    if options.held_out_from not in names[1:]:
        raise SystemExit(
            f"no page {options.held_out_from}; mend: --held-out-from with one of {', '.join(names)}"
        )
    split = names.index(options.held_out_from)
    for file, part in (options.calibration, names[:split]), (options.evaluation, names[split:]):
        text = "\n\n".join(block for name in part for block in pages[name]) + "\n"
        file.write_text(text, encoding="utf-8")
        print(f"{file}: {len(text.split())} words from {len(part)} pages")


if __name__ == "__main__":
    main()
