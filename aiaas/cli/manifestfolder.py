"""`aiaas render --output-dir`: write the files of a rendering into a folder.

Rules:
  1. Replace or remove only files that `aiaas render` made for the same target, known by the mark in their first line.
     If a foreign file has a name that is needed, stop before a byte is written; leave other files alone.
  2. Remove objects that only an earlier rendering made, and report that: `kubectl apply -k` would go on applying them.
  3. Do not touch a file that would not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aiaas.cli.outcome import note
from aiaas.errors import EnvironmentFault
from aiaas.manifests.render import MARK


def write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Make `folder` hold the objects in `files` (name -> text), and no others of ours. Raises as `write_files`."""
    stale = [path for path in sorted(folder.glob("*.yaml")) if path.name not in files and _is_ours(path, MARK)]
    write_files(folder, files, MARK)
    for path in stale:
        path.unlink()
        note(f"removed {path}, which is no longer rendered; its object stays in the cluster until you delete it")
    note(f"wrote {len(files)} files to {folder}; apply them with: kubectl apply -k {folder}")


def write_files(folder: Path, files: Mapping[str, str], mark: str) -> None:
    """Write `files` (name -> text) into `folder`; a name that ends in a slash is a folder.

    Raises EnvironmentFault if one of the names is taken by a file without `mark`.
    """
    for name in files:
        path = folder / name
        if not name.endswith("/") and path.exists() and not _is_ours(path, mark):
            raise EnvironmentFault(f"{path} was not made by aiaas render; remove it, or choose another folder")
    for name, text in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def keep_keys(path: Path) -> None:
    """Raises EnvironmentFault if an earlier rendering left the Secret with the keys, and the key file is missing now.

    A GitOps tool that prunes would delete the live Secret and lock everybody out.
    """
    if _is_ours(path, MARK):
        raise EnvironmentFault(f"{path} holds keys, but the key file is missing; render where the key file is")


def _is_ours(path: Path, mark: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(mark.encode())) == mark.encode()
