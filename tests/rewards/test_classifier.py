"""Reward models: a sequence-classification model is a reward function, and no part of the module."""

import copy

import pytest
import torch
from torch import nn

from lightning_evo.rewards import Call, ClassifierReward, RewardFunctions
from tests.rewards.modes import Follows

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = [  # of DeepSpeed, which transformers imports
    pytest.mark.filterwarnings("ignore:.*torch.jit.script. is (deprecated|not supported)"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute on the instance is deprecated"),
]

WORDS = ["<pad>", "<s>", "a", "b", "c", "user", "assistant"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<s>", pad_token="<pad>", padding_side="left"
    )


def model(labels=1):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_labels=labels, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForSequenceClassification(config)


def reward(judge, ids):
    """The logit at the last token, of a text without padding."""
    states = judge.model(torch.tensor([ids])).last_hidden_state
    return judge.score(states)[0, -1, 0].item()


@torch.no_grad()
def test_rewards_are_the_logits_of_texts_without_padding():
    judge = model()
    score = RewardFunctions(ClassifierReward(judge, tokenizer()), weights=[2.0])
    [scored] = score([Call(["a ", "a "], ["b", "b c c a"], [[3], [3, 4, 4, 2]])])
    assert scored.error is None
    expected = [reward(judge, [2, 3]), reward(judge, [2, 3, 4, 4, 2])]
    assert scored.rewards == {"LlamaForSequenceClassification": pytest.approx(expected, abs=1e-5)}
    assert scored.values.tolist() == pytest.approx([2 * each for each in expected], abs=1e-5)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)


@torch.no_grad()
def test_messages_go_through_the_models_chat_template():
    judge, words = model(), tokenizer()
    call = Call([[{"role": "user", "content": "a b"}]], [[{"role": "assistant", "content": "c"}]], [[4]])
    with pytest.raises(ValueError, match="has no chat template"):
        ClassifierReward(judge, words)(call.prompts, call.completions)
    words.chat_template = TEMPLATE
    [scored] = RewardFunctions(ClassifierReward(judge, words))([call])
    assert scored.values.tolist() == pytest.approx([reward(judge, [5, 2, 3, 6, 4])], abs=1e-5)


@torch.no_grad()
def test_texts_and_conversations_in_one_batch():
    judge, words = model(), tokenizer()
    words.chat_template = TEMPLATE
    # A tokenizer that adds a special token to texts; a chat template writes those of messages itself.
    words.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    text, chat = ("a b ", "c"), ([{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}])
    reads = {text: [1, 2, 3, 4], str(chat): [5, 2, 6, 3]}
    expected = {key: reward(judge, ids) for key, ids in reads.items()}
    for order in ([text, chat], [chat, text, text]):
        found = ClassifierReward(judge, words)([each[0] for each in order], [each[1] for each in order])
        wanted = [expected[each if each is text else str(each)] for each in order]
        assert found == pytest.approx(wanted, abs=1e-5)


def test_a_text_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="reads at most 64 tokens, and a prompt with its completion has 65"):
        ClassifierReward(model(), tokenizer())(["a", "b"], [" a" * 64, " b"])


@torch.no_grad()
def test_a_folder_or_a_model_from_one(tmp_path):
    folder = tmp_path / "judge"
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    call = Call(["a "], ["b c"], [[3, 4]])
    score = RewardFunctions([str(folder), loaded], timeout=100.0)  # reward models run in this process
    [scored] = score([call])
    assert score.names == ["judge", "judge_2"]
    assert scored.rewards["judge"] == pytest.approx([reward(loaded, [2, 3, 4])], abs=1e-6)
    assert scored.rewards["judge_2"] == pytest.approx(scored.rewards["judge"], abs=1e-6)
    assert score._pool is None


def test_a_model_is_no_part_of_the_module():
    judge = ClassifierReward(model(), tokenizer())
    module = nn.Module()
    module.score = RewardFunctions(judge)
    assert not list(module.parameters())
    assert not module.state_dict()
    assert not judge.model.training
    copied = copy.deepcopy(module).score.functions[0]
    assert copied is not judge
    assert copied.model is judge.model


def test_it_goes_where_it_is_sent():
    score = RewardFunctions([ClassifierReward(model(), tokenizer()), lambda completions: [0.0] * len(completions)])
    assert score.to("meta") is score
    assert score.functions[0].model.device.type == "meta"


def test_a_function_that_is_spelled_wrong_is_no_model():
    """As LightningCLI leaves it: a text."""
    with pytest.raises(
        ValueError,
        match=r"'tests.rewards.models.vowel', which names neither a function nor a model. tests.rewards.models has no "
        r"'vowel'. It has tokenizer, gpt2, llama, vowels. Did you mean 'vowels'\? \(A model is named by its folder",
    ):
        RewardFunctions("tests.rewards.models.vowel")
    with pytest.raises(ValueError, match="Give 'ROWS' of tests.rewards.models itself, not its name: "):
        RewardFunctions("tests.rewards.models.ROWS")


@pytest.mark.parametrize(
    ("name", "as_function"),
    [
        ("no_rewards.accuracy", r"no_rewards can't be imported \(ModuleNotFoundError: No module named 'no_rewards'\)"),
        ("someone/judge", "it has no module and name, as my_rewards.accuracy"),
    ],
)
def test_a_name_of_nothing_is_told_as_both(monkeypatch, name, as_function):
    def nowhere(*arguments, **options):
        raise OSError("There is no such model on the hub.")

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", nowhere)
    message = f"As a function: {as_function}.* As a model: There is no such model on the hub"
    with pytest.raises(ValueError, match=message):
        RewardFunctions([name])


def test_a_model_with_several_labels_is_refused():
    with pytest.raises(ValueError, match="has 3 labels; a reward is one number"):
        RewardFunctions(model(labels=3))


def test_a_model_that_does_not_say_where_its_tokenizer_is():
    with pytest.raises(ValueError, match="does not say where its tokenizer is"):
        RewardFunctions(model())


@torch.no_grad()
def test_a_function_may_load_a_model_while_members_run(tmp_path):
    # transformers fills buffers that are in no file by a mode of torch's, which must go on working.
    judge, call = model(), Call(["a "], ["b c"], [[3, 4]])
    judge.save_pretrained(tmp_path)

    def loads(completions, **kwargs):
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
        return ClassifierReward(loaded, tokenizer())(**kwargs, completions=completions)

    with Follows() as follows:
        [scored] = RewardFunctions(loads)([call])
    assert scored.rewards["loads"] == pytest.approx([reward(judge, [2, 3, 4])], abs=1e-6)
    assert not follows.functions
