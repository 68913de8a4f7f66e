"""Defaults -> file -> command line; unknown keys and wrong values refused in words."""

from dataclasses import dataclass, field

import pytest

from lingua_synth import config


@dataclass
class InnerArgs:
    """Inner."""

    rate: float = 0.5
    """How fast, in steps per second."""
    names: dict[str, int] = field(default_factory=dict)
    """Free names."""


@dataclass
class ItemArgs:
    path: str = ""
    """Where it is."""


@dataclass
class OuterArgs:
    """What the outer one is."""

    steps: int = 10
    """Number of
    steps."""
    inner: InnerArgs = field(default_factory=InnerArgs)
    """The inner section."""
    items: dict[str, ItemArgs] = field(default_factory=dict)
    """Items by name."""
    label: str | None = None
    """A label."""


def test_later_layers_win(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("steps: 20\ninner: {rate: 2}\nitems: {a: {path: x}}\n")
    args = config.parse_args(OuterArgs, [f"config={file}", "inner.rate=1e-3", "items.b.path=y"])
    assert args == OuterArgs(20, InnerArgs(0.001), {"a": ItemArgs("x"), "b": ItemArgs("y")})
    assert config.parse_args(OuterArgs, []) == OuterArgs()
    assert config.parse_args(OuterArgs, ["label=", "items.a.path="]) == OuterArgs(label="", items={"a": ItemArgs("")})
    assert config.parse_args(OuterArgs, ["label=null"]).label is None


def test_a_dumped_config_reads_back_equal(tmp_path):
    args = config.parse_args(OuterArgs, ["steps=1_000_000", "inner.names.x=3", "label=a word"])
    assert args.steps == 1_000_000
    config.dump_args(args, tmp_path / "c.yaml")
    again = config.parse_args(OuterArgs, [f"config={tmp_path / 'c.yaml'}"])
    assert again == args


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stpes=3"], r"unknown key stpes in the command line; did you mean steps\?"),
        (["inner.rat=3"], r"unknown key inner\.rat .*did you mean inner\.rate\?"),
        (["rate=3"], r"unknown key rate .*did you mean inner\.rate\?"),
        (["items.a.pth=3"], r"unknown key items\.a\.pth .*did you mean items\.a\.path\?"),
        (["zzz=3"], r"unknown key zzz .*known keys here: steps, inner, items, label"),
        (["inner=3"], r"inner in the command line is a section with keys rate, names"),
        (["steps"], r"expected key=value, got 'steps'"),
        (["--steps=3"], r"expected key=value, got '--steps=3'"),
        (["steps=many"], r"steps in the command line does not fit: .*many"),
        (["steps=2e6"], r"steps in the command line does not fit: .*write large integers as 2_000_000"),
        (["config=nowhere.yaml"], r"no config file nowhere\.yaml"),
        (["config=a", "config=b"], r"one config= is taken, got 2"),
    ],
)
def test_bad_words_are_refused_with_what_to_change(words, message):
    with pytest.raises(ValueError, match=message):
        config.parse_args(OuterArgs, words)


def test_bad_files_are_refused_by_name(tmp_path):
    for text, message in (
        ("steps: [", "not valid YAML"),
        ("- 1\n- 2\n", "must hold a mapping"),
        ("stepz: 1", "unknown key stepz in"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            config.parse_args(OuterArgs, [f"config={tmp_path / 'c.yaml'}"])


def test_help_prints_every_field_with_default_and_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        config.parse_args(OuterArgs, ["--help"], prog="thing")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for text in (
        "usage: thing", "What the outer one is.", "steps: int, default 10", "Number of steps.",
        "inner.rate: float, default 0.5", "How fast, in steps per second.", "items.<name>.path: str, default ''",
        "Where it is.", "label: str or null, default None",
    ):  # fmt: skip
        assert text in shown


def test_exit_codes(capsys):
    def fails(error):
        def main(argv):
            raise error

        return config.run_command(main, [])

    assert config.run_command(lambda argv: None, []) == 0
    assert fails(ValueError("too many")) == 2
    assert "error: too many" in capsys.readouterr().err
    assert fails(OSError(28, "No space left on device", "x.bin")) == 1
    assert "No space left on device (x.bin)" in capsys.readouterr().err
    assert fails(KeyError("deep")) == 1
    assert "fault: KeyError" in capsys.readouterr().err
    assert fails(KeyboardInterrupt()) == 130
    assert fails(ModuleNotFoundError("No module named 'torch'", name="torch.nn")) == 2
    assert "this needs torch, not installed here: pip install 'lingua-synth[train]'" in capsys.readouterr().err
    assert fails(ModuleNotFoundError("No module named 'ours'", name="ours")) == 1
