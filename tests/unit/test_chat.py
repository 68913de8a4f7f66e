"""Conversations: the forms they come in, templates, and which tokens of a shard are scored."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.cli import main
from lingua_synth.config import run_command
from lingua_synth.documents import Document
from lingua_synth.documents.conversations import parse_conversation
from lingua_synth.documents.reading import BadLine
from lingua_synth.tokens import (
    TokenSource,
    build_chat,
    build_tokenizer,
    export_megatron,
    tokenize,
    verify_shards,
)
from lingua_synth.tokens.chat import ChatEncoder, pack_windows
from lingua_synth.tokens.chat_template import PLAIN_TEXT, ChatTemplate, read_chat_template
from lingua_synth.tokens.shards import shard_schema

BYTES = build_tokenizer("bytes")
PLAIN = build_chat(BYTES)


def turns(*said, system=None):
    """Messages of a user and an assistant in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return [{"role": "system", "content": system}] * (system is not None) + messages


def template(text, **specials):
    names = {"<bos>": 256, "<eos>": 257, **specials}
    return ChatTemplate("test", text, names, "<bos>", "<eos>")


def encoded(messages, chat=PLAIN, tokenizer=BYTES, add_bos=True, add_eos=True):
    """(tokens, which of them are scored) of one conversation."""
    data = json.dumps(messages, ensure_ascii=False).encode()
    found = chat.encode(tokenizer, [data], add_bos=add_bos, add_eos=add_eos)
    assert found.kept == [0], found.skipped
    scored = np.zeros(len(found.ids[0]), dtype=bool)
    for start, end in found.runs[0].reshape(-1, 2):
        scored[start:end] = True
    return found.ids[0], scored


def shown(ids, tokenizer=BYTES):
    return bytes(i for i in ids.tolist() if i < 256).decode() if tokenizer is BYTES else tokenizer.decode(ids.tolist())


# --- forms ---


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("q", "a")},
        {"messages": [*turns("q", "a"), {"role": "user", "content": "thanks"}]},  # nothing is learned from the last
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, turns("q", "a")[1]]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "response": "a", "answer": None},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"question": "q", "answer": "a", "text": "ignored"},
        {"instruction": "q", "input": "", "output": "a"},
    ],
)
def test_every_form_gives_the_same_messages(row):
    assert parse_conversation(row) == turns("q", "a")


def test_a_system_message_an_input_and_a_weight_are_kept():
    assert parse_conversation({"prompt": "q", "answer": "a", "system": "s"}) == turns("q", "a", system="s")
    assert parse_conversation({"instruction": "q", "input": "more", "output": "a"}) == turns("q\n\nmore", "a")
    weighed = turns("q", "a", "r", "b")
    weighed[1]["weight"], weighed[3]["weight"] = 0, 1
    assert [message.get("weight", 1) for message in parse_conversation({"messages": weighed})] == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a text"}, "neither messages nor a question with an answer"),
        ({"prompt": "q"}, "neither messages nor a question with an answer"),
        ({"messages": turns("q")}, "no answer"),
        ({"messages": []}, "messages are not a list"),
        ({"messages": ["q"]}, "a message is not an object"),
        ({"messages": [{"content": "q"}]}, "a message without a role"),
        ({"messages": turns("q", " \n")}, "empty answer"),
        ({"messages": [*turns("q"), {"role": "assistant", "content": None}]}, "content that is not text"),
        ({"messages": [*turns("q"), {"role": "assistant", "content": "", "tool_calls": [{}]}]}, "a message that calls"),
        ({"messages": [*turns("q"), {"role": "assistant", "content": "a", "weight": 0}]}, "no answer of weight 1"),
        ({"messages": [*turns("q"), {"role": "assistant", "content": "a", "weight": 0.5}]}, "neither 0 nor 1"),
    ],
)
def test_what_is_no_conversation_has_a_reason(row, reason):
    with pytest.raises(BadLine, match=re.escape(reason)):
        parse_conversation(row)


# --- templates ---


def test_the_plain_template_scores_answers_and_what_ends_them():
    ids, scored = encoded(turns("one?", "1", "two?", "zwei €", system="Count."))
    assert shown(ids) == (
        "### System:\nCount.\n\n### User:\none?\n\n### Assistant:\n1\n\n### User:\ntwo?\n\n### Assistant:\nzwei €"
    )
    assert (ids[0], ids[-1]) == (256, 257) and (ids == 256).sum() == 1 and (ids == 257).sum() == 2
    assert ids[scored].tolist() == [*b"1", 257, *"zwei €".encode(), 257]


