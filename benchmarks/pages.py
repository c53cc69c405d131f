"""Pages whose head people write, and whose tables a benchmark writes below a mark."""

from __future__ import annotations

import argparse
from pathlib import Path


def page_parser(says: str | None) -> argparse.ArgumentParser:
    """A parser that knows the page to write."""
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="Markdown file; what stands from its mark to the next heading is replaced",
    )
    return parser


def write_below(page: Path, benchmark: str, text: str) -> None:
    """Put the text between the benchmark's mark and the next heading; a page without the mark gets it at its end."""
    mark = f"<!-- tables: benchmarks/{benchmark} -->\n"
    head, _, old = (page.read_text() if page.is_file() else "").partition(mark)
    _, heading, rest = old.partition("\n## ")
    page.write_text(f"{head}{mark}{text}\n{heading}{rest}")
