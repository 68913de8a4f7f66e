"""What Meta Lingua's loader does silently, or dies of without a name, is here a named error or a counted skip.

One test per situation that was measured with Lingua's own loader (437d680): chunks beyond the world size discarded,
lines lost when the number of ranks shrinks, hangs on an empty file, and so on.
"""

import json

import numpy as np
import pytest

from lingua_synth.documents import read_documents
from lingua_synth.mixture import Mixture, MixtureLoader
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize

SEQ_LEN = 16


def write_chunks(folder, num_chunks, lines_each, text="document"):
    """Lingua's layout: <name>.chunk.NN.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for chunk in range(num_chunks):
        lines = [json.dumps({"text": f"{text} {chunk} {line} " * 4}) + "\n" for line in range(lines_each)]
        (folder / f"{folder.name}.chunk.{chunk:02d}.jsonl").write_text("".join(lines))
    return str(folder / "*.chunk.*.jsonl")


def shards(documents, folder, **settings):
    manifest = tokenize(documents, folder, build_tokenizer("bytes"), progress=False, **settings)
    return manifest, TokenSource(folder)


def stream(source, num_batches, dp_size=1, state=None, **settings):
    """The global batches of all ranks, and the state after them."""
    settings = {"seq_len": SEQ_LEN, "batch_size": 12 // dp_size, "global_batch_size": 12} | settings
    mixture = settings.pop("mixture", Mixture({"web": 1}, 100))
    ranks = [MixtureLoader({"web": source}, mixture, dp_rank=r, dp_size=dp_size, **settings) for r in range(dp_size)]
    for rank in ranks:
        if state is not None:
            rank.load_state_dict(state)
    blocks = [np.concatenate([next(rank).block for rank in ranks]) for _ in range(num_batches)]
    return np.stack(blocks), ranks[0].state_dict()


# --- chunks and ranks ---


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4])
def test_all_chunks_are_read_at_any_world_size(tmp_path, dp_size):
    """Lingua: 4 chunks on 2 ranks read 2 and discard 2 without a message; 2 chunks on 3 ranks are an AssertionError."""
    pattern = write_chunks(tmp_path / "web", 4, 30)
    _, source = shards(pattern, tmp_path / "shards")
    assert source.num_documents == 120
    windows = (source.num_tokens - 1) // SEQ_LEN
    blocks, _ = stream(source, windows // 12, dp_size)
    tokens = np.sort(blocks[:, :, 1:].ravel())
    everything = np.sort(source.window(1, windows * SEQ_LEN))
    # One pass, less than a global batch of it left over.
    assert len(everything) - len(tokens) < 12 * SEQ_LEN
    expected, _ = stream(source, windows // 12, 1)
    assert blocks.tobytes() == expected.tobytes()


def test_the_order_of_chunks_is_their_names_whatever_the_file_system_says(tmp_path):
    """Lingua takes them as the file system lists them."""
    pattern = write_chunks(tmp_path / "web", 12, 2)
    ids = [document.text.split()[1] for document in read_documents(pattern)]
    assert ids == sorted(ids, key=int)


def test_no_chunk_is_a_named_error(tmp_path):
    """Lingua: ZeroDivisionError."""
    (tmp_path / "web").mkdir()
    with pytest.raises(ValueError, match=r"no documents at .*\.chunk\..*web holds: nothing"):
        shards(str(tmp_path / "web" / "*.chunk.*.jsonl"), tmp_path / "shards")


def test_a_world_that_does_not_divide_the_batch_is_a_named_error(tmp_path):
    _, source = shards(write_chunks(tmp_path / "web", 2, 30), tmp_path / "shards")
    with pytest.raises(ValueError, match="global_batch_size 12 is no multiple of batch_size x dp_size"):
        stream(source, 1, dp_size=5, batch_size=1)


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (4, 3), (2, 6)])
def test_shrinking_and_growing_the_world_loses_nothing(tmp_path, before, after):
    """Lingua: the other ranks' lines are silently never read again; a larger world has no state to start from."""
    _, source = shards(write_chunks(tmp_path / "web", 2, 60), tmp_path / "shards")
    expected, _ = stream(source, 20)
    head, state = stream(source, 9, before)
    tail, _ = stream(source, 11, after, state=state)
    assert np.concatenate([head, tail]).tobytes() == expected.tobytes()


