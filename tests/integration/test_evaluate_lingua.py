"""`protocol=lingua-compat` against Meta Lingua's own validation: `apps.main.eval.eval_on_val` on a CPU."""

import importlib
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import lingua_cpu

from lingua_synth.evaluate import read_evaluation
from lingua_synth.evaluate.command import main
from lingua_synth.evaluate.results import EVALUATION
from lingua_synth.files import read_json, write_json
from lingua_synth.model.checkpoint import load_model
from lingua_synth.train import train

pytestmark = [
    pytest.mark.skipif(not lingua_cpu.LINGUA_DIR, reason="LINGUA_DIR names no checkout of Meta Lingua"),
    pytest.mark.slow,
]


@pytest.fixture
def lingua_eval(monkeypatch):
    """Lingua's modules of generation and evaluation, with what they take from CUDA and the compiler replaced."""
    modules = lingua_cpu.imported(monkeypatch)
    lingua_cpu.on_cpu(monkeypatch, modules)
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.instance", "lm_eval.api.model"):
        module = types.ModuleType(name)
        module.Instance, module.LM, module.simple_evaluate = object, object, None
        monkeypatch.setitem(sys.modules, name, module)
    found = {name: importlib.import_module(f"apps.main.{name}") for name in ("generate", "eval")}
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apps", "lingua")]:
        module = sys.modules.pop(name)
        monkeypatch.setitem(sys.modules, name, module)
    transformer = sys.modules["lingua.transformer"]
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    monkeypatch.setattr(transformer, "flex_attention_comp", flex_attention)
    monkeypatch.setattr(
        found["generate"], "create_block_mask", lambda *args, **kw: create_block_mask(*args, **kw | {"device": "cpu"})
    )
    monkeypatch.setattr(found["eval"], "dist_mean_dict", lambda metrics: metrics)
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 5e-7), ("bf16", 1e-3)])
def test_figures_are_lingua_s_own(lingua_eval, train_args, tmp_path, dtype, tolerance):
    train(train_args({"synth": {"evaluation": {"domains": {}}}}), progress=False)
    _, model, params = load_model(tmp_path / "run")
    folder = tmp_path / "consolidated"
    folder.mkdir()
    torch.save({"model": model.state_dict()}, folder / "consolidated.pth")
    params["distributed"]["model_dtype"] = dtype
    write_json(folder / "params.json", params)

    # Documents of every length around the context of 32: shorter, equal, one more, far longer; and some that are not
    # ASCII, whose characters are fewer than their bytes.
    lengths = [1, 2, 5, 20, 29, 30, 31, 32, 33, 34, 63, 64, 65, 300]
    texts = {
        "plain": ["".join(chr(97 + (i * 7 + n) % 26) for i in range(n)) for n in lengths],
        "accents": ["é" * n + "b" for n in (3, 9, 40)] + ["naïve café"],
    }
    words = [f"checkpoint={folder}", "protocol=lingua-compat", "device=cpu", f"out={tmp_path / 'out'}"]
    for name, documents in texts.items():
        (tmp_path / "val" / name).mkdir(parents=True)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (tmp_path / "val" / name / "a.val.jsonl").write_text(lines)
        words.append(f"domains.{name}={tmp_path / 'val' / name}")

    generate, evaluate = lingua_eval["generate"], lingua_eval["eval"]
    theirs, tokenizer, config = generate.load_consolidated_model_and_tokenizer(str(folder))
    options = generate.PackedCausalTransformerGeneratorArgs(max_tokens=1024, dtype=dtype, device="cpu")
    generator = generate.PackedCausalTransformerGenerator(options, theirs, tokenizer)
    asked = evaluate.ValidationArgs(root_dir=str(tmp_path / "val"), sources=list(texts))
    config.data.sources = {}
    expected = evaluate.eval_on_val(generator, asked, config)

    assert main(words) == 0
    found = read_json(tmp_path / "out" / EVALUATION)
    assert (found["protocol"], found["dtype"], found["seq_len"]) == ("lingua-compat", dtype, 32)
    for name in texts:
        ours = found["domains"][name]["lingua"]
        assert ours.keys() == expected[name].keys()
        assert ours["avg_seqlen"] == expected[name]["avg_seqlen"]
        assert ours["nll"] < 0, "the sign is Lingua's"
        for key in ("nll", "nll_per_token", "nll_per_char"):
            assert math.isclose(ours[key], expected[name][key], rel_tol=tolerance), (key, ours, expected[name])
    # The sums are of the tails that were scored: no token and no byte more.
    sums = read_evaluation(tmp_path / "out").domains["plain"]
    assert sums.tokens == sums.bytes == sum(min(n, 30) for n in lengths)
