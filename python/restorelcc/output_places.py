"""Where an output may not be written: over what it is made of, or in the place of what is no output."""

from __future__ import annotations

from pathlib import Path

__all__ = ["refuse_inputs", "refuse_place"]


def refuse_place(out: Path) -> None:
    """Refuses a directory to write that no directory can take the place of.

    Raises:
        ValueError: a file, or what is or holds the current or the home directory.
    """
    out = Path(out).expanduser().resolve()
    if out.is_file():
        raise ValueError(f"{out} is a file; pass another --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    for place, name in ((Path.cwd(), "the current directory"), (Path.home(), "your home directory")):
        if place == out or out in place.parents:
            raise ValueError(f"{out} is or holds {name} and is not replaced; pass another --out")


def refuse_inputs(out: Path, *inputs: Path) -> None:
    """Refuses an output that is, holds or stands inside something that is read to make it.

    Raises:
        ValueError: naming both.
    """
    out = Path(out).expanduser().resolve()
    for given in inputs:
        place = Path(given).expanduser().resolve()
        if out == place or out in place.parents or place in out.parents:
            relation = "is" if out == place else "holds" if out in place.parents else "is inside"
            raise ValueError(f"{out} {relation} {place}, which is read to make it; pass another --out")
