"""Atomic writes: a name that exists holds a whole file."""

import errno
import os
import subprocess
import sys

import pytest

from lingua_synth import files


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with files.atomic_file(target) as file:
        file.write("first")
        assert not target.exists()
    assert target.read_text() == "first"

    with pytest.raises(OSError, match="No space"), files.atomic_file(target) as file:
        file.write("second, half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_text() == "first"
    assert os.listdir(target.parent) == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder"
    with files.atomic_folder(target) as folder:
        (folder / "x").write_text("1")
    with pytest.raises(RuntimeError), files.atomic_folder(target) as folder:
        (folder / "x").write_text("2")
        raise RuntimeError
    assert (target / "x").read_text() == "1"
    assert os.listdir(tmp_path) == ["folder"]


def test_json_errors_name_the_file_and_what_is_there(tmp_path):
    (tmp_path / "here.json").write_text("{")
    with pytest.raises(ValueError, match=r"gone\.json.*holds: here\.json"):
        files.read_json(tmp_path / "gone.json")
    with pytest.raises(ValueError, match=r"here\.json is not valid JSON"):
        files.read_json(tmp_path / "here.json")


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_identity_ignores_key_order_and_sees_every_value():
    assert files.sha256_json({"a": 1, "b": 2}) == files.sha256_json({"b": 2, "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 1.5})


def test_a_locked_folder_is_refused_and_freed_by_death(tmp_path):
    code = (
        "import sys, time; from lingua_synth.files import folder_lock\n"
        f"with folder_lock({str(tmp_path)!r}, 'test'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"in use by test, process {holder.pid}"), files.folder_lock(tmp_path, "test"):
        pass
    holder.kill()
    holder.wait()
    with files.folder_lock(tmp_path, "test"):
        pass
