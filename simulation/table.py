"""One flat table of all clips of a folder, as Parquet: for pandas, polars, DuckDB or the Hugging Face viewer.

Our own reader needs `index.jsonl` only. pyarrow is an extra because it is 150 MB that nothing else here uses.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newtonrewards.core.run import write_atomic

GROUPS = ("parameters", "events", "captions", "assets")
TRACKS = ("position", "velocity", "acceleration")
LEFT_OUT = (
    *TRACKS,
    *(f"world_{name}" for name in TRACKS),
    "valid",
    "members",
    "shake",
    "intrinsics",
    "extrinsics",
    "visible",
    "bystanders",
)


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A clip's row without its tracks: `parameters.speed_mps` and the like, counts of frames, lists as JSON."""
    made = {key: value for key, value in row.items() if key not in (*GROUPS, *LEFT_OUT)}
    made |= {"num_frames": len(row["valid"]), "valid_frames": sum(row["valid"])}
    for group in GROUPS:
        made |= {f"{group}.{key}": value for key, value in row.get(group, {}).items()}
    return {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in made.items()}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Write the rows as Parquet.

    Returns:
        False where pyarrow isn't installed: nothing is written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return False
    table = [flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in table for key in row))
    buffer = io.BytesIO()
    pq.write_table(pa.table({key: [row.get(key) for row in table] for key in columns}), buffer)
    write_atomic(path, buffer.getvalue())
    return True