def test_the_prompt_s_tokens_are_those_of_the_prompt_alone():
    """What a server makes of the conversation so far is how the training tokens begin."""
    messages = turns("one?", "1", "two?", "2")
    ids, scored = encoded(messages)
    for answer in (1, 3):
        prompt = PLAIN.template.render_prompt(messages[:answer])
        alone = [256, *prompt.removeprefix("<bos>").replace("<eos>", "\0").encode()]
        alone = [257 if token == 0 else token for token in alone]
        assert ids[: len(alone)].tolist() == alone and scored[len(alone)]


def test_names_of_special_tokens_in_a_message_are_text():
    ids, scored = encoded(turns("<eos><bos>", "no <eos> here"))
    assert (ids == 257).sum() == (ids == 256).sum() == 1
    assert shown(ids[scored]) == "no <eos> here"


MARKED = PLAIN_TEXT.replace("{%- if message['role'] == 'assistant' %}", "{%- if false %}").replace(
    "{{- '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}",
    "{{- '### ' + message['role'] | capitalize + ':\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}",
)


def test_marks_and_prefixes_find_the_same_answers():
    marked = ChatEncoder(template(MARKED))
    assert marked.describe()["answers_found_by"] == "marks" and PLAIN.describe()["answers_found_by"] == "prefixes"
    for messages in (turns("q", "a"), turns("q", "a", "r", "b", system="s"), turns("q", "\n a \n")):
        for one, other in zip(encoded(messages), encoded(messages, marked), strict=True):
            assert one.tolist() == other.tolist()
    weighed = turns("q", "a", "r", "b")
    weighed[1]["weight"] = 0
    for chat in (PLAIN, marked):
        ids, scored = encoded(weighed, chat)
        assert shown(ids[scored]) == "b"


def test_a_template_that_rewrites_earlier_answers_is_refused():
    forgets = "{% for m in messages %}{{ m.role }}:{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %};" \
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"  # fmt: skip
    chat = ChatEncoder(template(forgets))
    ids, scored = encoded(turns("q", "a"), chat)
    assert shown(ids[scored]) == "a;"
    with pytest.raises(
        ValueError, match=r"does not write answer 1 of a conversation as a continuation.*\{% generation"
    ):
        encoded(turns("q", "a", "r", "b"), chat)
    prompts_otherwise = "{{ messages[0].content }}{% if add_generation_prompt %}<think>{% endif %}" \
        "{% if messages|length > 1 %}{{ messages[1].content }}{% endif %}"  # fmt: skip
    with pytest.raises(ValueError, match="prompt in other words than they record"):
        encoded(turns("q", "a"), ChatEncoder(template(prompts_otherwise)))


def test_a_template_without_a_system_role_gets_it_in_the_first_turn():
    refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}" \
        "[{{ m.content }}]{% endfor %}"  # fmt: skip
    leaves_out = "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
    for text in (refuses, leaves_out):
        chat = ChatEncoder(template(text))
        assert chat.describe()["system_role"] == "folded"
        assert shown(encoded(turns("q", "a", system="s"), chat)[0]) == "[s\n\nq][a]"


def test_bos_and_eos_stand_once_whoever_writes_them():
    bare = ChatEncoder(template("{% for m in messages %}[{{ m.content }}]{% endfor %}"))
    for chat, wanted in ((PLAIN, (1, 1)), (bare, (1, 1))):
        ids, scored = encoded(turns("q", "a"), chat)
        assert ((ids == 256).sum(), (ids == 257).sum()) == wanted and ids[0] == 256 and ids[-1] == 257 and scored[-1]
    ids, _ = encoded(turns("q", "a"), bare, add_bos=False, add_eos=False)
    assert ids.max() < 256
    # White space behind the token that ends a turn is not scored, and EOS is not added to it.
    chatml = "{% for m in messages %}<im>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}" \
        "{% if add_generation_prompt %}<im>assistant\n{% endif %}"  # fmt: skip
    ids, scored = encoded(turns("q", "a"), ChatEncoder(template(chatml, **{"<end>": 257})))
    assert ids[-2:].tolist() == [257, ord("\n")] and scored[-2:].tolist() == [True, False]


LLAMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>' }}"
    "{{ '\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A rank file of the 256 bytes and some words, and a folder as Llama 3's: its own names for special tokens."""
    import base64

    folder = tmp_path_factory.mktemp("llama")
    tokens = [bytes([byte]) for byte in range(256)] + [b"\n\n", b" a", b" an", b"he", b" the"]
    ranks = folder / "ranks.model"
    ranks.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)))
    named = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        9: "<|eot_id|>",
    }
    config = {
        "chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": LLAMA}],
        "bos_token": {"content": "<|begin_of_text|>"},
        "eos_token": "<|eot_id|>",
        "added_tokens_decoder": {str(len(tokens) + i): {"content": name, "special": True} for i, name in named.items()},
    }
    (folder / "hf").mkdir()
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps(config))
    return build_tokenizer("tiktoken", str(ranks)), str(folder / "hf")


def test_a_folder_s_template_has_its_names_for_the_vocabulary_s_special_tokens(llama):
    tokenizer, folder = llama
    chat = build_chat(tokenizer, folder)
    ids, scored = encoded(turns("an <|eot_id|>", "the answer", system="s"), chat, tokenizer)
    base = len(tokenizer._ranks)
    assert ids[:2].tolist() == [base, base + 6] and (ids == base).sum() == 1
    assert (ids == base + 9).sum() == 3 and (ids >= base).sum() == 1 + 3 * 3  # the name in the message is text
    assert ids[-1] == base + 9 and (ids == base + 1).sum() == 0  # <|eot_id|> ends it, nothing is added
    assert tokenizer.decode(ids[scored][:-1].tolist()) == "the answer" and ids[scored][-1] == base + 9
    assert chat.describe()["special_tokens"]["<|eot_id|>"] == base + 9
    with pytest.raises(ValueError, match="another vocabulary"):
        build_chat(BYTES, folder)


