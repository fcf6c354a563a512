"""How ranks are divided among prompts and tokens, and what that saves: a model of the costs. Needs no PyTorch."""

from typing import NamedTuple

from cosmos3_models.checkpoint.configs import TransformerConfig

BRANCHES = 2
"""The prompt's and the negative prompt's."""

# Measured with two H100s of one host (NVLink, NCCL 2) on steps of 189 frames of 720p and 480p at Nano's size, with an
# experiment that came before this code. Everything for more than two GPUs is predicted from them.
FLOPS_PER_S = 6.75e14  # of one GPU in a step, exact bf16
EXCHANGED_BYTES_PER_S = 8.2e10  # that a rank sends to others around attention, with the copies before and after
WAITING = 0.03  # of the computing time: how much longer the slower one of two branches takes
BF16_BYTES = 2


class Shares(NamedTuple):
    """How many ranks have different prompts, and how many have different tokens of the same prompt."""

    branches: int
    context: int


def shares(ranks: int, prompts: int) -> Shares:
    """Divide ``ranks`` for passes of this many prompts: 2 with guidance, otherwise 1.

    With guidance, one half of the ranks computes the velocity of the prompt, the other half that of the negative
    prompt. Without, or if the number of ranks is odd, all of them share the tokens of every prompt.
    """
    divided = prompts == BRANCHES and ranks % BRANCHES == 0
    return Shares(BRANCHES, ranks // BRANCHES) if divided else Shares(1, ranks)


def relative_step_s(config: TransformerConfig, tokens: int, step_flops: float, prompts: int, ranks: int) -> float:
    """Predict the time of a step of several GPUs as a multiple of one GPU's, at most 1.

    Args:
        tokens: of the media.
        step_flops: of all prompts together.
        prompts: that the step runs.
    """
    alone_s = step_flops / FLOPS_PER_S
    share = shares(ranks, prompts)
    computing_s = alone_s / ranks
    waiting_s = WAITING * computing_s * (share.branches > 1)
    exchanges = config.num_hidden_layers * prompts // share.branches
    exchanging_s = exchanges * exchanged_bytes(config, tokens, share.context) / EXCHANGED_BYTES_PER_S
    return min(1.0, (computing_s + waiting_s + exchanging_s) / alone_s)


def exchanged_bytes(config: TransformerConfig, tokens: int, context: int) -> float:
    """Count the bytes of bf16 that a rank sends in one layer: queries, keys and values, then what was attended to."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    to_others = (context - 1) / context
    return tokens / context * to_others * heads * config.head_dim * BF16_BYTES
