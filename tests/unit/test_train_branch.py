"""A budget that branches off another run is the run it would have been alone."""

import json

import pytest
import torch

from lingua_synth.files import read_json
from lingua_synth.model.checkpoint import list_checkpoints, load_checkpoint
from lingua_synth.train import train
from lingua_synth.train.args import OptimArgs, resolve_args, schedule_name
from lingua_synth.train.schedule import first_decayed_step, learning_rate_ratio

WSD = {"scheduler": "wsd", "warmup": 2, "decay_fraction": 0.25, "lr_min_ratio": 0.0}
STEPS, TRUNK_STEPS = 12, 24
AT = first_decayed_step(STEPS, 0.25)


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """A function of a name and changes that trains a wsd run; and the trunk, trained once."""
    from lingua_synth.config import build_args
    from lingua_synth.train.args import TrainArgs

    folder = tmp_path_factory.mktemp("branches")

    def build(name, *overrides, steps=STEPS):
        base = {
            "name": name,
            "dump_dir": str(folder / name),
            "data": {"seq_len": 32, "batch_size": 4},
            "optim": {"lr": 3e-3} | WSD,
            "model": {"dim": 32, "n_layers": 2, "n_heads": 2, "multiple_of": 16},
            "distributed": {"model_dtype": "fp32"},
            "checkpoint": {"dump": {"every": 5, "keep": 1}},
            "logging": {"freq": 1},
            "synth": {
                "tokens": steps * 256,
                "global_batch_tokens": 256,
                "device": "cpu",
                "decay": "sqrt",
                "sources": {
                    "natural": {"path": shards["natural"], "ratio": "2/3"},
                    "synthetic": {"path": shards["synthetic"], "ratio": "1/3"},
                },
                "evaluation": {"domains": {"near": shards["near"], "far": shards["far"]}},
            },
        }
        return build_args(TrainArgs, base, *overrides)

    train(build("trunk", {"synth": {"keep_steps": [AT]}}, steps=TRUNK_STEPS), progress=False)
    return build, folder, str(folder / "trunk" / "checkpoints" / f"{AT:010d}")


def weights(folder):
    return load_checkpoint(folder)[0].state_dict()


def test_a_branch_is_to_the_bit_the_straight_run_of_its_budget(runs):
    build, folder, checkpoint = runs
    straight = train(build("straight"), progress=False)
    branch = train(build("branch", {"synth": {"branch_from": checkpoint}}), progress=False)
    ours, theirs = weights(folder / "branch"), weights(folder / "straight")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    own = ("run_id", "wall_s", "gpu_hours", "config_sha256")
    assert {k: v for k, v in branch.items() if k not in own} == {k: v for k, v in straight.items() if k not in own}
    assert branch["schedule"] == "wsd-sqrt" and branch["tokens"] == STEPS * 256
    # It took only the steps of its decay; those before are the trunk's.
    logged = [json.loads(line)["global_step"] for line in (folder / "branch" / "metrics.jsonl").open()]
    assert logged == list(range(AT + 1, STEPS + 1)) and len(logged) == 3
    # Its weights are not the trunk's of that step: the rates fell.
    assert branch["loss_macro"] != read_json(folder / "trunk" / "result.json")["loss_macro"]


