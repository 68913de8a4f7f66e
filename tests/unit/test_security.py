"""Files and names from others: nothing in them runs, leaves its folder or reaches a shell; secrets stay unwritten."""

import ast
import io
import json
import os
import pickle
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import lingua_synth
from lingua_synth.config import build_args, parse_args
from lingua_synth.files import refuse_path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "0.4.0"
CHECKPOINT = Path("run", "checkpoints", "0000000008")
NAMES = ["../x", "..", ".", "/nowhere/x", "a/b", "a\\b", "x\0.json", ""]


class Runs:
    """What a pickle of somebody else's may hold: a file that is made when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """A folder that stands there once anything has run."""
    (tmp_path / "probe").mkdir()
    pickle.loads(pickle.dumps(Runs(tmp_path / "probe" / "works")))
    assert (tmp_path / "probe" / "works").is_dir()
    return tmp_path / "ran"


@pytest.fixture
def old(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "old")
    return tmp_path / "old"


def everything_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- checkpoints ---


def test_the_description_of_a_checkpoint_runs_nothing(old, mark):
    from lingua_synth.model.checkpoint import load_checkpoint
    from lingua_synth.model.checkpoint_reading import CheckpointReader

    CheckpointReader(old / CHECKPOINT).read_metadata()
    (old / CHECKPOINT / ".metadata").write_bytes(pickle.dumps(Runs(mark)))
    with pytest.raises(ValueError, match=r"not the description of a checkpoint alone \(it names posix\.mkdir\)"):
        load_checkpoint(old / "run")
    assert not mark.exists()


@pytest.mark.parametrize("value", [["torch", "save"], {"state": 1}])
def test_a_description_of_another_thing_is_refused(old, value):
    from lingua_synth.model.checkpoint import load_checkpoint

    (old / CHECKPOINT / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match="describes no checkpoint"):
        load_checkpoint(old / "run")


def test_an_optimizer_s_value_runs_nothing(old, mark, tmp_path):
    """Values that are no tensors lie as pickles of their own among the tensors."""
    import torch
    import torch.distributed.checkpoint as dcp

    from lingua_synth.model.checkpoint_reading import read_state

    dcp.save({"optim": {"lr": 0.5, "betas": (0.9, 0.95)}}, checkpoint_id=tmp_path / "good", no_dist=True)
    state = {"optim": {"lr": 0.0, "betas": (0.0, 0.0)}}
    read_state(state, tmp_path / "good", no_dist=True)
    assert state == {"optim": {"lr": 0.5, "betas": (0.9, 0.95)}}
    dcp.save({"optim": {"lr": Runs(mark)}}, checkpoint_id=tmp_path / "bad", no_dist=True)
    with pytest.raises(ValueError, match=r"optim\.lr in the checkpoint is no plain value"):
        read_state({"optim": {"lr": 0.0}}, tmp_path / "bad", no_dist=True)
    assert not mark.exists()
    buffer = io.BytesIO()
    torch.save({"model": Runs(mark)}, buffer)
    shutil.copy(old / CHECKPOINT / "params.json", tmp_path / "params.json")
    (tmp_path / "consolidated.pth").write_bytes(buffer.getvalue())
    from lingua_synth.model.checkpoint import load_model

    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load_model(tmp_path)
    assert not mark.exists()


def test_tensors_are_read_from_the_checkpoint_s_folder_alone(old):
    from lingua_synth.model.checkpoint import load_checkpoint
    from lingua_synth.model.checkpoint_reading import CheckpointReader

    metadata = CheckpointReader(old / CHECKPOINT).read_metadata()
    for info in metadata.storage_data.values():
        info.relative_path = "../../../elsewhere.distcp"
    (old / CHECKPOINT / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="only files of its own folder"):
        load_checkpoint(old / "run")


def calls_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            yield f"{node.func.value.id}.{node.func.attr}", {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_nothing_in_the_code_unpickles_or_reads_unsafe_yaml_or_starts_a_shell():
    """A pickle is read in one place, our own worker's error that was just written; `.metadata` by a restricted one."""
    read = []
    for path in [*Path(lingua_synth.__file__).parent.rglob("*.py"), *(ROOT / "apps").glob("*.py")]:
        for name, keywords in calls_of(path):
            where = f"{path.relative_to(ROOT)}: {name}"
            assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"), where
            assert keywords.get("shell") != "True", where
            assert keywords.get("trust_remote_code") != "True", where
            if name == "torch.load":
                assert keywords["weights_only"] == "True", where
            if name == "np.load":
                assert keywords.get("allow_pickle", "False") == "False", where
            if name == "dcp.load":
                assert "planner" in keywords and "storage_reader" in keywords, where
            read += [where] * (name in ("pickle.load", "pickle.loads"))
    assert read == ["lingua_synth/tokens/workers.py: pickle.loads"]


