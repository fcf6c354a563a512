"""The least memory of a GPU that a request takes, in plain numbers that can be known without PyTorch."""

from dataclasses import dataclass
from typing import Literal

from cosmos3_models.checkpoint.configs import SoundDecoderConfig, TransformerConfig
from cosmos3_models.errors import InvalidInput
from cosmos3_models.parallel.shares import shares
from cosmos3_models.params import GenerationParams
from cosmos3_models.shapes import sound_latent_frames

GIB = 2**30
PROMPTS = 2  # the prompt and the negative one
LATENT_COPIES = 12  # fp32: the noise, the velocities, what the solver remembers and computes with
SOUND_COPIES = 6.5  # of the widest activation: a residual unit's input, and what its snake computes with

Decoders = Literal["same process", "same GPU", "another GPU"]
"""Where the decoders and the video encoder compute. Processes that share a GPU cannot use each other's idle memory."""


def denoised_bytes(config: TransformerConfig, cells: int, text_tokens: int, itemsize: int, context: int = 1) -> int:
    """Count the bytes of a denoise at its peak, besides the weights.

    The MLP of a layer over this GPU's tokens, the text's keys and values, rotary tables and latents.

    Args:
        cells: latent frames x rows x columns.
        text_tokens: of all prompts together.
        itemsize: bytes of one of the model's numbers.
        context: GPUs that share the tokens. Each has the hidden state of all of them besides.
    """
    tokens = cells // config.latent_patch_size**2
    width = config.hidden_size + 3 * config.intermediate_size  # hidden; gate, up and their product
    text = text_tokens * config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    fp32 = PROMPTS * tokens * config.head_dim + LATENT_COPIES * cells * config.latent_channel
    whole = tokens * config.hidden_size if context > 1 else 0
    return (-(-tokens // context) * width + whole + text) * itemsize + 4 * fp32


def sounded_bytes(config: SoundDecoderConfig | None, latent_frames: int, itemsize: int) -> int:
    """Count the bytes of a sound decode, which takes the whole track at once, besides the weights; 0 without sound."""
    return 0 if config is None else int(SOUND_COPIES * latent_frames * config.widest * itemsize)


def request_sound_bytes(config: SoundDecoderConfig | None, params: GenerationParams, itemsize: int) -> int:
    """Count ``sounded_bytes`` of a request; 0 unless it asks for sound."""
    if config is None or not params.generate_sound:
        return 0
    frames = sound_latent_frames(params.num_frames, params.fps, config.sample_rate, config.hop)
    return sounded_bytes(config, frames, itemsize)


def together(
    decoders: Decoders, weights: int, autoencoder_weights: int, denoise: int, decode: int, encode: int = 0
) -> int:
    """Add up the bytes in use on one GPU at the peak of a request, or on the fuller one of two like it.

    Args:
        weights: of the transformer.
        autoencoder_weights: of both decoders and the video encoder.
        denoise: besides weights.
        decode: besides weights.
        encode: besides weights.
    """
    if decoders == "another GPU":
        return max(weights + denoise, autoencoder_weights + decode + encode)
    in_turn = max if decoders == "same process" else sum
    return weights + autoencoder_weights + in_turn((denoise, decode, encode))


@dataclass(frozen=True)
class Budget:
    """One GPU and the weights in its memory.

    Attributes:
        card_bytes: memory of the denoiser's GPU.
        weights: bytes of the transformer's weights that stay there.
        fp8_weights: bytes of their copy in fp8, for requests with ``fp8_linears``.
        autoencoder_weights: bytes of the weights of both decoders and the video encoder.
        decode_bytes: of the video decoder, for each latent row and column of a picture, and of a video.
        itemsize: bytes of one of the model's numbers.
        ranks: GPUs like it that make each video together.
    """

    card_bytes: int
    weights: int
    fp8_weights: int
    autoencoder_weights: int
    decode_bytes: tuple[int, int]
    itemsize: int
    decoders: Decoders
    transformer: TransformerConfig
    sound: SoundDecoderConfig | None
    ranks: int = 1

    def check(self, params: GenerationParams) -> None:
        """Raise ``InvalidInput`` if ``least`` of the request exceeds the GPU's memory."""
        if (least := self.least(params)) > self.card_bytes:
            raise InvalidInput(
                "size",
                f"{params.width}x{params.height} x {params.num_frames} frames",
                "smaller pictures or fewer of them",
                f"they take more than {least / GIB:.1f} GiB, and the GPU has {self.card_bytes / GIB:.1f} GiB",
            )

    def least(self, params: GenerationParams) -> int:
        """Count the bytes of weights, denoise and decode with the smallest chunk and no text, without any slack.

        A picture is encoded with less memory than its video is decoded with, and before.
        """
        grid = params.grid
        weights = self.weights + self.fp8_weights * params.fp8_linears
        context = shares(self.ranks, 1 if params.guidance_scale == 1 else PROMPTS).context
        denoise = denoised_bytes(self.transformer, grid.cells, 0, self.itemsize, context)
        decode = self.decode_bytes[grid.frames > 1] * grid.height * grid.width
        decode += request_sound_bytes(self.sound, params, self.itemsize)
        return together(self.decoders, weights, self.autoencoder_weights, denoise, decode)