def test_a_branch_goes_on_from_its_own_checkpoint_when_the_trunk_is_gone(runs, monkeypatch):
    build, folder, checkpoint = runs
    import lingua_synth.train.loop as loop

    args = build("killed", {"synth": {"branch_from": checkpoint}, "checkpoint": {"dump": {"every": 1}}})
    judge, calls = loop._judge, []

    def stop_in_the_middle(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr(loop, "_judge", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        train(args, progress=False)
    monkeypatch.setattr(loop, "_judge", judge)
    args.synth.branch_from = str(folder / "no longer there")
    train(args, progress=False)
    straight = train(build("straight"), progress=False)  # a finished one returns its row
    row = read_json(folder / "killed" / "result.json")
    assert row["loss_macro"] == straight["loss_macro"] and row["tokens_natural"] == straight["tokens_natural"]


def test_steps_that_are_kept_outlive_the_others(runs):
    _, folder, _ = runs
    assert [int(p.name) for p in list_checkpoints(folder / "trunk")] == [AT, TRUNK_STEPS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"warmup": 3}}, r"other learning rates: at step 1 of 9 it took 0\.0015, .* taken 0\.001\."),
        ({"optim": {"decay_fraction": 0.5}}, r"other learning rates: at step 7 of 9 it took 0\.003"),
        ({"optim": {"scheduler": "cosine"}, "synth": {"decay": "reciprocal"}}, "other learning rates: at step 3 of 9"),
        ({"optim": {"beta2": 0.99}}, r"trained otherwise \(optim\.beta2 0\.95 there, 0\.99 now\)"),
        ({"data": {"seed": 7}}, r"trained otherwise \(data\.seed 42 there, 7 now\)"),
        ({"synth": {"tokens": 9 * 256}}, "stands at step 9, and this run has 9; branch off earlier"),
        ({"synth": {"branch_from": "TRUNK/0000000007"}}, r"is no checkpoint.*has checkpoints of steps: 9, 24"),
        ({"checkpoint": {"init_ckpt_path": "x"}}, "exclude each other"),
    ],
)
def test_a_branch_of_another_training_is_refused_before_the_folder_is_touched(runs, change, message):
    build, folder, checkpoint = runs
    args = build("refused", {"synth": {"branch_from": checkpoint}}, change)
    args.synth.branch_from = args.synth.branch_from.replace("TRUNK", str(folder / "trunk" / "checkpoints"))
    with pytest.raises(ValueError, match=message):
        train(args, progress=False)
    assert not (folder / "refused" / "identity.json").exists()


@pytest.mark.parametrize("decay", ["reciprocal", "linear", "sqrt"])
def test_decays_leave_the_peak_at_the_branch_and_end_low(decay):
    optim = OptimArgs(scheduler="wsd", warmup=10, decay_fraction=0.2, lr_min_ratio=0.01)
    first = first_decayed_step(1000, 0.2)
    rates = [learning_rate_ratio(step, optim, 1000, decay) for step in range(1000)]
    assert first == 800 and rates[5] == 0.5 and set(rates[10 : first + 1]) == {1.0}
    assert all(a > b for a, b in zip(rates[first:], rates[first + 1 :], strict=False))
    half = {"reciprocal": 1 / (50 + 0.5), "linear": 0.505, "sqrt": 1 - 0.5**0.5 * 0.99}[decay]
    assert rates[900] == pytest.approx(half, rel=1e-12) and 0.01 < rates[-1] < 0.03


def test_only_ours_decay_to_zero_and_the_table_names_the_schedule(train_args):
    def resolved(**change):
        args = train_args({"optim": WSD, "synth": {"warmup_ratio": None}}, change)
        return resolve_args(args, dp_size=1, vocab_size=258)

    assert schedule_name(resolved(synth={"decay": "linear"})) == "wsd-linear"
    with pytest.raises(ValueError, match=r"must be above 0 with wsd.*linear and sqrt take 0"):
        resolved()
    with pytest.raises(ValueError, match=r"synth\.decay sqrt is of optim.scheduler wsd, and it is cosine"):
        resolved(optim={"scheduler": "cosine"}, synth={"decay": "sqrt"})
    with pytest.raises(ValueError, match=r"synth\.keep_steps are steps of the run, 1 to 12; got \[0, 13\]"):
        resolved(synth={"decay": "sqrt", "keep_steps": [0, 5, 13]})
    assert schedule_name(resolve_args(train_args(), dp_size=1, vocab_size=258)) == "cosine"


def test_lingua_s_loop_says_that_it_cannot_branch(train_args):
    from lingua_synth.hosts.plain import refuse_impossible

    for change, key in (({"branch_from": "x"}, "branch_from"), ({"keep_steps": [3]}, "keep_steps")):
        with pytest.raises(ValueError, match=rf"synth\.{key} cannot be had in Meta Lingua's loop"):
            refuse_impossible(train_args({"synth": change}))