def test_yaml_that_would_run_code_is_refused(tmp_path):
    from lingua_synth.evaluate.domain_sets import load_domain_set
    from lingua_synth.generate import load_recipe
    from lingua_synth.study import read_study
    from lingua_synth.train.args import TrainArgs

    mark = tmp_path / "ran"
    text = f"name: !!python/object/apply:os.mkdir ['{mark}']\ndomains: {{a: }}\n"
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(text)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    for read in (
        lambda: parse_args(TrainArgs, [f"config={file}"]),
        lambda: read_study(str(file)),
        lambda: load_recipe(str(file)),
        lambda: load_domain_set(str(file)),
    ):
        with pytest.raises(ValueError, match="YAML"):
            read()
    assert not mark.exists()


# --- names that become files ---


@pytest.mark.parametrize("name", [*NAMES, None, 3])
def test_what_is_no_file_of_a_folder_is_refused(name):
    with pytest.raises(ValueError, match="only files of its own folder"):
        refuse_path(name, "manifest.json")


@pytest.mark.parametrize("name", NAMES)
def test_manifests_name_files_of_their_own_folder_alone(old, name):
    from lingua_synth.generate import verify
    from lingua_synth.generate.store import read_shard
    from lingua_synth.scaling import load_runs
    from lingua_synth.scaling.stored import read_fits
    from lingua_synth.tokens import TokenSource

    def edit(file, change):
        content = json.loads((old / file).read_text())
        change(content)
        (old / file).write_text(json.dumps(content))

    edit("shards/manifest.json", lambda content: content["files"][0].update(name=name))
    edit("generated/manifest.json", lambda content: content["shards"][0]["files"].update({name: {"bytes": 1}}))
    edit("generated/shard-00000.json", lambda content: content["files"].update({name: {"bytes": 1}}))
    edit("fits/fits.json", lambda content: content.update(resamples={"file": name, "facts": []}))
    for read in (
        lambda: TokenSource(old / "shards"),
        lambda: verify(old / "generated"),
        lambda: read_shard(old / "generated", 0),
        lambda: read_fits(old / "fits", load_runs(old / "runs.csv")),
    ):
        with pytest.raises(ValueError, match="only files of its own folder"):
            read()


@pytest.mark.parametrize("name", ["../x", "/nowhere/x", "a/b", ".hidden", "a\\b", "x\0"])
def test_a_run_s_name_is_a_folder_s(name):
    from lingua_synth.study import StudyArgs, plan_study

    study = {
        "out": "s",
        "sizes": ["nano-27k"],
        "budgets": ["1M"],
        "sources": {"cc": {"path": "shards/cc"}},
        "mixtures": {name: {"ratios": {"cc": "1"}}},
        "train": {"data": {"seq_len": 128, "batch_size": 4}, "synth": {"global_batch_tokens": 4096}},
    }
    with pytest.raises(ValueError, match="cannot have a folder of its name"):
        plan_study(build_args(StudyArgs, study), draft=True)


