"""A user's files that are called as our packages are, and raise when they are imported."""

from pathlib import Path

SHADOWS = ("index.py", "serving.py", "pipeline.py", "flows/__init__.py")


def add_shadows(folder: Path) -> Path:
    """Writes the files into a folder, and returns the folder."""
    for name in SHADOWS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise AssertionError({str(path)!r} + ' was imported in place of our package')\n")
    return folder