def test_transformers_give_the_same_ids_from_an_export_with_the_folder_s_names(llama, tmp_path):
    transformers = pytest.importorskip("transformers")
    from lingua_synth.tokens.huggingface import write_tokenizer_files

    tokenizer, folder = llama
    chat = build_chat(tokenizer, folder)
    write_tokenizer_files(tokenizer, tmp_path, max_length=64, chat=chat.describe())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = turns("an  é", "the answer\n\nand more", "\tthen?", "12345", system=" s ")
    ids, scored = encoded(messages, chat, tokenizer)
    assert theirs.apply_chat_template(messages, return_dict=False) == ids.tolist()
    for answer in (2, 4):
        prompt = theirs.apply_chat_template(messages[:answer], add_generation_prompt=True, return_dict=False)
        assert prompt == ids[: len(prompt)].tolist() and scored[len(prompt)] and not scored[len(prompt) - 1]
    assert (theirs.bos_token, theirs.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")
    assert theirs.decode(ids[scored]).count("<|eot_id|>") == 2


@pytest.mark.parametrize("strips", [False, True])
def test_sentencepiece_puts_no_space_before_an_answer(tmp_path, strips):
    """Models as Llama 2's put a space before every text they encode."""
    from sentencepiece import SentencePieceTrainer

    text = "User says hello there Assistant answers with words and more words"
    SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 50), model_prefix=str(tmp_path / "m"), model_type="bpe", vocab_size=310,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=strips,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = build_tokenizer("sp", str(tmp_path / "m.model"))
    chat = build_chat(tokenizer)
    for answer in ("words and words", " words"):
        ids, scored = encoded(turns("hello", answer), chat, tokenizer)
        prompt = chat.template.render_prompt(turns("hello")).removeprefix(chat.template.bos_token)
        first = int(np.flatnonzero(scored)[0])
        assert ids[:first].tolist() == [tokenizer.bos_id, *tokenizer.encode(prompt)]
        spelled = "".join(tokenizer._model.id_to_piece(int(i)) for i in ids[scored])
        assert spelled == answer.replace(" ", "\u2581") + "</s>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jinja", "{% for %}", r"^the chat template \S+ is no Jinja: line 1"),
        ("t.jinja", "{{ messages[7].content }}", "cannot write one question and its answer"),
        ("t.yaml", "x", "chat_template is plain, a file of Jinja"),
        (None, "", "chat_template is plain, a file of Jinja .*got nothing"),
    ],
)
def test_a_template_that_is_none_is_refused(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        build_chat(BYTES, str(tmp_path / name) if name else "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no chat template in .*take chat_template=plain"):
        read_chat_template(str(tmp_path / "empty"), BYTES)


# --- shards ---


def conversations(count, seed=0):
    rng = np.random.default_rng(seed)
    said = ["x" * int(n) for n in rng.integers(1, 30, 400)]
    rows = []
    for i in range(count):
        first, length = int(rng.integers(0, 300)), 2 * int(rng.integers(1, 4))
        rows.append(Document(f"c{i}", "-", {"messages": turns(*said[first : first + length])}))
    return rows


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 9),
    count=st.integers(1, 12),
    shard_tokens=st.integers(1, 400),
    shuffle_seed=st.none() | st.integers(0, 3),
)
def test_every_token_is_scored_or_not_as_its_conversation_says(
    tmp_path_factory, seed, count, shard_tokens, shuffle_seed
):
    folder = tmp_path_factory.mktemp("s")
    rows = conversations(count, seed)
    manifest = tokenize(
        rows, folder, BYTES, chat=PLAIN, shard_tokens=shard_tokens, shuffle_seed=shuffle_seed, progress=False
    )
    source = TokenSource(folder, verify=True)
    by_id = {row.id: encoded(row.meta["messages"]) for row in rows}
    expected = [by_id[source.document_id(i)] for i in range(len(source))]
    for i, (ids, scored) in enumerate(expected):
        assert source.document(i).tolist() == ids.tolist() and source.document_scored(i).tolist() == scored.tolist()
    whole = np.concatenate([scored for _, scored in expected])
    for start in range(0, len(whole), 3):
        for length in (0, 1, 50, len(whole) - start):
            if start + length <= len(whole):
                assert source.scored(start, length).tolist() == whole[start : start + length].tolist()
    assert manifest["scored_tokens"] == whole.sum() == sum(entry["scored_tokens"] for entry in manifest["files"])
    assert manifest["bytes"] == sum((ids[scored] < 256).sum() for ids, scored in expected)
    assert manifest["conversations"]["answers"] == manifest["conversations"]["ends with 257"]
    assert source.is_masked and verify_shards(folder) == []


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_shards_are_the_same_for_any_number_of_workers_and_from_parquet(tmp_path):
    import pyarrow.parquet as pq

    rows = [{"id": row.id, **row.meta} for row in conversations(300)]
    file = write(tmp_path / "c.jsonl", rows)
    one = tokenize(file, tmp_path / "one", BYTES, chat=PLAIN, num_workers=1, progress=False, shard_tokens=9_000)
    two = tokenize(file, tmp_path / "two", BYTES, chat=PLAIN, num_workers=2, progress=False, shard_tokens=9_000)
    assert one["files"] == two["files"] and len(one["files"]) > 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    plain = {"shuffle_seed": None, "progress": False, "chat": PLAIN}
    of_parquet = tokenize(str(tmp_path / "c.parquet"), tmp_path / "three", BYTES, **plain)
    assert of_parquet["files"] == tokenize(file, tmp_path / "four", BYTES, **plain)["files"]


