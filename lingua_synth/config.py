"""Configuration as in Meta Lingua: dataclasses, a YAML file, a dot-list on the command line.

A room declares a dataclass (`TrainArgs`, `TokenizeArgs`, ...) whose fields carry defaults and a docstring line each.
`parse_args(TrainArgs, ["config=run.yaml", "optim.lr=1e-3"])` merges defaults -> file -> command line; later wins.
Unknown keys are refused with the nearest known name, values are checked against the field's type, and the
merged result can be dumped beside a run. `--help` prints every field from the same docstrings.

OmegaConf does the merging and the typing; this module adds the refusals a user can read.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

from lingua_synth.files import atomic_file, what_is_there

T = TypeVar("T")

# Which extra of setup.py brings a library that is imported only where it is used.
EXTRAS = {
    "torch": "train",
    "sentencepiece": "train",
    "tiktoken": "train",
    "matplotlib": "report",
    "aiohttp": "openai",
    "vllm": "vllm",
    "zstandard": "formats",
    "fsspec": "formats",
    "tensorboard": "tracking",
    "lm_eval": "eval",
    "submitit": "slurm",
}

HELP_FLAGS = ("-h", "--help", "help")


def parse_args(cls: type[T], argv: Sequence[str], *, prog: str = "") -> T:
    """Build `cls` from its defaults, the YAML of `config=FILE` if given, and `key.sub=value` words, in that order.

    Prints the fields and exits with 0 on `--help`. Raises ValueError, in words for the user, for a word that is
    not `key=value`, a missing or unreadable file, an unknown key (with the nearest known one), a value of the wrong
    type.
    """
    if any(word in HELP_FLAGS for word in argv):
        print(help_text(cls, prog=prog))
        raise SystemExit(0)
    for word in argv:
        if "=" not in word or word.startswith("-"):
            raise ValueError(f"expected key=value, got {word!r}; `{prog or 'the command'} --help` lists the keys")
    files = [word.split("=", 1)[1] for word in argv if word.startswith("config=")]
    if len(files) > 1:
        raise ValueError(f"one config= is taken, got {len(files)}: {', '.join(files)}")
    overrides = [word for word in argv if not word.startswith("config=")]
    layers: list[tuple[str, Any]] = [(file, _read_yaml(file)) for file in files]
    layers.append(("the command line", _read_dotlist(overrides)))
    return build_args(cls, *layers)


def build_args(cls: type[T], *layers: tuple[str, Mapping[str, Any]] | Mapping[str, Any]) -> T:
    """Merge `layers` (mappings, or `(where it came from, mapping)`) over the defaults of dataclass `cls`.

    Raises ValueError for unknown keys and for values that do not fit, naming the layer.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(cls)
    for layer in layers:
        where, values = layer if isinstance(layer, tuple) else ("the given values", layer)
        if values is None:
            continue
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} must hold a mapping of keys to values, not {type(values).__name__}")
        _refuse_unknown_keys(cls, values, where)
        try:
            merged = OmegaConf.merge(merged, OmegaConf.create(dict(values)))
        except OmegaConfBaseException as error:
            raise ValueError(_value_message(error, where)) from None
    try:
        return typing.cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(_value_message(error, "the merged config")) from None


def to_dict(args: Any) -> dict[str, Any]:
    """The dataclass as plain dicts, lists and numbers, in field order; what `dump_args` writes."""
    return dataclasses.asdict(args)


def dump_args(args: Any, path: str | Path) -> None:
    """Write the merged configuration as YAML, atomically; `parse_args` reads it back to an equal object."""
    import yaml

    with atomic_file(path) as file:
        yaml.safe_dump(to_dict(args), file, sort_keys=False, allow_unicode=True)


def _read_yaml(file: str) -> Any:
    import yaml
    from omegaconf import OmegaConf

    path = Path(file)
    if not path.is_file():
        raise ValueError(f"no config file {path}; {what_is_there(path)}")
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=True) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _read_dotlist(words: Sequence[str]) -> Any:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # `key=` is the empty text, not YAML's null: `key=null` says that.
    words = [f'{word}""' if word.endswith("=") else word for word in words]
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(words), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"cannot read {' '.join(words)!r} as key=value words: {error}") from None


# --- what a dataclass declares: fields, types, docstrings ---


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _inner_dataclass(hint: Any) -> tuple[type | None, bool]:
    """(dataclass inside `hint`, whether it is the value type of a Dict) for Args, Optional[Args] and Dict[str,
    Args]."""
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint), False
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            if argument is not type(None):
                return _inner_dataclass(argument)
    if origin is dict and dataclasses.is_dataclass(arguments[1]):
        return typing.cast(type, arguments[1]), True
    return None, False


