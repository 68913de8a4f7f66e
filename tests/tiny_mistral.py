"""A tiny Mistral and its tokenizer, made on the spot, for engines that hold a Hugging Face model."""

from pathlib import Path

# Mistral-7B-Instruct-v0.1's rules: turns alternate, and nobody is called system.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
CONTEXT = 1024


def make_mistral(folder, template=TEMPLATE, seed=0, context=CONTEXT, vocab_size=600, words=()):
    """Save model and tokenizer into `folder`, in fp32. Its texts are nonsense, and no two tokens nearly as likely.

    `words`: further texts that the vocabulary is made of.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator([Path(__file__).read_text(), *words], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,  # 32 a head: vLLM's attention on a CPU has no smaller one
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        sliding_window=None,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = MistralForCausalLM(config)
    with torch.no_grad():
        # Far from the flat output of a new model: another order of additions must not change the likeliest token.
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    return str(folder)
