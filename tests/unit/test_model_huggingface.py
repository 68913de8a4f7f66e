"""Export to Hugging Face and import: the same logits, the same bytes, and nothing half-written.

Three witnesses: a Llama in Hugging Face's convention written below from its published definition; logits recorded from
transformers in tests/golden (`python tests/unit/test_model_huggingface.py` records them again); and transformers, vLLM
and lm-evaluation-harness themselves where they are installed.
"""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.config import parse_args
from lingua_synth.model import ModelArgs, count_parameters, ffn_hidden_dim, load_checkpoint, preset
from lingua_synth.model.checkpoint import save_checkpoint
from lingua_synth.model.export_command import main as export_main
from lingua_synth.model.huggingface import (
    export_huggingface,
    import_huggingface,
    list_parameters,
    to_halves,
    to_pairs,
)
from lingua_synth.model.huggingface_config import ffn_rule, from_config, to_config
from lingua_synth.model.import_command import main as import_main
from lingua_synth.model.presets import PRESETS
from lingua_synth.model.safetensors_format import SafetensorsFile
from lingua_synth.model.transformer import Transformer
from lingua_synth.tokens.args import TokenizerArgs
from lingua_synth.train.args import TrainArgs

GOLDEN = Path(__file__).parents[1] / "golden" / "huggingface_llama.json"
CASES = {
    "plain": {},
    "grouped": {"n_kv_heads": 2, "ffn_dim_multiplier": 1.3},
    "tied": {"weight_tying": True, "norm_eps": 1e-6},
    "scaled": {"rope_scaling_factor": 8.0, "rope_theta": 5e5, "rope_original_seqlen": 16, "n_kv_heads": 1},
    "odd": {"dim": 40, "n_heads": 5, "head_dim": 12, "n_kv_heads": 1, "n_layers": 3},
    "padded": {"vocab_size": 272},
}
TOKENS = torch.tensor([[(7 * i * i + 3 * i + 11 * row) % 258 for i in range(24)] for row in range(2)])


def model_args(case):
    base = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 258, "max_seqlen": 48, "multiple_of": 16}
    return ModelArgs(**{**base, **CASES[case]})


def build(args):
    """Weights by formula, so that a recorded logit means the same everywhere."""
    model = Transformer(args).eval()
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            # Integers, scrambled: exact on every machine.
            numbers = (torch.arange(weight.numel()) + 1_000_003 * place + 1) * 2_654_435_761 & 0xFFFFFFFF
            numbers = (numbers ^ (numbers >> 16)) * 73_244_475 & 0xFFFFFFFF
            uniform = (numbers ^ (numbers >> 16)).double() / 2**31 - 1
            scale = 0.3 if weight.ndim == 1 else 2.0 * weight.shape[1] ** -0.5
            weight.copy_((uniform * scale + (weight.ndim == 1)).view(weight.shape))
    return model


def save(folder, args, model, **data):
    section = {"seq_len": 48, "tokenizer": {"name": "bytes", "path": None}, **data}
    params = {"name": "a-run", "model": dataclasses.asdict(args), "data": section}
    optimizer = torch.optim.AdamW(model.parameters())
    return save_checkpoint(folder, 7, model, optimizer, params=params, train_state={})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """case -> (model, run folder, exported folder in fp32), made once."""
    made = {}

    def export(case):
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            args = model_args(case)
            model = build(args)
            save(folder / "run", args, model)
            made[case] = model, folder / "run", export_huggingface(folder / "run", folder / "hf", dtype="fp32")
        return made[case]

    return export


def read_weights(folder):
    """All tensors of an exported fp32 folder, by the format's definition alone."""
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        assert header.pop("__metadata__") == {"format": "pt"}
        for name, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            assert entry["dtype"] == "F32"
            weights[name] = torch.frombuffer(bytearray(data[start:end]), dtype=torch.float32).view(entry["shape"])
    return weights


