"""Fine-tuning on answers: what is read, what is learned, what is counted."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from killing import train_and_kill
from mixture_doubles import ArraySource

from lingua_synth.documents import Document, write_documents
from lingua_synth.evaluate import evaluate_domains
from lingua_synth.evaluate.command import main as evaluate_command
from lingua_synth.evaluate.protocol import Protocol
from lingua_synth.evaluate.scoring import Evaluator
from lingua_synth.files import read_json
from lingua_synth.generate.selection import select_traces
from lingua_synth.hosts.resolve import resolve
from lingua_synth.mixture import MixtureLoader
from lingua_synth.mixture.batch import IGNORED_LABEL
from lingua_synth.mixture.lingua_batches import lingua_batches
from lingua_synth.mixture.sequences import MixtureSequences
from lingua_synth.mixture.torch_data import MixtureDataset
from lingua_synth.model import ModelArgs, build_model, load_checkpoint
from lingua_synth.model.huggingface import export_huggingface
from lingua_synth.model.loss import token_nll
from lingua_synth.tokens import TokenSource, build_chat, build_tokenizer, tokenize
from lingua_synth.train import train
from lingua_synth.train.metrics import read_metrics

BYTES = build_tokenizer("bytes")
ANSWERS = {"red": "stop", "green": "go", "blue": "what?"}


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """Shards of conversations that `generate select` wrote, of few tokens that are answers, and held-out ones."""
    folder = tmp_path_factory.mktemp("chats")
    rows = []
    for i in range(240):
        colour = list(ANSWERS)[i % 3]
        fields = {"question": f"{i} {colour}?", "reasoning": "none", "answer": ANSWERS[colour]}
        rows.append(Document(f"q{i}", "text", {"synth": {"source_id": f"q{i}", "step": "x", "fields": fields}}))
    write_documents(folder / "traces.jsonl", rows)
    select_traces(str(folder / "traces.jsonl"), folder / "chosen", "random(200)", system2="0", system_prompts="none")
    chat = build_chat(BYTES)
    tokenize(str(folder / "chosen" / "selected.chat.jsonl"), folder / "train", BYTES, chat=chat, progress=False)
    held_out = [{"prompt": f"{i} {c}?", "completion": a} for i, (c, a) in enumerate(ANSWERS.items(), 900)]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    tokenize(str(folder / "heldout.jsonl"), folder / "heldout", BYTES, chat=chat, progress=False)
    return {"train": str(folder / "train"), "heldout": str(folder / "heldout")}


@pytest.fixture
def finetune_args(train_args, chats):
    """A run on the conversations alone, each token seeing its own conversation."""

    def build(*overrides, **where):
        base = {
            "data": {"seq_len": 64},
            "synth": {
                "global_batch_tokens": 512,
                "tokens": 12 * 512,
                "document_masking": True,
                "sources": {"chats": {"path": chats["train"], "max_epochs": 9.0}},
                "evaluation": {"domains": {"chats": chats["heldout"]}},
                "mixture": "chats",
            },
        }
        args = train_args(base, *overrides, **where)
        args.synth.sources = {name: s for name, s in args.synth.sources.items() if name not in ("natural", "synthetic")}
        args.synth.evaluation.domains = {"chats": chats["heldout"]}
        return args

    return build


def column(run_dir, key):
    return [record[key] for record in read_metrics(Path(run_dir) / "metrics.jsonl")]


# --- what is read ---


def test_every_label_of_every_window_is_scored_as_its_document_says(chats):
    source = TokenSource(chats["train"])
    whole = np.concatenate([source.document_scored(i) for i in range(len(source))])
    tokens = np.concatenate([source.document(i) for i in range(len(source))])
    for seq_len, n_views in ((7, 2), (64, 2), (31, 4)):
        loader = MixtureLoader({"chats": source}, {"chats": 1}, seq_len=seq_len, batch_size=2, n_views=n_views, seed=3)
        order = loader._reader.order
        seen = np.zeros(len(whole), dtype=bool)
        for batch in itertools.islice(loader, loader.num_windows["chats"] // 2):
            _, _, window = order.locate(batch.position)
            for row, start in enumerate((window * seq_len).tolist()):
                labels = slice(start + 1, start + 1 + seq_len)
                assert batch.scored[row].tolist() == whole[labels].tolist()
                expected = np.where(whole[labels], tokens[labels].astype(int), IGNORED_LABEL)
                assert batch.scored_labels[row].tolist() == expected.tolist()
                seen[labels] |= batch.scored[row]
        assert seen.sum() >= whole[1 : loader.num_windows["chats"] // 2 * 2 * seq_len].sum() > 0


def test_texts_beside_conversations_keep_their_share_and_all_their_labels(chats, shards):
    sources = {"chats": TokenSource(chats["train"]), "text": TokenSource(shards["natural"])}
    mixture = {"chats": "1/3", "text": "2/3"}
    loader = MixtureLoader(sources, mixture, seq_len=16, batch_size=6, num_sequences=96)
    batches = list(loader)
    assert sum((batch.source == 0).sum() for batch in batches) == 32
    for batch in batches:
        assert batch.scored[batch.source == 1].all() and not batch.scored[batch.source == 0].all()
        assert np.array_equal(batch.labels, batch.block[:, 1:])
    ahead = MixtureLoader(sources, mixture, seq_len=16, batch_size=6, num_sequences=96, prefetch=2)
    for one, other in zip(batches, ahead, strict=True):
        assert np.array_equal(one.scored, other.scored) and np.array_equal(one.block, other.block)


def test_texts_alone_have_no_mask_at_all():
    loader = MixtureLoader({"a": ArraySource(0, 1_000)}, {"a": 1}, seq_len=10, batch_size=2)
    batch = next(loader)
    assert not loader.is_masked and batch.scored is None and batch.scored_labels.base is batch.block


def test_torch_datasets_leave_prompts_out_of_the_labels(chats, shards):
    sources, mixture = {"chats": TokenSource(chats["train"])}, {"chats": 1}
    settings = {"seq_len": 16, "num_sequences": 24, "global_batch_size": 4}
    batches = list(MixtureLoader(sources, mixture, batch_size=4, **settings))
    for batch, made in zip(batches, MixtureDataset(sources, mixture, batch_size=4, **settings), strict=True):
        assert made["labels"].tolist() == batch.scored_labels.tolist()
        assert (made["labels"] == IGNORED_LABEL).any() and made["tokens"].tolist() == batch.tokens.tolist()
    rows = MixtureSequences(sources, mixture, **settings)
    assert [row["scored"].tolist() for row in rows] == [r.tolist() for batch in batches for r in batch.scored]
    keys = {"keys": ("tokens", "scored"), "batch_size": 4}
    assert next(iter(MixtureDataset(sources, mixture, **keys, **settings)))["scored"].dtype == torch.bool
    with pytest.raises(ValueError, match="every label of these sources counts"):
        MixtureDataset({"text": TokenSource(shards["natural"])}, {"text": 1}, **keys, **settings)


# --- what is learned ---


@pytest.mark.parametrize("backend", ["plain", "chunked", "torch"])
def test_prompts_give_no_gradient_whatever_their_labels(backend):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 16, generator=generator), torch.randn(50, 16, generator=generator)
    labels = torch.randint(0, 50, (40,), generator=generator)
    scored = torch.rand(40, generator=generator) < 0.3

    def gradients(loss_of):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(*leaves)
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves)]

    def ours(h, w):
        nll = token_nll(h, w, labels.masked_fill(~scored, IGNORED_LABEL), backend=backend, chunk_tokens=7)
        return nll.sum() * (1 / scored.sum())

    def by_hand(h, w):
        return F.cross_entropy((h @ w.t())[scored], labels[scored])

    for one, other in zip(gradients(ours), gradients(by_hand), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert gradients(ours)[1][~scored].abs().max() == 0


def reference_losses(args, source, steps):
    """The run by hand: whole batches, logits, and labels that are -100 where transformers' collators put it."""
    model = build_model(args.model, seed=args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.optim.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    per_step = args.synth.global_batch_tokens // args.data.seq_len
    loader = MixtureLoader(
        {"chats": source},
        {"chats": 1},
        seq_len=args.data.seq_len,
        batch_size=per_step,
        seed=args.data.seed,
        document_boundaries=True,
    )
    losses, norms = [], []
    for step, batch in enumerate(itertools.islice(loader, steps)):
        for group in optimizer.param_groups:
            group["lr"] = args.optim.lr * step / args.optim.warmup if step < args.optim.warmup else args.optim.lr
        block = torch.from_numpy(batch.block).long()
        logits = model(block[:, :-1], document=torch.from_numpy(batch.document))
        labels = block[:, 1:].clone()
        labels[torch.from_numpy(~batch.scored)] = -100
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))  # the mean over what counts
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), args.optim.clip)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.parametrize("batch_size", [8, 2])
def test_losses_are_those_of_a_plain_loop_with_ignored_labels(finetune_args, chats, tmp_path, batch_size):
    """Whatever the micro-batches, whose shares of scored tokens differ."""
    optim = {"optim": {"scheduler": "constant", "warmup": 2}, "synth": {"warmup_ratio": None}}
    train(finetune_args(optim, {"data": {"batch_size": batch_size}}), progress=False)
    resolved = read_json(tmp_path / "run" / "checkpoints" / f"{12:010d}" / "params.json")
    assert resolved["grad_acc_steps"] == 8 // batch_size
    from lingua_synth.config import build_args
    from lingua_synth.train.args import TrainArgs

    source = TokenSource(chats["train"])
    args = build_args(TrainArgs, {k: v for k, v in resolved.items() if k != "chat"})
    expected, norms = reference_losses(args, source, 12)
    assert np.allclose(column(tmp_path / "run", "loss/mean"), expected, rtol=0, atol=1e-5)
    assert abs(column(tmp_path / "run", "loss/mean")[0] - expected[0]) < 1e-6
    assert np.allclose(column(tmp_path / "run", "optim/grad_norm"), norms, rtol=1e-4, atol=0)


