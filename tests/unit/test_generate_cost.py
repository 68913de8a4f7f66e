"""Generation beside training: the arithmetic by hand, the anchors of others, a run's own rate."""

import json

import pytest

from lingua_synth.generate.command import main
from lingua_synth.generate.cost import GenerationRate, generation_cost, measured_rate
from lingua_synth.model.counts import flops_per_token
from lingua_synth.model.presets import preset

MISTRAL_ON_A100 = GenerationRate(85.0, 1.0, "others' pages")


def test_the_cost_by_hand():
    rate = GenerationRate(40.0, 0.8, "made up")
    cost = generation_cost(rate, size="1B", tokens=2e11, ratio=0.25, runs=4, epochs=2, tokens_ratio=1.1, mfu=0.5)
    assert cost.distinct_tokens == pytest.approx(2e11 * 0.25 / 2 * 1.1)
    assert cost.generation_gpu_h == pytest.approx(27.5 * 50)
    one_run = 2e11 * flops_per_token(preset("1B"), 4096) / (989e12 * 0.5 * 3600)
    assert cost.one_run_gpu_h == pytest.approx(one_run)
    assert cost.training_gpu_h == pytest.approx(4 * one_run)
    assert cost.generation_share == pytest.approx(1375 / (4 * one_run))
    assert cost.break_even_speedup == pytest.approx(1 + cost.generation_share)


def test_the_ratios_of_the_research_come_out():
    """Of one run at 30 % synthetic: 2.0 / N in billions, from 12.8 A100-hours per billion parameters and tokens."""
    for size, expected in (("1B", 2.0), ("3B", 0.66)):
        cost = generation_cost(MISTRAL_ON_A100, size=size, tokens=1e11, ratio=0.3, gpu="A100", mfu=0.45)
        assert cost.generation_share == pytest.approx(expected, rel=0.25)


def test_what_it_says_can_be_read(capsys):
    words = ["cost", "gpu_hours_per_billion=43", "keep_rate=0.9", "sizes=[1B,3B]", "tokens=200e9", "runs=10"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "47.8 per billion kept (given)" in shown and "10 x 3B" in shown and shown.count("pays for itself") == 2


def test_a_run_s_own_rate(tmp_path):
    (tmp_path / "manifest.json").write_text(
        json.dumps({"engine": {"name": "vllm:m"}, "output_tokens": 600, "generated_tokens": 800})
    )
    (tmp_path / "workers").mkdir()
    usage = {"gpu_busy_h": 0.5, "gpu_startup_h": 0.25, "gpu_idle_h": 0.25, "generated_tokens": 1000}
    (tmp_path / "workers" / "w.json").write_text(json.dumps(usage))
    rate = measured_rate(tmp_path)
    assert rate.gpu_hours_per_billion == pytest.approx(1e6) and rate.keep_rate == 0.6
    (tmp_path / "workers" / "w.json").write_text(
        json.dumps({**usage, "gpu_busy_h": 0, "gpu_startup_h": 0, "gpu_idle_h": 0})
    )
    with pytest.raises(ValueError, match="which held no GPU in our processes"):
        measured_rate(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokens=1e9"], "the generator's rate is not known"),
        (["gpu_hours_per_billion=1"], "tokens= is not set"),
        (["gpu_hours_per_billion=1", "tokens=1e9", "sizes=[1.0C]"], "no preset '1.0C'"),
        (["gpu_hours_per_billion=1", "tokens=1e9", "gpu=abacus"], "no GPU 'abacus'"),
        (["gpu_hours_per_billion=1", "tokens=1e9", "ratio=1.2"], "above 0 and at most 1; got 1.2"),
        (["gpu_hours_per_billion=1", "tokens=1e9", "keep_rate=0"], "a keep_rate above 0"),
        (["gpu_hours_per_billion=1", "tokens=1e9", "mfu=40"], "mfu is a share"),
        (["gpu_hours_per_billion=1", "tokens=1e9", "runs=0"], "runs must be above 0"),
        (["run=nowhere", "tokens=1e9"], "no finished generation run"),
        (["run=nowhere", "gpu_hours_per_billion=1", "tokens=1e9"], "not both"),
    ],
)
def test_impossible_questions_are_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        main(["cost", *words])
