"""The public checkpoint's names for our parameters, and its tensors that generation does not use."""

import re

# Our transformer parameters and what the checkpoint calls them; the first pattern that matches counts.
TRANSFORMER_NAMES = (
    (r"text\.embed_tokens\.", "embed_tokens."),
    (r"text\.layers\.(\d+)\.attention\.norm\.", r"layers.\1.input_layernorm."),
    (r"text\.layers\.(\d+)\.attention\.", r"layers.\1.self_attn."),
    (r"text\.layers\.(\d+)\.mlp\.norm\.", r"layers.\1.post_attention_layernorm."),
    (r"text\.layers\.(\d+)\.mlp\.", r"layers.\1.mlp."),
    (r"generation\.layers\.(\d+)\.attention\.norm\.", r"layers.\1.input_layernorm_moe_gen."),
    (r"generation\.layers\.(\d+)\.attention\.to_([qkv])\.", r"layers.\1.self_attn.add_\2_proj."),
    (r"generation\.layers\.(\d+)\.attention\.to_out\.", r"layers.\1.self_attn.to_add_out."),
    (r"generation\.layers\.(\d+)\.attention\.norm_([qk])\.", r"layers.\1.self_attn.norm_added_\2."),
    (r"generation\.layers\.(\d+)\.mlp\.norm\.", r"layers.\1.post_attention_layernorm_moe_gen."),
    (r"generation\.layers\.(\d+)\.mlp\.", r"layers.\1.mlp_moe_gen."),
    (r"generation\.norm\.", "norm_moe_gen."),
    (r"generation\.", ""),  # proj_in, proj_out, time_embedder, audio_*
)

# Tensors that generation does not use, and why.
TRANSFORMER_SKIPPED = (
    r"lm_head\.",  # text output: the reasoner's
    r"norm\.",  # the norm before lm_head
    r"action_",  # robot actions, a modality of their own
)
LAST_TEXT_LAYER_SKIPPED = r"layers\.{last}\.(self_attn\.(to_q|norm_q|to_out)|mlp|post_attention_layernorm)\."
VIDEO_DECODER_SKIPPED = (r"encoder\.", r"quant_conv\.")  # pixels to latents
VIDEO_ENCODER_SKIPPED = (r"decoder\.", r"post_quant_conv\.")  # latents to pixels
SOUND_SKIPPED = (r"encoder\.",)  # waveform to latents


def transformer_name(ours: str, layers: int) -> str:
    """Translate the name of a transformer parameter, as ``separate_parameters`` gives it, to the checkpoint's.

    Args:
        layers: number of layers of a tower.

    Raises:
        KeyError: no such parameter.
    """
    ours = ours.replace("text.last.", f"text.layers.{layers - 1}.attention.")
    for pattern, theirs in TRANSFORMER_NAMES:
        name, found = re.subn(f"^{pattern}", theirs, ours)
        if found:
            return name
    raise KeyError(ours)


def transformer_skipped(layers: int) -> tuple[str, ...]:
    """Regular expressions for the transformer's tensors that are not read; see ``transformer_name`` for ``layers``."""
    return (*TRANSFORMER_SKIPPED, LAST_TEXT_LAYER_SKIPPED.format(last=layers - 1))
