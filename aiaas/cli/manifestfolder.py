"""`aiaas render --output-dir`: one file for each object, and a kustomization.yaml that lists them in order.

Rules:
  1. Only files that `aiaas render` made, by the mark in their first line, are replaced or removed. One of somebody else
     that is in the way stops everything before a byte is written; other files are left alone.
  2. What an earlier rendering left and this one does not have is removed, and said: `kubectl apply -k` would go on
     applying it.
  3. A file that would not change is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aiaas.cli.common import note
from aiaas.errors import EnvironmentFault
from aiaas.manifests.render import MARK


def write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Make `folder` hold `files` (name -> text). Raises EnvironmentFault where a file of somebody else is in the
    way."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        if (folder / name).exists() and not _is_ours(folder / name):
            raise EnvironmentFault(f"{folder / name} was not made by aiaas render; remove it, or choose another folder")
    stale = [path for path in sorted(folder.glob("*.yaml")) if path.name not in files and _is_ours(path)]
    for name, text in files.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in stale:
        path.unlink()
        note(f"removed {path}, which is rendered no more; in the cluster it stays until it is deleted there")
    note(f"wrote {len(files)} files to {folder}; apply them with: kubectl apply -k {folder}")


def keep_keys(path: Path) -> None:
    """Raises EnvironmentFault where an earlier rendering left the Secret with the keys, and there is no key file now.

    A GitOps tool that prunes would delete the live one, and with it everybody's access.
    """
    if _is_ours(path):
        raise EnvironmentFault(f"{path} holds keys, and there is no key file to make it from; render where that is")


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MARK.encode())) == MARK.encode()