def _refuse_unknown_keys(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    hints = _hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"unknown key {prefix}{key} in {where}{_suggestion(cls, str(key), prefix)}")
        inner, is_map = _inner_dataclass(hints[key])
        if inner is None or value is None:
            continue
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{prefix}{key} in {where} is a section with keys {', '.join(_hints(inner))}; got {value!r}"
            )
        if not is_map:
            _refuse_unknown_keys(inner, value, where, f"{prefix}{key}.")
            continue
        for name, item in value.items():
            if item is not None:
                if not isinstance(item, Mapping):
                    raise ValueError(f"{prefix}{key}.{name} in {where} needs keys {', '.join(_hints(inner))}")
                _refuse_unknown_keys(inner, item, where, f"{prefix}{key}.{name}.")


def _all_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in _hints(cls).items():
        inner, is_map = _inner_dataclass(hint)
        keys.append(f"{prefix}{name}")
        if inner is not None and not is_map:
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _suggestion(cls: type, key: str, prefix: str) -> str:
    here = list(_hints(cls))
    near = [f"{prefix}{name}" for name in difflib.get_close_matches(key, here, n=1, cutoff=0.6)]
    near += [full for full in _all_keys(cls, prefix) if full.rpartition(".")[2] == key]
    if near:
        return f"; did you mean {' or '.join(dict.fromkeys(near))}?"
    return f"; known keys here: {', '.join(prefix + name for name in here)}"


def _value_message(error: Exception, where: str) -> str:
    key = getattr(error, "full_key", None) or ""
    reason = str(error).splitlines()[0]
    # 2e6 is a float in YAML, and an int field refuses it.
    hint = " (write large integers as 2_000_000, not 2e6)" if "'float'" in reason and "Integer" in reason else ""
    return f"{key or 'a value'} in {where} does not fit: {reason}{hint}"


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The string literal under each field of dataclass `cls` (bases included), as one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef), "getsource of a class is a class"
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[field.target.id] = " ".join(below.value.value.split())
    return docs


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        return " or ".join(_type_name(argument) for argument in inner) + " or null"
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint).replace("typing.", "")


def help_text(cls: type, *, prog: str = "") -> str:
    """Every key of `cls` with its type, default and docstring; what `--help` prints."""
    lines = [f"usage: {prog} [config=FILE] [key=value ...]", ""] if prog else []
    lines += [inspect.cleandoc(cls.__doc__ or ""), "", "keys:"]
    if "config" not in _hints(cls):
        lines += ["  config=FILE", "      YAML file with these keys; words of the command line win over it."]
    lines += _help_lines(cls, "")
    return "\n".join(lines)


def _help_lines(cls: type, prefix: str) -> list[str]:
    hints, docs, lines = _hints(cls), field_docs(cls), []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        inner, is_map = _inner_dataclass(hint)
        name = f"{prefix}{field.name}"
        doc = textwrap.wrap(docs.get(field.name, ""), width=104, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if inner is not None:
            lines += [f"  {name}{'.<name>' if is_map else ''}: section", *doc]
            lines += _help_lines(inner, f"{name}.<name>." if is_map else f"{name}.")
            continue
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        shown = "required" if default is dataclasses.MISSING else f"default {default!r}"
        lines += [f"  {name}: {_type_name(hint)}, {shown}", *doc]
    return lines


# --- the frame around every command ---


def needs_extra(libraries: Sequence[str], extra: str) -> str:
    """The message for libraries that are not installed."""
    return (
        f"this needs {', '.join(libraries)}, not installed here: pip install 'lingua-synth[{extra}]' "
        f"(in a checkout: pip install -c constraints.txt -e '.[{extra}]')"
    )


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main(argv)` and turn its errors into one readable message and an exit code.

    0: success. 2: bad input (ValueError). 1: a fault (operating system, or a defect of ours).
    130: interrupted. `LINGUA_SYNTH_TRACEBACK=1` shows the traceback instead.

    Sets OMP_WAIT_POLICY=PASSIVE unless the environment has one: OpenMP threads that wait for each other then sleep
    instead of spinning. On two cores shared with other work, a nano model on two threads trained at 54k tokens per
    second so, and at 3.6k spinning.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("LINGUA_SYNTH_TRACEBACK"):
        return main(sys.argv[1:] if argv is None else argv) or 0
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has seen enough (`| head`); Python would complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{place}; nothing half-written is kept", file=sys.stderr)
        return 1
    except Exception as error:
        library = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if library in EXTRAS:
            print(f"error: {needs_extra([library], EXTRAS[library])}", file=sys.stderr)
            return 2
        print(
            f"fault: {type(error).__name__}: {error}\nThis is a defect of lingua_synth or of a library under it; "
            "LINGUA_SYNTH_TRACEBACK=1 shows where.",
            file=sys.stderr,
        )
        return 1
