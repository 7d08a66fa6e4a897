"""Tiny language models with random weights, and a tokenizer of letters, for tests of rewards."""

from tests.evaluation.row_models import made

LETTERS = ["<pad>", "<s>", "</s>", "<user>", "<assistant>", *"abcdefghijklmnopqrstuvwxyz0123456789 +=?"]
TEMPLATE = (
    "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<assistant>' }}{{ m.content }}"
    "{% if not (loop.last and continue_final_message is defined and continue_final_message) %}"
    "{{ ' ' if shout is not defined else '?' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZES = {"vocab_size": len(LETTERS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokenizer(**options):
    """One token for each letter; no padding side or template but what is asked for."""
    import tokenizers
    import transformers

    by_letter = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="<pad>")
    )
    by_letter.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("<[a-z]+>|."), "isolated")
    by_letter.decoder = tokenizers.decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE, **options}
    extra = ["<user>", "<assistant>"]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=by_letter, additional_special_tokens=extra, **special)


def gpt2(seed=0, **options):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, **options}
    return made(GPT2LMHeadModel, GPT2Config(**SIZES, **sizes), seed)


def llama(seed=0, **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 64, **options,
    }  # fmt: skip
    return made(LlamaForCausalLM, LlamaConfig(**SIZES, **sizes), seed)


ROWS = [
    {"prompt": "1+1=", "answer": "2"},
    {"prompt": "hello ", "answer": "a"},
    {"prompt": "what is 3+4?", "answer": "7"},
    {"prompt": "b", "answer": "e"},
]


def vowels(completions, **kwargs):
    """The share of vowels."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(text.count(vowel) for vowel in "aeiou") / max(1, len(text)) for text in texts]
