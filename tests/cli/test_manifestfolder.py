"""Files in a folder: our own are replaced and removed, those of others are left alone or stop the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.manifestfolder import write_files, write_folder
from aiaas.errors import EnvironmentFault
from aiaas.manifests.render import MARK

OURS = f"{MARK} from a test\na: 1\n"


def test_files_are_written_into_a_new_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is made, with its parents."""
    folder = tmp_path / "a" / "b"
    write_folder(folder, {"x.yaml": OURS, "kustomization.yaml": OURS})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"x.yaml": OURS, "kustomization.yaml": OURS}
    assert "wrote 2 files to " in capsys.readouterr().err


def test_stale_file_is_removed_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stale file would be applied again, at the latest by `kubectl apply -f` of the folder."""
    write_folder(tmp_path, {"old.yaml": OURS, "kept.yaml": OURS})
    capsys.readouterr()
    write_folder(tmp_path, {"kept.yaml": OURS})
    assert [path.name for path in tmp_path.iterdir()] == ["kept.yaml"]
    assert f"removed {tmp_path / 'old.yaml'}, which is no longer rendered" in capsys.readouterr().err


def test_files_of_others_stay(tmp_path: Path) -> None:
    """A patch or a README beside them is left alone."""
    (tmp_path / "patch.yaml").write_text("a: 1\n")
    (tmp_path / "README.md").write_text("hello\n")
    write_folder(tmp_path, {"x.yaml": OURS})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "patch.yaml", "x.yaml"]


def test_a_file_of_others_in_the_way_stops_everything(tmp_path: Path) -> None:
    """A hand-written kustomization.yaml is not overwritten, and nothing else is written either."""
    (tmp_path / "kustomization.yaml").write_text("resources: []\n")
    with pytest.raises(EnvironmentFault, match=r"kustomization.yaml was not made by aiaas render"):
        write_folder(tmp_path, {"a.yaml": OURS, "kustomization.yaml": OURS})
    assert [path.name for path in tmp_path.iterdir()] == ["kustomization.yaml"]


def test_unchanged_file_is_not_touched(tmp_path: Path) -> None:
    """A second rendering leaves the times of the files as they are."""
    write_folder(tmp_path, {"a.yaml": OURS})
    (tmp_path / "a.yaml").chmod(0o400)
    before = (tmp_path / "a.yaml").stat().st_mtime_ns
    write_folder(tmp_path, {"a.yaml": OURS})
    assert (tmp_path / "a.yaml").stat().st_mtime_ns == before


def test_a_folder_in_the_place_of_a_file_is_in_the_way(tmp_path: Path) -> None:
    """It was not written by aiaas."""
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(EnvironmentFault):
        write_folder(tmp_path, {"a.yaml": OURS})


def test_folders_are_made_and_kept(tmp_path: Path) -> None:
    """A name with a slash at its end is a folder that the operator fills."""
    write_files(tmp_path, {"tls/": "", "config/c.yaml": OURS}, MARK)
    (tmp_path / "tls" / "key").write_text("secret")
    write_files(tmp_path, {"tls/": "", "config/c.yaml": OURS + "b: 2\n"}, MARK)
    assert (tmp_path / "tls" / "key").read_text() == "secret"
    assert (tmp_path / "config" / "c.yaml").read_text() == OURS + "b: 2\n"


def test_files_of_another_target_are_foreign(tmp_path: Path) -> None:
    """Each target has a mark of its own: neither replaces or removes the other's files."""
    other = "# Made by `aiaas render --target compose` from a test\n"
    write_files(tmp_path, {"compose.yaml": other}, "# Made by `aiaas render --target compose`")
    write_folder(tmp_path, {"x.yaml": OURS})
    assert (tmp_path / "compose.yaml").read_text() == other
    with pytest.raises(EnvironmentFault, match="was not made by aiaas render"):
        write_files(tmp_path, {"compose.yaml": OURS}, MARK)
