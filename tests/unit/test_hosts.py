"""Meta Lingua as host, without a Lingua: our keys in its words, what is refused, which Lingua is known."""

import sys
import types

import pytest
import yaml

from lingua_synth.documents import Document
from lingua_synth.hosts import fingerprint
from lingua_synth.hosts import lingua as host
from lingua_synth.hosts.command import main
from lingua_synth.hosts.corrections import CORRECTIONS, log_lines
from lingua_synth.hosts.plain import plain_config, refuse_impossible, refuse_impossible_in_host
from lingua_synth.hosts.resolve import resolve
from lingua_synth.model import preset
from lingua_synth.tokens import build_tokenizer, tokenize
from lingua_synth.train.args import resolve_args


def resolved(args, dp_size=1):
    return resolve_args(args, dp_size=dp_size, vocab_size=258)


def test_plain_keys_hold_what_presets_and_budgets_say(train_args):
    args = train_args(
        {"model": {"dim": 512, "n_layers": 8, "n_heads": 8, "multiple_of": 256}, "synth": {"preset": "nano-107k"}}
    )
    config = plain_config(resolved(args, dp_size=2))
    assert not {"host", "synth"} & set(config)
    assert (config["steps"], config["grad_acc_steps"], config["optim"]["warmup"]) == (12, 1, 1)
    assert config["distributed"]["dp_replicate"] == 2
    assert config["model"]["dim"] == preset("nano-107k").dim and config["model"]["vocab_size"] == 258
    assert not any(key.startswith("rope_scaling") for key in config["model"])
    assert set(config["data"]["tokenizer"]) == {"name", "path"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"synth": {"document_masking": True}},
            r"synth\.document_masking cannot be had in Meta Lingua's loop: .*native",
        ),
        ({"model": {"rope_scaling_factor": 8.0}}, r"model\.rope_scaling_factor cannot"),
        ({"synth": {"guard": {"spike": "skip"}}}, r"synth\.guard\.spike cannot"),
        ({"synth": {"guard": {"nonfinite": "skip"}}}, r"synth\.guard\.nonfinite cannot"),
        ({"optim": {"scheduler": "constant"}}, r"constant schedule has no warm-up; set optim\.warmup=0"),
        ({"optim": {"scheduler": "inv_sqrt"}, "synth": {"warmup_ratio": 0.0}}, r"inv_sqrt schedule divides by it"),
        ({"host": "lingua", "probe_freq": 2}, r"probe_freq 2 equals profiling\.mem_steps"),
        (
            {
                "host": "lingua",
                "probe_freq": 3,
                "distributed": {"selective_activation_checkpointing": True},
            },
            "exclude each other",
        ),
    ],
)
def test_what_lingua_cannot_do_is_refused_in_words(train_args, change, message):
    with pytest.raises(ValueError, match=message):
        refuse_impossible(resolved(train_args(change)))


def test_what_the_host_alone_cannot_do_is_refused_too(train_args):
    with pytest.raises(ValueError, match=r"tp_size 2: host=lingua does not divide layers; use stock"):
        refuse_impossible_in_host(train_args({"host": "lingua", "distributed": {"tp_size": 2}}))
    fp8 = {"float8_recipe": "rowwise", "float8_filter": ".*"}
    with pytest.raises(ValueError, match="takes in the output matrix"):
        refuse_impossible_in_host(train_args({"host": "lingua", "distributed": fp8}))
    refuse_impossible_in_host(train_args({"host": "lingua", "distributed": {"float8_recipe": "rowwise"}}))


def test_without_a_gpu_the_host_says_so(train_args, monkeypatch):
    monkeypatch.setattr(host.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="Meta Lingua trains on CUDA, and local rank 0 has no GPU"):
        host.train(train_args({"host": "lingua"}))


