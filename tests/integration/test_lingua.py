"""Against a checkout of Meta Lingua, where LINGUA_DIR names one: same weights from the same seed, same losses."""

import os
import sys
import types

import pytest
import torch

from lingua_synth.model import ModelArgs, build_model
from lingua_synth.train.args import OptimArgs
from lingua_synth.train.schedule import learning_rate_ratio

LINGUA_DIR = os.environ.get("LINGUA_DIR")
pytestmark = pytest.mark.skipif(not LINGUA_DIR, reason="LINGUA_DIR names no checkout of Meta Lingua")


@pytest.fixture
def lingua(monkeypatch):
    """Lingua's own modules; xformers is only named by them on this path, so an absent one is an empty module."""
    monkeypatch.syspath_prepend(LINGUA_DIR)
    try:
        import xformers  # noqa: F401
    except ImportError:
        for name in ("xformers", "xformers.ops", "xformers.ops.fmha"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        ops = sys.modules["xformers.ops"]
        ops.fmha, ops.AttentionBias = sys.modules["xformers.ops.fmha"], type("AttentionBias", (), {})
    ours = {name: module for name, module in sys.modules.items() if name == "apps" or name.startswith("apps.")}
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    import apps.main.transformer
    import lingua.optim

    return types.SimpleNamespace(transformer=apps.main.transformer, optim=lingua.optim)


@pytest.mark.parametrize(
    "change", [{}, {"n_kv_heads": 2}, {"init_std_factor": "current_depth"}, {"weight_tying": True}]
)
def test_the_same_seed_gives_lingua_s_weights_and_losses(lingua, change):
    fields = {"dim": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 97, **change}
    theirs = lingua.transformer.LMTransformer(lingua.transformer.LMTransformerArgs(max_seqlen=48, **fields))
    torch.manual_seed(7)
    theirs.init_weights()
    ours = build_model(ModelArgs(max_seqlen=48, **fields), seed=7)
    expected = {k.replace("tied_module.weight", "weight"): v for k, v in theirs.state_dict().items() if "rope" not in k}
    found = ours.state_dict()
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name

    torch.manual_seed(0)
    tokens, labels = torch.randint(0, 97, (4, 48)), torch.randint(0, 97, (4, 48))
    their_loss = theirs(tokens, labels)
    our_loss = ours(tokens, labels).mean()
    assert abs(float(their_loss.detach()) - float(our_loss.detach())) < 1e-6
    their_loss.backward()
    our_loss.backward()
    for name, parameter in ours.named_parameters():
        other = theirs.get_parameter(name)
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "wsd", "inv_sqrt", "constant"])
def test_learning_rates_are_lingua_s_at_every_step(lingua, scheduler):
    optim = OptimArgs(scheduler=scheduler, warmup=13, lr_min_ratio=0.1)
    theirs = lingua.optim.build_lr_fn(lingua.optim.OptimArgs(scheduler=scheduler, warmup=13, lr_min_ratio=0.1), 200)
    for step in range(13 if scheduler == "constant" else 0, 200):
        assert abs(learning_rate_ratio(step, optim, 200) - theirs(step)) < 1e-12, step
