"""What a release is: sdist, the wheel built of it, installed where nothing of this checkout is, and used from there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import lingua_synth

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"


def run(*words, cwd, **more):
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, env=env | more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """(sdist, wheel), the wheel built of what is in the sdist, the sdist of the files that are in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    shutil.copytree(ROOT / "lingua_synth", source / "lingua_synth", ignore=shutil.ignore_patterns("__pycache__"))
    sdist = out / run(sys.executable, "-c", BUILD, "sdist", out, cwd=source).split()[-1]
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    unpacked = out / sdist.name.removesuffix(".tar.gz")
    wheel = out / run(sys.executable, "-c", BUILD, "wheel", out, cwd=unpacked).split()[-1]
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """Folder of programs of an environment with the wheel alone; the libraries it needs are borrowed from this one."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps"]
    run(*pip, "--no-index", dist[1], cwd=folder)
    (site,) = folder.glob("lib/python3*/site-packages")
    assert (site / "lingua_synth" / "__init__.py").is_file()
    # Its .pth files are not read, so an editable install of this checkout does not come along.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_every_file_of_the_package_is_in_the_wheel(dist):
    package = Path(lingua_synth.__file__).parent
    ours = {
        f"lingua_synth/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    kinds = {Path(name).parent.as_posix() for name in ours if name.endswith(".yaml")}
    assert {"lingua_synth/generate/recipes", "lingua_synth/study/presets/paper"} <= kinds
    assert {"lingua_synth/evaluate/domain_sets", "lingua_synth/evaluate/task_suites"} <= kinds
    with zipfile.ZipFile(dist[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == ours
    assert dist[1].name == f"lingua_synth-{lingua_synth.__version__}-py3-none-any.whl"


def test_the_sdist_holds_licence_and_pins(dist):
    with tarfile.open(dist[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "constraints.txt", "setup.py", "pyproject.toml"} <= names


def test_the_installed_programs_work_from_anywhere(installed, tmp_path):
    version = lingua_synth.__version__
    where = run(installed / "python", "-c", "import lingua_synth; print(lingua_synth.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent))
    assert run(installed / "lingua-synth", "--version", cwd=tmp_path).strip() == version
    assert "usage: lingua-synth VERB" in run(installed / "python", "-m", "lingua_synth", "--help", cwd=tmp_path)
    assert "textbook" in run(installed / "lingua-synth", "generate", "list", cwd=tmp_path)
    assert "pile14+wikitext" in run(installed / "lingua-synth", "evaluate", "sets", cwd=tmp_path)
    assert "runs" in run(
        installed / "lingua-synth", "study", "plan", "config=paper/data-scaling", "out=s", cwd=tmp_path
    )


def test_torchrun_starts_the_installed_training(installed, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "lingua_synth.train"]
    assert "usage: lingua-synth train" in run(installed / "python", *words, "--help", cwd=tmp_path)
