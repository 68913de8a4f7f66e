"""`lingua-synth sizes` prints the numbers of the library."""

import pytest

from lingua_synth.model.command import main


def table(capsys, *argv):
    """Rows by size, each a list of cells, and the legend."""
    assert main(list(argv)) is None
    head, _, legend = capsys.readouterr().out.partition("\n\n")
    header, *lines = head.splitlines()
    assert header.split()[:4] == ["size", "dim", "layers", "heads"]
    return {line.split()[0]: [cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines}, legend


def test_the_paper_s_sizes(capsys):
    rows, legend = table(capsys)
    assert list(rows)[:6] == ["100M", "200M", "500M", "1B", "2B", "3B"]
    assert rows["1B"][:11] == ["1B", "1,792", "22", "28", "28", "4,864", "858M", "1.09B", "1.32B", "7.5", "43.7"]
    assert rows["llama3.2-1B"][6:9] == ["973M", "1.24B", "1.24B"]
    assert rows["llama3-70B"][-1] == "none" and rows["llama3-70B"][-2] == "1,524"
    assert "at seq_len 4,096" in legend and "on 1 GPU;" in legend
    assert not any(name.startswith("nano") for name in rows)


def test_sizes_between_on_several_gpus(capsys):
    rows, legend = table(capsys, "sizes=[350M,1.5B]", "batch_size=8", "dp_shard=8", "seq_len=2048")
    assert list(rows) == ["350M", "1.5B"]
    alone, _ = table(capsys, "sizes=[350M,1.5B]", "batch_size=8", "seq_len=2048")
    assert all(float(rows[name][10]) < float(alone[name][10]) for name in rows)
    assert "8 x 2,048 tokens, on 8 GPUs" in legend


def test_nano_sizes_take_a_vocabulary(capsys):
    rows, _ = table(capsys, "sizes=[nano-27k,nano-150k]", "vocab_size=1024", "dtype=fp32", "compile=false")
    assert rows["nano-27k"][6:9] == ["26.8k", "59.6k", "92.3k"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sizes=[]"], "sizes is empty"),
        (["sizes=[nano-27k]"], "nano-27k takes its vocabulary from the tokenizer: give vocab_size"),
        (["sizes=[12X]"], "no preset '12X'"),
        (["seq_len=0"], "seq_len must be at least 1"),
        (["dtype=fp8"], "dtype is bf16 or fp32"),
        (["vocab_size=0"], "vocab_size must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused_in_words(argv, message):
    with pytest.raises(ValueError, match=message):
        main(argv)