def test_an_interrupted_tokenization_goes_on_with_its_counts(tmp_path, monkeypatch):
    from lingua_synth.tokens import tokenization

    file = write(tmp_path / "c.jsonl", [{"id": row.id, **row.meta} for row in conversations(50)])
    whole = tokenize(file, tmp_path / "whole", BYTES, chat=PLAIN, progress=False)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenization, "write_planned_shard", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tokenize(file, tmp_path / "s", BYTES, chat=PLAIN, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(tokenization, "run_unit", full_disk)  # which is done
    again = tokenize(file, tmp_path / "s", BYTES, chat=PLAIN, progress=False)
    for key in ("files", "conversations", "scored_tokens", "skipped", "chat"):
        assert again[key] == whole[key]


def test_shards_of_texts_are_as_they_were(tmp_path):
    manifest = tokenize([Document("a", "a text")], tmp_path, BYTES, progress=False)
    assert not {"chat", "scored_tokens", "conversations"} & manifest.keys()
    with pa.memory_map(str(tmp_path / "shard-00000.arrow")) as file:
        assert pa.ipc.open_file(file).schema.names == ["tokens", "num_bytes", "id"]
    source = TokenSource(tmp_path)
    assert not source.is_masked and source.scored(2, 3).tolist() == [True] * 3
    assert "scored" not in shard_schema(np.dtype(np.uint16)).names


def test_another_template_is_another_tokenization(tmp_path):
    rows = conversations(5)
    tokenize(rows, tmp_path / "s", BYTES, chat=PLAIN, progress=False)
    tokenize(rows, tmp_path / "s", BYTES, chat=PLAIN, progress=False)  # finished: returned as it is
    for chat in (ChatEncoder(template(MARKED)), ChatEncoder(PLAIN.template, max_tokens=50), None):
        with pytest.raises(ValueError, match="chat is plain"):
            tokenize(rows, tmp_path / "s", BYTES, chat=chat, progress=False)


def test_overlong_conversations_are_dropped_or_cut_and_counted(tmp_path):
    rows = [
        Document("short", "-", {"messages": turns("q", "a")}),
        Document("long", "-", {"messages": turns("q", "a" * 99)}),
    ]
    rows.append(Document("prompt", "-", {"messages": turns("q" * 99, "a")}))
    drop, cut = (ChatEncoder(PLAIN.template, 60, overlong) for overlong in ("drop", "cut"))
    dropped = tokenize(rows, tmp_path / "drop", BYTES, chat=drop, progress=False)
    assert dropped["documents"] == 1 and dropped["skipped"] == {"longer than chat_max_tokens": 2}
    kept = tokenize(rows, tmp_path / "cut", BYTES, chat=cut, shuffle_seed=None, progress=False)
    assert kept["documents"] == 2 and kept["skipped"] == {"no answer within chat_max_tokens": 1}
    assert kept["conversations"] == {"answers": 2, "cut": 1, "ends with 257": 1, "no end": 1}
    source = TokenSource(tmp_path / "cut")
    assert len(source.document(1)) == 60
    assert kept["bytes"] == 1 + source.document_scored(1).sum() == source.num_bytes
    with pytest.raises(ValueError, match="chat_overlong is drop or cut"):
        ChatEncoder(PLAIN.template, 60, "split")


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), window=st.integers(40, 60))
def test_packed_documents_cross_no_window_and_leave_little_room(lengths, window):
    order, padding = pack_windows(np.array(lengths), window)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    sizes = np.array(lengths)[order]
    ends = np.cumsum(sizes + padding[order])
    starts = ends - sizes - padding[order]
    assert (starts // window == (starts + sizes - 1) // window).all() and ends[-1] % window == 0
    assert (padding < window).all()
    # No two windows could have been one.
    filled = np.bincount(starts // window, sizes)
    assert len(filled) == 1 or np.sort(filled)[:2].sum() > window


def test_answers_that_a_template_changes_are_counted(tmp_path):
    forgets = "{% for m in messages %}{{ m.role }}:{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}" \
        "{% if add_generation_prompt %}assistant:{% endif %}"  # fmt: skip
    rows = [Document("a", "-", {"messages": turns("q", "<think>why</think>a")})]
    rows.append(Document("b", "-", {"messages": turns("q", " <bos> ")}))  # as it is, but for its name's being text
    for text, counted in ((forgets, {"answers": 2, "ends with 257": 2, "rewritten": 1}), (PLAIN_TEXT, None)):
        chat = ChatEncoder(template(text))
        found = tokenize(rows, tmp_path / str(counted is None), BYTES, chat=chat, progress=False)["conversations"]
        assert found == (counted or {"answers": 2, "ends with 257": 2})


def test_a_template_that_writes_nothing_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="the chat template writes no answer 5"):
        tokenize(conversations(5), tmp_path, BYTES, chat=ChatEncoder(template("")), progress=False)


@pytest.mark.parametrize("shuffle_seed", [0, None])
def test_conversations_packed_for_windows_are_whole_in_every_window(tmp_path, shuffle_seed):
    from lingua_synth.mixture import MixtureLoader

    rows, window = conversations(120), 200
    chat = ChatEncoder(PLAIN.template, window_tokens=window)
    assert chat.max_tokens == window
    manifest = tokenize(
        rows, tmp_path / "s", BYTES, chat=chat, shard_tokens=4_000, shuffle_seed=shuffle_seed, progress=False
    )
    kept = {row.id: row for row in rows if len(encoded(row.meta["messages"])[0]) <= window}
    assert manifest["documents"] == len(kept) < len(rows) and len(manifest["files"]) > 3
    assert all(entry["tokens"] % window == 0 for entry in manifest["files"][:-1])
    assert manifest["files"][-1]["tokens"] % window == 1
    source = TokenSource(tmp_path / "s")
    starts = np.cumsum(source.document_lengths) - source.document_lengths
    num_padding = 0
    for i in range(len(source)):
        ids, scored = encoded(kept[source.document_id(i)].meta["messages"])
        stored, length = source.document(i), len(ids)
        assert stored[:length].tolist() == ids.tolist() and (stored[length:] == 257).all()
        assert source.document_scored(i).tolist() == [*scored.tolist(), *[False] * (len(stored) - length)]
        assert starts[i] // window == (starts[i] + length - 1) // window
        num_padding += len(stored) - length
    assert manifest["conversations"]["padding"] == num_padding < 0.25 * manifest["tokens"]
    assert verify_shards(tmp_path / "s") == []
    # Every answer is learned once an epoch, and in sight of its whole conversation.
    loader = MixtureLoader(
        {"c": source}, {"c": 1}, seq_len=window, batch_size=1, num_sequences=source.num_tokens // window
    )
    assert sum(int(batch.scored.sum()) for batch in loader) == manifest["scored_tokens"]
    with pytest.raises(ValueError, match="chat_max_tokens 300 is more than chat_window_tokens 200"):
        ChatEncoder(PLAIN.template, 300, window_tokens=window)


def test_what_the_template_refuses_is_counted(tmp_path):
    rows = conversations(3)
    rows.append(Document("tool", "-", {"messages": [{"role": "tool", "content": "t"}, *turns("q", "a")]}))
    rows.append(Document("mark", "-", {"messages": turns("\ufdd0", "a")}))
    skipped = tokenize(rows, tmp_path, BYTES, chat=PLAIN, progress=False)["skipped"]
    assert sorted(skipped.values()) == [1, 1]
    assert any("the plain template knows the roles" in reason for reason in skipped)


def test_a_damaged_mask_is_found(tmp_path):
    from lingua_synth.files import sha256_file, write_json

    manifest = tokenize(conversations(4), tmp_path, BYTES, chat=PLAIN, shuffle_seed=None, progress=False)
    path = tmp_path / "shard-00000.arrow"
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    borders = batch.column("scored").to_pylist()
    borders[1] = [borders[1][1], borders[1][0], *borders[1][2:]]
    columns = [*batch.columns[:3], pa.array(borders, batch.schema.field("scored").type)]
    changed = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    with pa.ipc.new_file(str(tmp_path / "new"), batch.schema) as writer:
        writer.write_batch(changed)
    (tmp_path / "new").rename(path)
    manifest["files"][0] |= {"sha256": sha256_file(path), "file_bytes": path.stat().st_size}
    write_json(tmp_path / "manifest.json", manifest)
    assert "does not say in order which tokens" in verify_shards(tmp_path)[0]


def test_megatron_has_no_place_for_a_mask(tmp_path):
    tokenize(conversations(3), tmp_path / "s", BYTES, chat=PLAIN, progress=False)
    with pytest.raises(ValueError, match="which Megatron's format cannot"):
        export_megatron(tmp_path / "s", tmp_path / "m", progress=False)


def test_the_command_tokenizes_conversations(tmp_path, capsys):
    file = write(tmp_path / "c.jsonl", [{"prompt": f"{i}?", "completion": f"{i}!"} for i in range(20)])
    words = ["tokenize", f"documents={file}", f"out={tmp_path / 's'}", "tokenizer.name=bytes", "progress=false"]
    assert main([*words, "chat_template=plain"]) == 0
    said = capsys.readouterr().out
    assert "in 20 answers, written by the chat template plain" in said
    assert main(["tokenize", f"verify={tmp_path / 's'}"]) == 0
    code = run_command(main, [*words[:2], f"out={tmp_path / 'u'}", *words[3:], "chat_max_tokens=9"])
    assert code != 0 and "name a chat_template" in capsys.readouterr().err