def test_resume_with_other_settings_is_named_or_honoured_never_ignored(tmp_path):
    """Lingua: weights, batch size and seq_len of the config are ignored, the checkpoint's win, without a message."""
    _, source = shards(write_chunks(tmp_path / "web", 2, 60), tmp_path / "shards")
    expected, _ = stream(source, 20)
    head, state = stream(source, 6)
    tail, _ = stream(source, 28, batch_size=6, global_batch_size=6, state=state)  # another batch: the same order
    rows = np.sort(np.concatenate([head.reshape(-1, SEQ_LEN + 1), tail.reshape(-1, SEQ_LEN + 1)]), axis=0)
    assert (rows == np.sort(expected.reshape(-1, SEQ_LEN + 1), axis=0)).all()
    with pytest.raises(ValueError, match="seq_len was 16, is 8"):
        stream(source, 1, seq_len=8, state=state)
    _, other = shards(write_chunks(tmp_path / "other", 2, 60, "another"), tmp_path / "other_shards")
    mixture = Mixture({"web": "1/2", "other": "1/2"}, 100)
    loader = MixtureLoader({"web": source, "other": other}, mixture, SEQ_LEN, 12)
    with pytest.warns(UserWarning, match=r"the mixture has changed: up to position 72 .*web 1; .*other 1/2, web 1/2"):
        loader.load_state_dict(state)
    sources = np.concatenate([next(loader).source for _ in range(10)])
    assert np.count_nonzero(sources == 1) == 60


# --- lines ---


def test_bad_lines_are_counted_by_reason_with_file_and_line(tmp_path):
    """Lingua: JSONDecodeError, UnicodeDecodeError, AssertionError or AttributeError, without file or line."""
    good = [json.dumps({"text": f"a good line {i}"}).encode() for i in range(500)]
    bad = {
        "not JSON": b'{"text": "cut',
        "blank line": b"",
        "not UTF-8": b'{"text": "\xff\xfe"}',
        "no text": b'{"title": "x"}',
        "text is null": b'{"text": null}',
        "empty text": b'{"text": " "}',
    }
    lines = list(good)
    for place, line in enumerate(bad.values()):
        lines.insert(10 + 20 * place, line)
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "web.chunk.00.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    manifest, source = shards(str(folder), tmp_path / "shards", max_reject_rate=0.05)
    assert manifest["skipped"] == dict.fromkeys(bad, 1) and source.num_documents == 500
    cases = [json.loads(line) for line in (tmp_path / "shards" / "rejects.jsonl").read_text().splitlines()]
    assert [(case["line"], case["reason"]) for case in cases] == [(11 + 20 * i, r) for i, r in enumerate(bad)]
    assert all(case["file"].endswith("web.chunk.00.jsonl") for case in cases)
    with pytest.raises(ValueError, match=r"web\.chunk\.00\.jsonl:11 not JSON"):
        shards(str(folder), tmp_path / "strict", max_reject_rate=0.0)


def test_an_empty_file_and_fewer_lines_than_ranks_do_not_hang(tmp_path):
    """Lingua: an endless loop."""
    folder = tmp_path / "web"
    pattern = write_chunks(folder, 2, 2)
    (folder / "web.chunk.02.jsonl").touch()
    _, source = shards(pattern, tmp_path / "shards")
    assert source.num_documents == 4
    blocks, _ = stream(source, 3, dp_size=12)
    assert blocks.shape == (3, 12, SEQ_LEN + 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "empty.chunk.00.jsonl").touch()
    with pytest.raises(ValueError, match="no tokens in the documents given"):
        shards(str(tmp_path / "empty"), tmp_path / "none")


def test_a_used_up_source_is_refused_or_named_never_silently_repeated(tmp_path):
    """Lingua: repeats in the same order, without a limit or a word."""
    _, source = shards(write_chunks(tmp_path / "web", 1, 10), tmp_path / "shards")
    windows = (source.num_tokens - 1) // SEQ_LEN
    with pytest.raises(ValueError, match=rf"source 'web' can give {windows} sequences .* but the plan needs"):
        stream(source, 1, num_sequences=12 * windows, mixture=Mixture({"web": 1}))
    with pytest.warns(UserWarning, match=f"at position {windows} .*source 'web' has given its max_epochs"):
        repeated = Mixture({"web": 1}, on_exhaustion="repeat")
        blocks, _ = stream(source, windows, num_sequences=12 * windows, mixture=repeated)
    passes = blocks.reshape(12, windows, SEQ_LEN + 1)
    assert len({one.tobytes() for one in passes}) == 12  # a new order every pass


def test_a_document_far_beyond_lingua_s_cut_is_read_whole(tmp_path):
    """Lingua cuts at 400,000 characters before encoding; so do we for its ids, and no token is lost."""
    text = "0123456789" * 100_000
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "web.chunk.00.jsonl").write_text(json.dumps({"text": text}) + "\n")
    _, source = shards(str(folder), tmp_path / "shards")
    assert source.num_tokens == 1_000_002 and source.num_documents == 1
    assert bytes(source.document(0)[1:-1].astype(np.uint8)).decode() == text