def llama_logits(folder, tokens):
    """Logits by the Llama of Hugging Face's convention: half-split rotation, frequencies by wavelength."""
    config, w = json.loads((folder / "config.json").read_text()), read_weights(folder)
    heads, kv_heads, width = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    rope = config["rope_parameters"]
    frequencies = []
    for k in range(width // 2):
        f = rope["rope_theta"] ** (-2 * k / width)
        if rope["rope_type"] == "llama3":
            wavelength, length = 2 * math.pi / f, rope["original_max_position_embeddings"]
            if wavelength > length / rope["low_freq_factor"]:
                f /= rope["factor"]
            elif wavelength >= length / rope["high_freq_factor"]:
                smooth = length / wavelength - rope["low_freq_factor"]
                smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
                f = (1 - smooth) * f / rope["factor"] + smooth * f
        frequencies.append(f)
    rows, length = tokens.shape
    angles = torch.outer(torch.arange(length, dtype=torch.float64), torch.tensor(frequencies, dtype=torch.float64))
    cos, sin = (torch.cat((t, t), -1).float() for t in (angles.cos(), angles.sin()))

    def norm(x, weight):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight

    def rotated(x):  # [B, H, T, C]
        first, second = x[..., : width // 2], x[..., width // 2 :]
        return x * cos + torch.cat((-second, first), -1) * sin

    def split(x, count):
        return x.view(rows, length, count, width).transpose(1, 2)

    x = w["model.embed_tokens.weight"][tokens]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        y = norm(x, w[at + "input_layernorm.weight"])
        q, k, v = (
            split(y @ w[f"{at}self_attn.{name}_proj.weight"].T, count)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = rotated(q), rotated(k)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(width)).masked_fill(future, -math.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, heads * width)
        x = x + attended @ w[at + "self_attn.o_proj.weight"].T
        y = norm(x, w[at + "post_attention_layernorm.weight"])
        gate = y @ w[at + "mlp.gate_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * (y @ w[at + "mlp.up_proj.weight"].T)) @ w[at + "mlp.down_proj.weight"].T
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return norm(x, w["model.norm.weight"]) @ head.T


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


# ---- the same model ----


@pytest.mark.parametrize("case", CASES)
def test_an_independent_llama_gives_the_same_logits(exported, case):
    model, _, folder = exported(case)
    with torch.no_grad():
        assert relative(llama_logits(folder, TOKENS), model(TOKENS)) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_logits_recorded_from_transformers(case):
    recorded = json.loads(GOLDEN.read_text())[case]
    with torch.no_grad():
        logits = build(model_args(case))(TOKENS)
    assert relative(logits[0, -1], torch.tensor(recorded["last_logits"])) < 1e-5
    assert relative(logits.logsumexp(-1), torch.tensor(recorded["logsumexp"])) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_transformers_gives_the_same_logits_both_ways(exported, case, tmp_path):
    transformers = pytest.importorskip("transformers")
    model, _, folder = exported(case)
    theirs, report = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        logits = theirs(TOKENS).logits
        assert relative(logits, model(TOKENS)) < 1e-5
    theirs.save_pretrained(tmp_path / "saved")
    import_huggingface(tmp_path / "saved", tmp_path / "run", tokenizer=TokenizerArgs("bytes"))
    ours, args, _ = load_checkpoint(tmp_path / "run")
    assert args.max_seqlen == 48 and ffn_hidden_dim(args) == ffn_hidden_dim(model_args(case))
    with torch.no_grad():
        assert relative(ours(TOKENS), logits) < 1e-5


def test_without_the_permutation_the_logits_differ(exported, monkeypatch, tmp_path):
    model, run, _ = exported("grouped")
    monkeypatch.setattr("lingua_synth.model.huggingface.to_halves", lambda weight, n_heads: weight)
    wrong = export_huggingface(run, tmp_path / "wrong", dtype="fp32")
    with torch.no_grad():
        assert relative(llama_logits(wrong, TOKENS), model(TOKENS)) > 0.01


@settings(max_examples=50, deadline=None)
@given(n_heads=st.integers(1, 6), half=st.integers(1, 6), columns=st.integers(1, 3))
def test_the_permutations_undo_each_other(n_heads, half, columns):
    weight = torch.arange(n_heads * 2 * half * columns).view(-1, columns)
    assert torch.equal(to_pairs(to_halves(weight, n_heads), n_heads), weight)
    assert torch.equal(to_halves(to_pairs(weight, n_heads), n_heads), weight)
    rows = to_halves(torch.arange(n_heads * 2 * half), n_heads).tolist()
    assert rows[: 2 * half] == [*range(0, 2 * half, 2), *range(1, 2 * half, 2)]


# ---- round trips ----


@pytest.mark.parametrize("case", CASES)
def test_export_then_import_gives_every_weight_back(exported, case, tmp_path):
    model, _, folder = exported(case)
    import_huggingface(folder, tmp_path / "run")
    back, args, tokenizer = load_checkpoint(tmp_path / "run")
    assert tokenizer == {"name": "bytes", "path": None}
    weights = model.state_dict()
    assert back.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in back.state_dict().items())
    ours, same = model_args(case), ("multiple_of", "ffn_dim_multiplier")
    if ours.rope_scaling_factor == 1:
        same += ("rope_original_seqlen",)
    assert dataclasses.replace(args, **{k: getattr(ours, k) for k in same}) == ours
    assert ffn_hidden_dim(args) == ffn_hidden_dim(ours)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_import_then_export_gives_every_file_back(exported, dtype, tmp_path):
    _, run, _ = exported("grouped")
    first = export_huggingface(run, tmp_path / "first", dtype=dtype, max_shard_bytes=40_000)
    shards = sorted(path.name for path in first.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(path.stat().st_size < 41_000 + 2000 for path in first.glob("*.safetensors"))
    for stored in {dtype, "fp32"}:  # fp32 holds bf16 exactly
        import_huggingface(first, tmp_path / f"run-{stored}", dtype=stored)
        second = tmp_path / f"second-{stored}"
        export_huggingface(tmp_path / f"run-{stored}", second, dtype=dtype, max_shard_bytes=40_000)
        files = sorted(p.name for p in first.iterdir())
        assert files == sorted(p.name for p in second.iterdir())
        for name in files:
            assert name == "README.md" or (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_index_names_every_tensor_once(exported, tmp_path):
    _, run, whole = exported("tied")
    parts = export_huggingface(run, tmp_path / "hf", dtype="fp32", max_shard_bytes=20_000)
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    together, alone = read_weights(parts), read_weights(whole)
    assert together.keys() == alone.keys() == index["weight_map"].keys()
    assert all(torch.equal(together[name], alone[name]) for name in alone)
    assert index["metadata"]["total_size"] == sum(4 * weight.numel() for weight in alone.values())
    assert {p.name for p in parts.glob("*.safetensors")} == set(index["weight_map"].values())
    for name, file in index["weight_map"].items():
        assert name in SafetensorsFile(parts / file).shapes


def test_the_library_reads_what_we_write_and_we_what_it_writes(exported, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, run, _ = exported("odd")
    bf16 = export_huggingface(run, tmp_path / "hf") / "model.safetensors"
    theirs, ours = safetensors.load_file(bf16), SafetensorsFile(bf16)
    assert theirs.keys() == ours.shapes.keys()
    assert all(torch.equal(ours.read(name), weight) for name, weight in theirs.items())
    assert torch.equal(theirs["lm_head.weight"], model.output.weight.detach().bfloat16())
    mixed = {"a": torch.randn(3, 5), "b": torch.randn(2).half(), "c": torch.randn(4, 1).bfloat16(), "d": torch.empty(0)}
    safetensors.save_file(mixed, tmp_path / "mixed.safetensors")
    ours = SafetensorsFile(tmp_path / "mixed.safetensors")
    assert ours.dtype("b") == torch.float16
    assert all(torch.equal(ours.read(name), weight) for name, weight in mixed.items())


# ---- what is written ----


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_config_that_comes_back(name):
    args = dataclasses.replace(preset(name), max_seqlen=8192)
    if args.vocab_size < 1:
        args.vocab_size = 258
    config = to_config(args, bos_id=0, eos_id=1)
    # Through JSON, as on disk.
    back = from_config(json.loads(json.dumps(config)))
    assert (ffn_hidden_dim(back), count_parameters(back)) == (ffn_hidden_dim(args), count_parameters(args))
    rope = [f.name for f in dataclasses.fields(args) if f.name.startswith("rope")]
    assert args.rope_scaling_factor == 1 or all(getattr(back, f) == getattr(args, f) for f in rope)
    total = sum(math.prod(p.shape) for p in list_parameters(args))
    assert total == count_parameters(args).total


def test_published_llamas_are_recognized():
    # config.json of huggingface.co/meta-llama/Llama-3.2-1B, without what does not matter.
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    }
    args = from_config(config)
    assert dataclasses.replace(args, max_seqlen=-1) == preset("llama3.2-1B")
    new = dict(config, rope_parameters={**config["rope_scaling"], "rope_theta": 500000.0})
    del new["rope_scaling"], new["rope_theta"]
    assert from_config(new) == args
    mistral = dict(config, architectures=["MistralForCausalLM"], sliding_window=None)
    assert from_config(mistral) == args


@settings(max_examples=200, deadline=None)
@given(dim=st.integers(2, 9000), hidden=st.integers(1, 40_000))
def test_any_feed_forward_width_has_a_rule(dim, hidden):
    multiplier, multiple_of = ffn_rule(dim, hidden)
    assert ffn_hidden_dim(ModelArgs(dim=dim, ffn_dim_multiplier=multiplier, multiple_of=multiple_of)) == hidden


def test_the_rule_of_published_widths_is_the_published_one():
    for name in ("1B", "3B", "llama3.2-1B", "llama3.2-3B", "llama3-8B", "llama3-70B", "llama3.1-405B"):
        args = preset(name)
        multiplier, multiple_of = ffn_rule(args.dim, ffn_hidden_dim(args))
        rule = ModelArgs(dim=args.dim, ffn_dim_multiplier=multiplier, multiple_of=multiple_of)
        assert ffn_hidden_dim(rule) == ffn_hidden_dim(args)
        assert multiple_of in (256, 1024, 4096) and multiplier in (None, 1.1, 1.2, 1.3, 1.5)


def test_a_trained_run_s_card_has_its_numbers_and_no_path(train_args, tmp_path):
    from lingua_synth.train import train

    row = train(train_args(), progress=False)
    card = (export_huggingface(tmp_path / "run", tmp_path / "hf") / "README.md").read_text()
    assert f"Mixture two thirds: {12 * 256:,} tokens" in card and "from checkpoint 12." in card
    assert f"| near | {row['loss_near']:.4f} | {row['bpb_near']:.4f} |" in card
    assert f"| synthetic | {row['tokens_synthetic']:,} | {row['epochs_synthetic']:.3f} |" in card
    assert f"{row['n_non_embedding']:,} without" in card and str(tmp_path) not in card
    # An earlier checkpoint is not what result.json speaks of.
    earlier = tmp_path / "run" / "checkpoints" / f"{10:010d}"
    card = (export_huggingface(earlier, tmp_path / "earlier") / "README.md").read_text()
    assert "Mixture" not in card and "from checkpoint 10." in card


def test_training_starts_from_an_imported_model(train_args, tmp_path):
    from lingua_synth.train import train
    from lingua_synth.train.metrics import read_metrics

    train(train_args(), progress=False)
    export_huggingface(tmp_path / "run", tmp_path / "hf", dtype="fp32")
    import_huggingface(tmp_path / "hf", tmp_path / "imported")
    losses = []
    for start in ("run", "imported"):
        change = {"checkpoint": {"init_ckpt_path": str(tmp_path / start)}}
        train(train_args(change, dump_dir=tmp_path / f"from-{start}"), progress=False)
        losses.append([r["loss/mean"] for r in read_metrics(tmp_path / f"from-{start}" / "metrics.jsonl")])
    assert losses[0] == losses[1]


def test_bos_is_added_as_the_shards_have_it(exported, tmp_path):
    model, _, _ = exported("plain")
    args = model_args("plain")
    save(tmp_path / "run", args, model, add_bos=False)
    config = json.loads((export_huggingface(tmp_path / "run", tmp_path / "hf") / "tokenizer_config.json").read_text())
    assert config["add_bos_token"] is False
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text('{"add_bos": true}')
    params_path = tmp_path / "run" / "checkpoints" / f"{7:010d}" / "params.json"
    params = json.loads(params_path.read_text())
    params["synth"] = {"sources": {"web": {"path": str(tmp_path / "shards")}}}
    params_path.write_text(json.dumps(params))
    config = json.loads((export_huggingface(tmp_path / "run", tmp_path / "hf2") / "tokenizer_config.json").read_text())
    assert config["add_bos_token"] is True


def test_lingua_s_consolidated_file_and_names_are_read(exported, tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    _, run, folder = exported("tied")
    checkpoint = run / "checkpoints" / f"{7:010d}"
    consolidated = tmp_path / "consolidated"
    consolidated.mkdir()
    dcp_to_torch_save(checkpoint, consolidated / "consolidated.pth")
    state = torch.load(consolidated / "consolidated.pth", weights_only=True)
    # Lingua's name of a tied output matrix, and keys of its ModelArgs that ours lacks.
    state["model"]["output.tied_module.weight"] = state["model"].pop("output.weight")
    torch.save(state, consolidated / "consolidated.pth")
    params = json.loads((checkpoint / "params.json").read_text())
    params["model"] |= {"attn_impl": "sdpa", "mask": "causal"}
    (consolidated / "params.json").write_text(json.dumps(params))
    out = export_huggingface(consolidated, tmp_path / "hf", dtype="fp32")
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_an_imported_checkpoint_has_the_keys_that_lingua_loads(exported, tmp_path):
    import torch.distributed.checkpoint as dcp

    model, _, folder = exported("tied")
    checkpoint = import_huggingface(folder, tmp_path / "run") / "checkpoints" / f"{0:010d}"
    # What its load_from_checkpoint(folder, model, model_key="model") asks for, with a tied model's names.
    names = {p.ours: p.shape for p in list_parameters(model_args("tied"))}
    names["output.tied_module.weight"] = (258, 32)
    state = {"model": {name: torch.full(shape, math.nan) for name, shape in names.items()}}
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    weights = model.state_dict()
    for name, weight in state["model"].items():
        assert torch.equal(weight, weights[name.replace("tied_module.", "")]), name


# ---- verbs ----


def test_the_verbs_say_what_they_wrote_and_how_to_use_it(exported, tmp_path, capsys):
    _, run, _ = exported("grouped")
    out, back = tmp_path / "hf", tmp_path / "back"
    assert export_main([f"checkpoint={run}", f"out={out}", "dtype=bf16", "max_shard_bytes=50000"]) == 0
    said = capsys.readouterr().out
    total, files = count_parameters(model_args("grouped")).total, sorted(out.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    assert f"{out}: {total:,} parameters in bf16, {size:,} bytes in {len(files)} file(s)" in said
    assert f"vllm serve {out}" in said and f"lm_eval --model hf --model_args pretrained={out}" in said
    assert import_main([f"model={out}", f"out={back}"]) == 0
    said = capsys.readouterr().out
    checkpoint = back / "checkpoints" / f"{0:010d}"
    assert f"{checkpoint}: {total:,} parameters" in said and f"init_ckpt_path={checkpoint}" in said
    # The printed words make a config of the same model.
    words = [word for word in said.split() if word.startswith("model.")]
    ours = parse_args(TrainArgs, words).model
    assert dataclasses.replace(ours, vocab_size=258, max_seqlen=48) == load_checkpoint(back)[1]
    for main in (export_main, import_main):
        with pytest.raises(ValueError, match=r"and out are needed"):
            main(["out=x"])


# ---- bad input ----


def refused(match):
    return pytest.raises(ValueError, match=match)


def test_bad_exports_are_refused_and_leave_nothing(exported, tmp_path):
    model, run, folder = exported("plain")
    out = tmp_path / "hf"
    with refused(r"hf exists; name another folder"):
        export_huggingface(run, folder)
    with refused(r"dtype is bf16 or fp32; got 'fp8'"):
        export_huggingface(run, out, dtype="fp8")
    with refused(r"no checkpoint in .*nowhere"):
        export_huggingface(tmp_path / "nowhere", out)
    args = model_args("plain")
    for number, (section, message) in enumerate(
        (
            ({"name": "sp", "path": str(tmp_path / "gone.model")}, r"there is no file .*gone\.model"),
            ({"name": ""}, r"params\.json does not name the tokenizer"),
            ({"name": "word2vec"}, r"no tokenizer 'word2vec'"),
        )
    ):
        save(tmp_path / f"run{number}", args, model, tokenizer=section)
        with refused(message):
            export_huggingface(tmp_path / f"run{number}", out)
    for fields, message in (
        ({"vocab_size": 200}, r"bytes has 258 entries, the model of .* only 200"),
        ({"n_layers": 3}, r"layers\.2\.attention\.wq\.weight is missing.* and 5 more"),
        ({"n_layers": 1}, r"layers\.1\.attention\.wq\.weight is not part of the model"),
        ({"n_kv_heads": 2}, r"layers\.0\.attention\.wk\.weight is \(32, 32\), not \(16, 32\)"),
        ({"sliding_window": 8}, r"sliding_window is read by Meta Lingua's loop alone"),
    ):
        path = tmp_path / "run0" / "checkpoints" / f"{7:010d}" / "params.json"
        params = json.loads(path.read_text())
        params["model"] = dataclasses.asdict(args) | fields
        params["data"]["tokenizer"] = {"name": "bytes"}
        path.write_text(json.dumps(params))
        with refused(message):
            export_huggingface(tmp_path / "run0", out)
    params["model"] = dataclasses.asdict(args)
    path.write_text(json.dumps(params))
    (path.parent / ".metadata").unlink()
    with refused(r"has no weights: neither \.metadata nor consolidated\.pth"):
        export_huggingface(tmp_path / "run0", out)
    assert not [p.name for p in tmp_path.iterdir() if not p.name.startswith("run")]


def changed(folder, tmp_path, **fields):
    """A copy of an exported folder with other fields in config.json; None removes one."""
    copy = tmp_path / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | fields
    for key in ("rope_scaling", "rope_parameters"):
        if key in fields:
            config.pop({"rope_scaling": "rope_parameters", "rope_parameters": "rope_scaling"}[key])
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, r"architecture Qwen2ForCausalLM is not LlamaForCausalLM"),
        ({"architectures": None}, r"architecture none named is not"),
        ({"hidden_act": "gelu"}, r"another activation \(hidden_act is gelu\)"),
        ({"attention_bias": True, "mlp_bias": True}, r"attention has biases .*; its feed-forward layer has biases"),
        ({"quantization_config": {"bits": 4}}, r"its weights are quantized \(quantization_config is set\)"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"scaled by the rule 'linear', not 'llama3'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, r"'llama3' without 'low_freq_factor'"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 4096}, r"sees a window of tokens only"),
        ({"architectures": ["MistralForCausalLM"]}, r"does not say: sliding_window"),
        ({"intermediate_size": None}, r"does not say: intermediate_size"),
        ({"num_attention_heads": 3}, r"n_kv_heads 4 does not divide model\.n_heads 3"),
        ({"hidden_size": 64}, r"model\.embed_tokens\.weight is \(258, 32\), not \(258, 64\)"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\.\S+ is not part of the model"),
    ],
)
def test_other_models_are_refused_by_what_differs(exported, tmp_path, fields, message):
    _, _, folder = exported("plain")
    with refused(message):
        import_huggingface(changed(folder, tmp_path, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_downloads_are_refused_by_file(exported, tmp_path):
    _, run, _ = exported("plain")
    whole = export_huggingface(run, tmp_path / "whole", max_shard_bytes=30_000)
    names = sorted(p.name for p in whole.glob("*.safetensors"))

    def attempt(damage, message):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        damage(copy)
        with refused(message):
            import_huggingface(copy, tmp_path / "run")
        assert not list(tmp_path.glob("*run*"))

    def cut(size):
        return lambda folder: os.truncate(folder / names[1], size)

    def forge(old, new):
        def damage(folder):
            data = (folder / names[0]).read_bytes()
            assert old in data and len(old) == len(new)
            (folder / names[0]).write_bytes(data.replace(old, new, 1))

        return damage

    size = (whole / names[1]).stat().st_size
    escaped = re.escape(names[1])
    attempt(lambda f: (f / names[1]).unlink(), rf"lacks 1 of the {len(names)} files .*: {escaped}; download")
    attempt(cut(size - 1), rf"{escaped} has {size - 1:,} bytes and its header announces {size:,}; it is cut short")
    attempt(cut(100), rf"{escaped} is not a whole safetensors file \(100 bytes\)")
    attempt(cut(3), rf"{escaped} is not a whole safetensors file \(3 bytes\)")
    attempt(forge(b'{"__metadata__"', b'["__metadata__"'), r"its header is damaged")
    attempt(forge(b'"BF16"', b'"F8_X"'), r"is of type F8_X; this import reads F32, BF16, F16")
    attempt(forge(b'"shape":[258,32]', b'"shape":[259,32]'), r"is damaged: model\.embed_tokens\.weight")
    attempt(forge(b'"model.embed', b'"model.amber'), r"does not hold model\.embed_tokens\.weight, which")
    attempt(lambda f: [p.unlink() for p in f.glob("model*")], r"no weights in .*: neither model\.safetensors nor")
    attempt(
        lambda f: [p.unlink() for p in f.glob("model*")] + [(f / "pytorch_model.bin").touch()],
        r"as pickled \.bin files",
    )
    attempt(lambda f: (f / "config.json").unlink(), r"no file .*config\.json")
    attempt(lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer in .*: neither tokenizer\.model nor")
    with refused(r"no folder .*gone"):
        import_huggingface(tmp_path / "gone", tmp_path / "run")
    with refused(r"whole exists; name another"):
        import_huggingface(whole, whole)
    with refused(r"dtype is bf16 or fp32; got 'int8'"):
        import_huggingface(whole, tmp_path / "run", dtype="int8")


@pytest.mark.parametrize("direction", ["export", "import"])
def test_a_full_disk_leaves_nothing(exported, tmp_path, direction):
    """The largest file that this process may write stands for the disk's end."""
    _, run, folder = exported("plain")
    source = run if direction == "export" else folder
    function = f"{direction}_huggingface"
    code = (
        "import resource, signal, sys, torch\n"
        f"from lingua_synth.model.huggingface import {function}\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        f"try: {function}(sys.argv[1], sys.argv[2])\n"
        "except OSError as error: print('OSError', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "out")], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("OSError"), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory_while_exporting_is_one_tensor_s(tmp_path):
    """150 MB of weights go through in matrices of at most 3 MB; little of it stays."""
    args = ModelArgs(dim=512, n_layers=12, n_heads=8, vocab_size=258, max_seqlen=16, multiple_of=64)
    model = Transformer(args)
    model.init_weights(0)
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "run" / "checkpoints" / f"{0:010d}"
    folder.mkdir(parents=True)
    dcp.save({"model": model.state_dict()}, checkpoint_id=folder, no_dist=True)
    section = {"seq_len": 16, "tokenizer": {"name": "bytes"}}
    (folder / "params.json").write_text(json.dumps({"model": dataclasses.asdict(args), "data": section}))
    total = 4 * count_parameters(args).total
    del model
    code = (
        "import resource, sys\n"
        "from lingua_synth.model.huggingface import export_huggingface\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "export_huggingface(sys.argv[1], sys.argv[2])\n"
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "hf")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert total > 150_000_000
    assert int(done.stdout) < 0.3 * total, done.stdout


# ---- the programs that read an export ----


def test_lm_evaluation_harness_scores_as_we_do(exported):
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, _, folder = exported("grouped")
    harness = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)
    pairs = [("The cat sat", " on a mat"), ("one two", " three"), ("", "four")]
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]
    for (context, continuation), (theirs, _) in zip(pairs, harness.loglikelihood(requests), strict=True):
        ids = [256, *(context + continuation).encode()]
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([ids])), -1)[0]
        ours = sum(float(scores[i - 1, ids[i]]) for i in range(1 + len(context), len(ids)))
        assert math.isclose(ours, theirs, rel_tol=1e-5)


@pytest.mark.slow
def test_vllm_generates_as_we_do(tmp_path, monkeypatch):
    """vLLM's attention for CPUs takes heads of 32, 64, ..., not the smallest ones of the other tests."""
    pytest.importorskip("vllm")
    for key, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(key, value)
    from vllm import LLM, SamplingParams

    args = dataclasses.replace(model_args("grouped"), dim=128)
    model = build(args)
    save(tmp_path / "run", args, model)
    folder = export_huggingface(tmp_path / "run", tmp_path / "hf", dtype="fp32")
    engine = LLM(
        model=str(folder),
        dtype="float32",
        max_num_seqs=2,
        gpu_memory_utilization=0.3,
        max_model_len=48,
        enforce_eager=True,
    )
    asked = SamplingParams(temperature=0, max_tokens=20, logprobs=1, ignore_eos=True)
    output = engine.generate(["The cat sat"], asked)[0]
    ids, generated = list(output.prompt_token_ids), output.outputs[0]
    assert ids == [256, *b"The cat sat"]
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids + list(generated.token_ids)])), -1)[0, len(ids) - 1 : -1]
    assert scores.argmax(-1).tolist() == list(generated.token_ids)
    for i, token in enumerate(generated.token_ids):
        assert abs(generated.logprobs[i][token].logprob - float(scores[i, token])) < 1e-4


@pytest.mark.skipif(not os.environ.get("LINGUA_DIR"), reason="LINGUA_DIR names no checkout of Meta Lingua")
@pytest.mark.parametrize("case", ["plain", "grouped", "tied"])
def test_lingua_s_own_model_is_exported_and_loads_what_was_imported(case, tmp_path, monkeypatch):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    import lingua_cpu

    lingua = lingua_cpu.imported(monkeypatch)
    fields = {key: value for key, value in dataclasses.asdict(model_args(case)).items() if not key.startswith("rope_")}

    def build_theirs():
        known = {f.name for f in dataclasses.fields(lingua.transformer.LMTransformerArgs)}
        chosen = {key: value for key, value in fields.items() if key in known}
        return lingua.transformer.LMTransformer(lingua.transformer.LMTransformerArgs(**chosen)).eval()

    theirs = build_theirs()
    theirs.init_weights()
    checkpoint = tmp_path / "run" / "checkpoints" / f"{3:010d}"
    checkpoint.mkdir(parents=True)
    dcp.save({"model": get_model_state_dict(theirs)}, checkpoint_id=checkpoint, no_dist=True)
    params = {"model": dataclasses.asdict(theirs.args) if hasattr(theirs, "args") else fields}
    params["data"] = {"seq_len": 48, "tokenizer": {"name": "bytes", "path": None}, "add_bos": True}
    (checkpoint / "params.json").write_text(json.dumps(params))
    with torch.no_grad():
        logits = theirs(TOKENS, attn_impl="sdpa")
    consolidated = lingua.checkpoint.consolidate_checkpoints(str(checkpoint))
    for number, source in enumerate((tmp_path / "run", consolidated)):
        folder = export_huggingface(source, tmp_path / f"hf{number}", dtype="fp32")
        assert relative(llama_logits(folder, TOKENS), logits) < 1e-5
    back = import_huggingface(folder, tmp_path / "back") / "checkpoints" / f"{0:010d}"
    loaded = build_theirs()
    loaded.init_weights()
    # Other numbers, so that loading is what makes them equal.
    with torch.no_grad():
        for weight in loaded.parameters():
            weight.zero_()
    lingua.checkpoint.load_from_checkpoint(str(back), loaded, model_key="model")
    expected = theirs.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())


def record():
    """Write the golden file from the installed transformers."""
    import tempfile

    import transformers

    golden = {"recorded_with": f"transformers {transformers.__version__}, torch {torch.__version__}, fp32"}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            args = model_args(case)
            save(Path(folder) / "run", args, build(args))
            out = export_huggingface(Path(folder) / "run", Path(folder) / "hf", dtype="fp32")
            theirs = transformers.LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
            with torch.no_grad():
                logits = theirs(TOKENS).logits
        golden[case] = {
            "last_logits": [round(x, 7) for x in logits[0, -1].tolist()],
            "logsumexp": [[round(x, 7) for x in row] for row in logits.logsumexp(-1).tolist()],
        }
    GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    record()
