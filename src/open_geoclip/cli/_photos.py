"""What the commands share that read and write photos' metadata: which files, one line a file, three formats."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from open_geoclip.errors import ImageError

__all__ = ["as_csv", "as_json", "photo_files"]


def photo_files(paths: list[Path]) -> tuple[list[Path], list[dict[str, Any]]]:
    """The photos among files and folders, each once, and a record with an error for each path that holds none."""
    from open_geoclip.images import find_images
    from open_geoclip.metadata.files import once

    files: list[Path] = []
    failed: list[dict[str, Any]] = []
    for path in paths:
        try:
            files += find_images([path])
        except ImageError as error:
            failed.append({"image": error.name, "error": error.reason})
    files, double = once(files)
    if double:
        print(f"geoclip: {len(double):,} named twice, such as {double[0]}: done once", file=sys.stderr)
    return files, failed


def as_json(records: list[dict[str, Any]]) -> str:
    """One list, one object a photo."""
    return json.dumps(records, indent=2, ensure_ascii=False) + "\n"


def as_csv(records: list[dict[str, Any]]) -> str:
    """One row a photo; lists are joined with semicolons."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    for record in records:
        writer.writerow({k: "; ".join(map(str, v)) if isinstance(v, list) else v for k, v in record.items()})
    return file.getvalue()