def test_a_model_learns_to_answer(finetune_args, chats, tmp_path):
    longer = {"synth": {"tokens": 120 * 512}, "optim": {"lr": 1e-2}}
    row = train(finetune_args(longer), progress=False)
    losses = column(tmp_path / "run", "loss/mean")
    assert losses[0] > 4 and losses[-1] < 0.8 and row["loss_chats"] < 0.9
    # What it was never taught, the questions, it cannot do: everything it learned is in the answers.
    model, args, _ = load_checkpoint(tmp_path / "run")
    unmasked = TokenSource(chats["heldout"])
    unmasked.is_masked = False
    assert evaluate_domains(model, {"text": unmasked}, seq_len=args.max_seqlen)["text"].loss > 4


def test_a_run_counts_the_tokens_it_learned_from(finetune_args, chats, shards, tmp_path):
    mixed = {
        "synth": {
            "document_masking": False,
            "sources": {"text": {"path": shards["natural"], "ratio": "1/4"}, "chats": {"ratio": "3/4"}},
        }
    }
    row = train(finetune_args(mixed), progress=False)
    args = read_json(tmp_path / "run" / "checkpoints" / f"{12:010d}" / "params.json")
    sources = {"chats": TokenSource(chats["train"]), "text": TokenSource(shards["natural"])}
    loader = MixtureLoader(
        sources, {"chats": "3/4", "text": "1/4"}, seq_len=64, batch_size=8, seed=args["data"]["seed"], num_sequences=96
    )
    expected = {"chats": 0, "text": 0}
    for batch in loader:
        for i, name in enumerate(loader.mixture.names):
            expected[name] += int(batch.scored[batch.source == i].sum())
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    for name, count in expected.items():
        assert row[f"scored_tokens_{name}"] == last[f"data/scored_tokens/{name}"] == count
        assert last[f"data/tokens/{name}"] == row[f"tokens_{name}"]
    assert row["scored_tokens"] == sum(expected.values()) < row["tokens"] == 96 * 64
    assert expected["text"] == row["tokens_text"] == 24 * 64
    assert "synth.document_masking=true keeps them apart" in (tmp_path / "run" / "train.log").read_text()
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert first["loss/source/chats"] != first["loss/source/text"]


