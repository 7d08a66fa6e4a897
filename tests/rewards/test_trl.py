"""TRL's own reward functions, as they are, in this process and in workers."""

import pytest

from lightning_evo.rewards import Call, RewardFunctions, TrainerState

pytestmark = pytest.mark.models


@pytest.mark.filterwarnings("ignore")  # TRL's and those of what it imports
@pytest.mark.parametrize("timeout", [None, 100.0])
def test_rewards_of_trl(timeout):
    pytest.importorskip("trl", reason="pip install trl math-verify")
    pytest.importorskip("math_verify", reason="pip install trl math-verify")
    from trl.rewards import accuracy_reward, think_format_reward

    answers = [r"<think>A half, so</think>The answer is $\boxed{\frac{1}{2}}$", r"$\boxed{3}$"]
    call = Call(
        [[{"role": "user", "content": "?"}]] * 2,
        [[{"role": "assistant", "content": answer}] for answer in answers],
        [[1], [2]],
        {"solution": [r"$\frac{1}{2}$", "$4$"]},
        TrainerState(0, 0, 1),
    )
    score = RewardFunctions([accuracy_reward, think_format_reward], timeout=timeout)
    for scored in score([call, call]):
        assert scored.error is None
        assert scored.rewards == {"accuracy_reward": [1.0, 0.0], "think_format_reward": [1.0, 0.0]}
        assert not scored.missing.any()
    score.close()