def test_each_rank_has_its_gpu_or_a_message(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(host.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(host.torch.cuda, "device_count", lambda: 4)
    assert [host.gpu(rank).index for rank in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"local rank 4 has no GPU \(this machine has 4\)"):
        host.gpu(4)
    monkeypatch.setattr(host.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="local rank 1 has no GPU"):
        host.gpu(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # srun --gpus-per-task=1
    assert host.gpu(1).index == 0


@pytest.fixture
def no_lingua(monkeypatch, tmp_path):
    """No Lingua to import, whatever this machine has."""
    monkeypatch.delenv("LINGUA_DIR", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apps", "lingua")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_missing_lingua_is_named_with_the_way_to_get_it(no_lingua, monkeypatch):
    with pytest.raises(
        ValueError, match=r"there is no module apps.*git clone https://github\.com/facebookresearch/lin"
    ):
        host.import_lingua()
    monkeypatch.setenv("LINGUA_DIR", str(no_lingua))
    with pytest.raises(ValueError, match=r"is no checkout of Meta Lingua: no apps/main/train\.py in it"):
        host.import_lingua()


def write_package(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        for folder in (root / path).relative_to(root).parents:
            if folder.name:
                (root / folder / "__init__.py").touch()
        (root / path).write_text(text)


def test_what_lingua_needs_and_is_not_there_is_named(no_lingua, monkeypatch):
    write_package(no_lingua, {"apps/main/train.py": "import xformers_that_is_not_there"})
    monkeypatch.setenv("LINGUA_DIR", str(no_lingua))
    monkeypatch.setitem(sys.modules, "apps", types.ModuleType("apps"))  # a folder of that name, imported before
    with pytest.raises(ValueError, match="found and needs xformers_that_is_not_there, which is not installed"):
        host.import_lingua()


def test_an_unknown_lingua_is_refused_by_what_differs(no_lingua, monkeypatch):
    files = {}
    for module, names in fingerprint.SYMBOLS.items():
        path = module.replace(".", "/") + ".py"
        files[path] = "\n".join(f"def {name}():\n    return {name!r}\n" for name in names)
    write_package(no_lingua, files)
    monkeypatch.setenv("LINGUA_DIR", str(no_lingua))
    with pytest.raises(
        ValueError, match=r"not one that was tested: apps\.main\.train\.TrainArgs, .*lingua_allow_unknown"
    ):
        host.import_lingua()
    assert host.import_lingua(allow_unknown=True).commit == "unknown"

    found = fingerprint.fingerprint(host.import_lingua(allow_unknown=True).modules)
    monkeypatch.setitem(fingerprint.KNOWN, fingerprint.TESTED_COMMIT, found)
    known = host.import_lingua()
    assert (known.commit, known.where) == (fingerprint.TESTED_COMMIT, no_lingua)

    changed = dict(found, **{"lingua.optim.build_lr_fn": "0" * 12})
    with pytest.raises(ValueError, match=r"tested: lingua\.optim\.build_lr_fn differ"):
        fingerprint.validate_known(changed, "there", allow_unknown=False)
    gone = dict(found, **{"lingua.optim.build_lr_fn": ""})
    with pytest.raises(ValueError, match=r"has no lingua\.optim\.build_lr_fn; check out"):
        fingerprint.validate_known(gone, "there", allow_unknown=True)


def test_the_known_fingerprint_covers_every_symbol():
    expected = {f"{module}.{name}" for module, names in fingerprint.SYMBOLS.items() for name in names}
    assert all(set(symbols) == expected for symbols in fingerprint.KNOWN.values())


def test_every_correction_has_its_line():
    assert len(log_lines(strict=False)) == len(CORRECTIONS) == len({one.name for one in CORRECTIONS})
    assert all(line.startswith("corrected: ") for line in log_lines(strict=False))
    assert all("left as in Meta Lingua" in line for line in log_lines(strict=True))


# --- resolve ---


@pytest.fixture
def chunks(tmp_path):
    """Two sources as Lingua's chunk folders, the second with documents of three times the length, and their shards."""
    made = {}
    for name, length in (("short", 40), ("long", 120)):
        folder = tmp_path / "texts" / name
        folder.mkdir(parents=True)
        documents = [Document(f"{name}{i}", chr(97 + i % 20) * length, {}) for i in range(60)]
        lines = [f'{{"text": "{document.text}"}}\n' for document in documents]
        (folder / f"{name}.chunk.00.jsonl").write_text("".join(lines))
        tokenize(documents, tmp_path / "shards" / name, build_tokenizer("bytes"), progress=False)
        made[name] = {"path": str(tmp_path / "shards" / name), "documents": str(folder), "ratio": "1/2"}
    return made


def test_resolved_weights_give_the_ratios_of_tokens_by_documents(train_args, chunks):
    args = train_args()
    args.synth.sources.clear()
    found = resolve(with_sources(args, chunks))
    weights = found.config["data"]["sources"]
    assert set(weights) == {"short", "long"} and abs(sum(weights.values()) - 1) < 1e-12
    tokens = {name: weights[name] * (length + 2) for name, length in (("short", 40), ("long", 120))}
    assert abs(tokens["short"] - tokens["long"]) < 1e-9
    assert found.config["data"]["root_dir"].endswith("texts")
    assert any("by DOCUMENT" in note for note in found.notes)
    assert found.summary == ("12 steps of 256 tokens (1 ranks x 2 micro-batches x 4 sequences of 32) = 3,072 tokens")


def with_sources(args, sources):
    from lingua_synth.mixture.args import SourceArgs

    args.synth.sources = {name: SourceArgs(**source) for name, source in sources.items()}
    return args


def test_resolved_without_shards_or_chunks_says_what_is_missing(train_args, chunks, tmp_path):
    args = with_sources(train_args({"data": {"tokenizer": {"name": "bytes"}}}), chunks)
    for source in args.synth.sources.values():
        source.path = str(tmp_path / "not_yet")
    found = resolve(args)
    assert found.config["data"]["sources"] == {"short": 0.5, "long": 0.5}
    assert any("longer documents will have more than their share" in note for note in found.notes)
    args.synth.sources["long"].documents = "python://"
    found = resolve(args)
    assert found.config["data"]["root_dir"] is None
    assert any(note.startswith("MISSING: data.root_dir") and "of long are none" in note for note in found.notes)
    args.data.tokenizer.name = ""
    with pytest.raises(ValueError, match=r"nothing names the vocabulary: set data\.tokenizer\.name"):
        resolve(args)


@pytest.mark.parametrize(
    ("change", "ranks", "message"),
    [
        ({}, 3, "global_batch_tokens 256 is not a whole number of micro-batches"),
        (
            {"synth": {"stages": {"all": {"ratios": {"short": "1"}}}}},
            1,
            r"synth\.stages \(all\): Lingua's weights stay",
        ),
        ({"model": {"vocab_size": 512}}, 1, r"model\.vocab_size 512: Lingua's is the tokenizer's, 258"),
        ({"synth": {"document_masking": True}}, 1, "cannot be had in Meta Lingua's loop"),
    ],
)
def test_resolve_refuses(train_args, chunks, change, ranks, message):
    with pytest.raises(ValueError, match=message):
        resolve(with_sources(train_args(change), chunks), num_ranks=ranks)


def test_resolve_counts_chunks_against_ranks(train_args, chunks):
    folder = chunks["long"]["documents"]
    for number in (1, 2):
        with open(f"{folder}/long.chunk.0{number}.jsonl", "w") as file:
            file.write('{"text": "x"}\n')
    args = with_sources(train_args(), chunks)
    assert any("reads 1 of the 3 chunks of long" in note for note in resolve(args).notes)
    args.synth.global_batch_tokens = None
    args.synth.tokens = 4 * 4 * 32 * 12
    with pytest.raises(ValueError, match="'long' has 3 chunks, which do not divide 4 ranks"):
        resolve(args, num_ranks=4)


def test_the_verb_prints_or_writes_a_yaml(train_args, chunks, tmp_path, capsys):
    from lingua_synth.config import dump_args

    dump_args(with_sources(train_args({"env": {"NCCL_DEBUG": "WARN", "MINE": "1"}}), chunks), tmp_path / "run.yaml")
    assert main([f"config={tmp_path / 'run.yaml'}", "optim.lr=1e-4"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# 12 steps of 256 tokens")
    assert "# export MINE=1 before the start" in printed and "# not evaluated by Lingua: near, far" in printed
    config = yaml.safe_load(printed)
    assert config["optim"]["lr"] == 1e-4 and config["env"] == {"NCCL_DEBUG": "WARN"}
    assert not {"host", "synth", "out", "num_ranks"} & set(config)
    assert main([f"config={tmp_path / 'run.yaml'}", "optim.lr=1e-4", f"out={tmp_path / 'plain.yaml'}"]) == 0
    assert (tmp_path / "plain.yaml").read_text() == printed
    assert "by DOCUMENT" in capsys.readouterr().out
