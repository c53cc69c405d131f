"""Pages whose head people write, and whose tables a benchmark writes below a mark."""

from __future__ import annotations

import argparse
from pathlib import Path


def page_parser(says: str | None) -> argparse.ArgumentParser:
    """A parser that knows the page to write."""
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Markdown file; what follows its mark is replaced")
    return parser


def write_below(page: Path, benchmark: str, text: str) -> None:
    """Put the text below the benchmark's mark; a page that has none yet gets it at its end."""
    mark = f"<!-- tables: benchmarks/{benchmark} -->\n"
    head = page.read_text().partition(mark)[0] if page.is_file() else ""
    page.write_text(f"{head}{mark}{text}\n")