def test_killed_and_resumed_it_ends_with_the_same_bits(finetune_args, tmp_path):
    expected = train(finetune_args(dump_dir=tmp_path / "whole"), progress=False)
    killed = finetune_args(dump_dir=tmp_path / "killed")
    train_and_kill(killed)
    row = train(killed, progress=False)
    for key in ("loss/mean", "loss/out", "data/scored_tokens/chats", "optim/grad_norm"):
        assert column(tmp_path / "killed", key) == column(tmp_path / "whole", key)
    same = [key for key in row if key.startswith(("loss_", "bpb_", "tokens", "scored_tokens"))]
    assert {key: row[key] for key in same} == {key: expected[key] for key in same} and len(same) > 6


def test_a_step_without_a_scored_token_changes_nothing(finetune_args, tmp_path):
    """Long questions and one-letter answers: most steps of 32 tokens hold none."""
    rows = [{"prompt": "x" * 150, "completion": "y"} for _ in range(20)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize(str(tmp_path / "long.jsonl"), tmp_path / "long", BYTES, chat=build_chat(BYTES), progress=False)
    few = {
        "data": {"seq_len": 32, "batch_size": 1},
        "synth": {"global_batch_tokens": 32, "tokens": 384, "sources": {"chats": {"path": str(tmp_path / "long")}}},
    }
    row = train(finetune_args(few), progress=False)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    empty = sum("loss/mean" not in record for record in records)
    assert 0 < empty == row["skipped_steps"] < 12
    log = (tmp_path / "run" / "train.log").read_text()
    assert "no token of it is scored" in log and "see their neighbours" not in log


# --- what is held out, refused and exported ---


def test_held_out_answers_are_scored_as_a_plain_loop_does(finetune_args, chats):
    train(finetune_args(), progress=False)
    model, _, _ = load_checkpoint(finetune_args().dump_dir)
    source = TokenSource(chats["heldout"])
    nats = tokens = 0
    for i in range(len(source)):
        ids, scored = torch.from_numpy(source.document(i).astype(np.int64)), source.document_scored(i)
        with torch.no_grad():
            log_p = model(ids[None, :-1]).double().log_softmax(-1)[0]
        places = np.flatnonzero(scored)
        nats -= sum(float(log_p[place - 1, ids[place]]) for place in places)
        tokens += len(places)
    sums = evaluate_domains(model, {"chats": source}, seq_len=64)["chats"]
    assert sums.tokens == tokens == sum(len(answer) + 1 for answer in ANSWERS.values())
    assert sums.bytes == sum(map(len, ANSWERS.values()))
    assert abs(sums.nats - nats) < 1e-4
    words = [f"checkpoint={finetune_args().dump_dir}", f"domains.chats={chats['heldout']}", "device=cpu"]
    with pytest.raises(ValueError, match="lingua-compat scores whole documents, and a domain holds conversations"):
        evaluate_command([*words, "protocol=lingua-compat"])


@pytest.mark.parametrize("protocol", [Protocol("disjoint", 16), Protocol("sliding", 16, 5)])
def test_answers_cut_by_windows_beside_texts_are_scored_once(finetune_args, chats, shards, protocol):
    """Windows without an answer are left out; what is scored sees what its window holds before it."""
    model = build_model(ModelArgs(dim=32, n_layers=1, n_heads=2, vocab_size=258, max_seqlen=16, multiple_of=16), seed=0)
    source = TokenSource(chats["heldout"])
    scores = Evaluator({"text": TokenSource(shards["near"]), "chats": source}, protocol).score(model)
    nats = 0.0
    for i in range(len(source)):
        ids, scored = source.document(i).astype(np.int64), source.document_scored(i)
        windows = protocol.windows(np.array([len(ids) - 1]))
        for start, length, context in zip(windows.start, windows.length, windows.num_context, strict=True):
            with torch.no_grad():
                log_p = model(torch.from_numpy(ids[None, start : start + length])).double().log_softmax(-1)[0]
            for place in range(start + context, start + length):
                nats -= float(log_p[place - start, ids[place + 1]]) * bool(scored[place + 1])
    assert scores.sums["chats"].tokens == scores.documents["chats"].tokens.sum() == source.document_num_scored.sum()
    assert abs(scores.sums["chats"].nats - nats) < 1e-4
    counts = np.bincount(
        np.concatenate([source.document(i)[source.document_scored(i)] for i in range(3)]), minlength=258
    )
    assert scores.token_losses["chats"].counts.tolist() == counts.tolist()
    alone = Evaluator({"text": TokenSource(shards["near"])}, protocol).score(model)
    assert alone.sums["text"].tokens == scores.sums["text"].tokens
    assert np.array_equal(alone.token_losses["text"].counts, scores.token_losses["text"].counts)
    with pytest.raises(ValueError, match="lingua-compat scores whole documents"):
        Evaluator({"chats": source}, Protocol("lingua-compat", 16)).packing("cpu")


def test_two_chat_templates_in_one_run_are_refused(finetune_args, chats, tmp_path):
    bare = tmp_path / "bare.jinja"
    bare.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    chat = build_chat(BYTES, str(bare))
    rows = [Document(str(i), "-", {"prompt": "q", "completion": "a"}) for i in range(200)]
    tokenize(rows, tmp_path / "other", BYTES, chat=chat, progress=False)
    both = {
        "synth": {"sources": {"other": {"path": str(tmp_path / "other"), "ratio": "1/4"}, "chats": {"ratio": "3/4"}}}
    }
    with pytest.raises(ValueError, match="written by different chat templates"):
        train(finetune_args(both), progress=False)


def test_conversations_packed_for_other_windows_are_refused(finetune_args, tmp_path):
    rows = [Document(str(i), "-", {"prompt": "q", "completion": "a"}) for i in range(200)]
    tokenize(rows, tmp_path / "packed", BYTES, chat=build_chat(BYTES, window_tokens=48), progress=False)
    packed = {"synth": {"sources": {"chats": {"path": str(tmp_path / "packed")}}}}
    with pytest.raises(ValueError, match=r"packed for windows of 48 tokens .* data.seq_len 64 would cut"):
        train(finetune_args(packed), progress=False)


def test_meta_lingua_s_loop_is_refused(finetune_args, chats):
    args = finetune_args({"synth": {"document_masking": False}})
    with pytest.raises(ValueError, match=r"holds conversations.*Use host=native"):
        resolve(args)
    loader = MixtureLoader({"chats": TokenSource(chats["train"])}, {"chats": 1}, seq_len=16, batch_size=2)
    with pytest.raises(ValueError, match="Meta Lingua's loop scores every token"), lingua_batches(loader):
        pass


def test_the_export_carries_the_chat_template(finetune_args, tmp_path):
    train(finetune_args(), progress=False)
    out = export_huggingface(tmp_path / "run", tmp_path / "hf")
    chat = build_chat(BYTES)
    config = read_json(out / "tokenizer_config.json")
    assert config["chat_template"] == (out / "chat_template.jinja").read_text() == chat.template.text
    assert (config["bos_token"], config["eos_token"], config["split_special_tokens"]) == ("<bos>", "<eos>", False)
    assert read_json(out / "generation_config.json")["eos_token_id"] == 257
    card = (out / "README.md").read_text()
    assert "fine-tuned on the answers of conversations" in card and "apply_chat_template" in card
    assert f"Learned from {read_json(tmp_path / 'run' / 'result.json')['scored_tokens']:,} of them" in card
    # What it was exported with is what the next tokenization can take.
    again = build_chat(BYTES, str(out))
    assert again.describe()["sha256"] == chat.describe()["sha256"]


def test_transformers_read_the_same_conversation(finetune_args, tmp_path):
    transformers = pytest.importorskip("transformers")
    train(finetune_args(), progress=False)
    out = export_huggingface(tmp_path / "run", tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    messages = [
        {"role": role, "content": f"{role} é €"} for role in ("system", "user", "assistant", "user", "assistant")
    ]
    found = build_chat(BYTES).encode(BYTES, [json.dumps(messages).encode()], add_bos=True, add_eos=True)
    assert tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False) == found.ids[0].tolist()
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert prompt == found.ids[0].tolist()[: int(found.runs[0][0])]