@pytest.mark.parametrize("name", ["../x", "/nowhere/x", "a/b", "..", "x\0y"])
def test_domains_and_ids_of_documents_write_no_file_elsewhere(tmp_path, name):
    """Ids and metadata come with documents: whatever they are, files are made below `out` alone."""
    from lingua_synth.documents import read_documents
    from lingua_synth.evaluate.split import split_domains
    from lingua_synth.generate import build_engine, generate
    from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize

    work = tmp_path / "deep" / "work"
    work.mkdir(parents=True)
    row = {"id": name, "text": "A short text on rivers and stones.", "meta": {"pile_set_name": name, "file": name}}
    (work / "in.jsonl").write_text(json.dumps(row) + "\n")
    tokenize(str(work / "in.jsonl"), work / "shards", build_tokenizer("bytes"), progress=False)
    assert TokenSource(work / "shards").document_id(0) == name
    recipe = {"name": name, "description": "x", "steps": [{"name": "a", "user": "{document}"}]}
    (work / "in.yaml").write_text(json.dumps(recipe))
    generate(str(work / "in.jsonl"), work / "made", str(work / "in.yaml"), build_engine("mock"), progress=False)
    (document,) = read_documents(str(work / "made"))
    assert (document.meta["synth"]["source_id"], document.meta["synth"]["recipe"]) == (name, name)
    split_domains(str(work / "in.jsonl"), work / "split", progress=False)
    assert everything_below(tmp_path)[:2] == ["deep", "deep/work"]
    assert {path.split("/")[2] for path in everything_below(tmp_path)[2:]} == {
        "in.jsonl",
        "in.yaml",
        "shards",
        "made",
        "split",
    }
    assert not Path("/nowhere").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_domain_s_name_is_a_file_s(name):
    from lingua_synth.evaluate.domain_sets import load_domain_set, resolve_domains

    with pytest.raises(ValueError, match="cannot name a domain"):
        resolve_domains(load_domain_set("custom"), named={name: "texts.jsonl"})


# --- shells ---


def test_names_with_quotes_and_dollars_reach_no_shell(tmp_path):
    """The line that `launch.dry_run` prints, its words noted by printf in place of Python."""
    from lingua_synth.study.node import run_command_words

    odd = tmp_path / 'it\'s $(touch ran) `touch ran`; touch ran & "x" *' / "run.yaml"
    words = [str(word) for word in run_command_words(odd, 1)]
    assert any(str(odd) in word for word in words)
    said = subprocess.run(
        ["bash", "-c", "printf '%s\\0' " + shlex.join(words)], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert said.decode().split("\0")[:-1] == words
    assert not (tmp_path / "ran").exists()


def test_a_study_in_a_folder_of_an_odd_name_is_submitted_as_it_is_called(tmp_path):
    """sbatch's script, run by bash with an srun that notes its words."""
    pytest.importorskip("submitit")
    from lingua_synth.study.launch import slurm_script
    from lingua_synth.study.launch_args import LaunchArgs

    folder = tmp_path / "it's $(touch ran) `touch ran`; touch ran & x"
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {shlex.quote(str(tmp_path / 'words'))}\n")
    srun.chmod(0o755)
    script = slurm_script(folder, LaunchArgs(engine="slurm"))
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, check=True, capture_output=True)
    words = (tmp_path / "words").read_text().split("\0")
    assert any(word.startswith(str(folder)) for word in words)
    assert not (tmp_path / "ran").exists()


# --- secrets ---


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password"])
def test_a_secret_in_the_config_is_refused_before_anything_is_written(train_args, tmp_path, name):
    from lingua_synth.train import train

    for section in ({"env": {name: "hush-hush"}}, {"logging": {"wandb": {name.lower(): "hush-hush"}}}):
        with pytest.raises(ValueError, match="would be written into the run's folder") as caught:
            train(train_args(section))
        assert "hush" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_secret_of_the_environment_is_in_no_file_of_a_run(train_args, tmp_path, monkeypatch):
    from lingua_synth.train import train

    monkeypatch.setenv("WANDB_API_KEY", "hush-hush")
    monkeypatch.setenv("LINGUA_SYNTH_API_KEY", "hush-hush")
    train(train_args({"env": {"NCCL_DEBUG": "WARN"}}))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if b"hush-hush" in path.read_bytes()]
