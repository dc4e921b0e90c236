"""Generated modules on disk: what is kept, damage, other processes, and folders that cannot be written."""

from __future__ import annotations

import subprocess
import sys

import pytest

from patternc import folder as folders
from patternc.codegen import cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(folders.ENVIRONMENT, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def test_a_module_is_a_file_named_by_its_content(folder):
    text = "VALUE = 41\n"
    path = cache.store(text)
    assert path.parent == folder and path.stem == cache.name_of(text) and path.read_text() == text
    assert cache.load(text).VALUE == 41 and cache.load(text) is cache.load(text)
    assert cache.size() == (1, len(text)) and cache.clear() == 1 and cache.size() == (0, 0)


@pytest.mark.parametrize("damage", [b"", b"VALUE = ", b"VALUE = 43\n", b"\xff\xfe"])
def test_a_damaged_file_is_rebuilt(folder, damage):
    text = f"VALUE = 42  # {damage!r}\n"
    cache.store(text).write_bytes(damage)
    assert cache.load(text).VALUE == 42 and cache.store(text).read_text() == text


def test_processes_at_once(folder):
    code = "from patternc.codegen import cache\nfor i in range(200): cache.store(f'VALUE = {i % 5}\\n' * 1000)"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [p.wait() for p in running] == [0, 0, 0]
    assert cache.size()[0] == 5 and all(cache.name_of(p.read_text()) == p.stem for p in folder.glob("*.py"))


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv(folders.ENVIRONMENT, str(blocker / "kernels"))
    with pytest.warns(UserWarning, match="cannot be written"):
        path = cache.store("VALUE = 7\n")
    assert path.exists() and folders.folder() == path.parent


def test_a_directory_in_the_place_of_a_file(folder):
    text = "VALUE = 8\n"
    (folder / f"{cache.name_of(text)}.py" / "x").mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be written .Is a directory."):
        assert cache.load(text).VALUE == 8
    assert cache.size() == (0, 0) and cache.clear() == 0
