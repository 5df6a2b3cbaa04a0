from pathlib import Path

import pytest

from rlhf.models.folders import replaced_folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with something in it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/former").touch()
    return tmp_path / "model"


def test_the_new_folder_takes_the_place_of_the_old(folder):
    with replaced_folder(folder, 0) as partial:
        (partial / "new").touch()
        assert (folder / "former").exists()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(folder.parent.iterdir()) == [folder]


def test_parents_are_made(tmp_path):
    with replaced_folder(tmp_path / "a/b", 0):
        pass
    assert (tmp_path / "a/b").is_dir()


@pytest.mark.parametrize("step", ["writing", "putting in place"])
def test_after_a_failure_the_old_folder_is_still_there(folder, monkeypatch, step):
    rename = Path.rename

    def fails(path, target):
        if ".partial-" in path.name:
            raise PermissionError(target)
        return rename(path, target)

    if step == "putting in place":
        monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(PermissionError), replaced_folder(folder, 0) as partial:
        (partial / "new").touch()
        if step == "writing":
            raise PermissionError
    assert [path.name for path in folder.iterdir()] == ["former"]
    assert list(folder.parent.iterdir()) == [folder]
