"""How much of a GPU's memory a checkpoint and a request take, from the configs alone.

Each sum names the tensors that are alive together at its peak. ``SLACK`` and ``PROCESS_BYTES`` stand for what no config
says; both were measured. A test compares the sums with the peaks of one H100 at Cosmos3-Nano's size.
"""

from collections.abc import Iterable

import torch
from torch import nn

from cosmos3_models.attention import HOPPER
from cosmos3_models.checkpoint import CardUse, Checkpoint, Offload
from cosmos3_models.errors import InvalidInput
from cosmos3_models.params import MAX_FRAMES, GenerationParams
from cosmos3_models.prompt import MAX_PROMPT_TOKENS
from cosmos3_models.shapes import nearest_frame_counts, sound_latent_frames
from cosmos3_models.sound_decoder import SoundDecoder
from cosmos3_models.transformer import OFFLOADED, Transformer, layer_groups
from cosmos3_models.video_vae import VideoDecoder

GIB = 2**30
PROCESS_BYTES = int(1.35 * GIB)  # besides its tensors: CUDA's context, compiled kernels, what a warm-up leaves behind
SLACK = 1.2  # of a request's tensors: cuDNN's scratch, and memory that PyTorch keeps between its blocks
PROMPTS = 2  # the prompt and the negative one
LATENT_COPIES = 12  # fp32: the noise, the velocities, what the solver remembers and computes with
SOUND_COPIES = 6.5  # of the widest activation: a residual unit's input, and what its snake computes with


class Footprint:
    """What one checkpoint takes on the GPU of its denoiser.

    Args:
        dtype: of the weights.
        use: what else the GPU is for.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, use: CardUse) -> None:
        self._checkpoint, self._use, self._itemsize = checkpoint, use, dtype.itemsize
        with torch.device("meta"):
            transformer = Transformer(checkpoint.transformer)
            self._video = VideoDecoder(checkpoint.video_vae).to(dtype)
            sound = nn.Identity() if checkpoint.sound is None else SoundDecoder(checkpoint.sound)
        named = dict(transformer.named_parameters())
        self.transformer = self._bytes(named.values())
        self.text = self._bytes(weight for name, weight in named.items() if name.startswith(OFFLOADED))
        self.decoders = self._bytes([*self._video.parameters(), *sound.parameters()])
        groups = layer_groups(transformer.generation)
        self.fp8 = sum(linear.weight.numel() for group in groups for linear in group)  # a byte each

    def offloads(self, choice: Offload, device: torch.device) -> bool:
        """Whether the text tower must wait in host memory: as chosen, or where the longest video does not fit."""
        if choice != "auto":
            return choice
        if device.type != "cuda":
            return False
        card_bytes = torch.cuda.get_device_properties(device).total_memory
        return self.most(card_bytes, fp8=torch.cuda.get_device_capability(device) >= HOPPER) > card_bytes

    def most(self, card_bytes: int, *, fp8: bool) -> int:
        """Memory in use at the peak of the longest accepted video of the default picture, the text tower on the GPU.

        Args:
            card_bytes: of the GPU; the decoder takes larger chunks where there is more.
            fp8: whether the GPU can compute in it.
        """
        params, allowed = self._largest(), self._use.approximations
        grid, cells = params.grid, params.grid.cells
        weights = self.transformer + self.fp8 * (fp8 and "fp8_linears" in allowed)
        denoise = self.denoised(cells, PROMPTS * MAX_PROMPT_TOKENS) + self.cached(cells) * ("step_cache" in allowed)
        decode = self.decoded(grid.height, grid.width, card_bytes) + self._sound(params)
        processes = 3 if self._use.decoders == "same GPU" else 1
        return self._together(weights, int(SLACK * denoise), int(SLACK * decode)) + processes * PROCESS_BYTES

    def check(self, params: GenerationParams, device: torch.device, *, offloaded: bool) -> None:
        """Raise ``InvalidInput`` where even what the request cannot do without exceeds the GPU."""
        if device.type != "cuda":
            return
        card_bytes = torch.cuda.get_device_properties(device).total_memory
        if (least := self.least(params, offloaded=offloaded)) > card_bytes:
            raise InvalidInput(
                "size",
                f"{params.width}x{params.height} x {params.num_frames} frames",
                "smaller pictures or fewer of them",
                f"they take more than {least / GIB:.1f} GiB, and the GPU has {card_bytes / GIB:.1f} GiB",
            )

    def least(self, params: GenerationParams, *, offloaded: bool) -> int:
        """Tensors of denoise and decode with the smallest chunk and the shortest prompt, without any slack."""
        grid, cells = params.grid, params.grid.cells
        weights = self.transformer - self.text * offloaded + self.fp8 * params.fp8_linears
        denoise = self.denoised(cells, 0) + self.cached(cells) * (params.step_cache > 0)
        decode = self._video.peak_bytes(min(1, grid.frames - 1), grid.height, grid.width) + self._sound(params)
        return self._together(weights, denoise, decode)

    def _together(self, weights: int, denoise: int, decode: int) -> int:
        """The most that is in use on one GPU, of the transformer's weights and what both parts of a request work with.

        Decoders on another GPU are taken to have one like this.
        """
        if self._use.decoders == "another GPU":
            return max(weights + denoise, self.decoders + decode)
        in_turn = max if self._use.decoders == "same process" else sum
        return weights + self.decoders + in_turn((denoise, decode))

    def denoised(self, cells: int, text_tokens: int) -> int:
        """The MLP of a layer over all tokens, beside the text's keys and values, rotary tables and latents.

        Args:
            cells: latent frames x rows x columns.
            text_tokens: of all prompts together.
        """
        config = self._checkpoint.transformer
        tokens = cells // config.latent_patch_size**2
        width = 2 * config.hidden_size + 3 * config.intermediate_size  # embedded, hidden; gate, up and their product
        text = text_tokens * config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
        fp32 = PROMPTS * tokens * config.head_dim + LATENT_COPIES * cells * config.latent_channel
        return (tokens * width + text) * self._itemsize + 4 * fp32

    def cached(self, cells: int) -> int:
        """The step cache: two hidden states for each prompt, and one more while a step runs."""
        config = self._checkpoint.transformer
        return (2 * PROMPTS + 1) * (cells // config.latent_patch_size**2) * config.hidden_size * self._itemsize

    def decoded(self, height: int, width: int, card_bytes: int) -> int:
        """The video decoder's chunk, of latent rows and columns, on a GPU of that much memory."""
        return self._video.peak_bytes(self._video.chunk_on_card(height, width, card_bytes), height, width)

    def sounded(self, latent_frames: int) -> int:
        sound = self._checkpoint.sound
        return 0 if sound is None else int(SOUND_COPIES * latent_frames * sound.widest * self._itemsize)

    def _largest(self) -> GenerationParams:
        """The longest video of the default picture, with sound where there is any."""
        defaults = self._checkpoint.defaults.params(prompt="-", generate_sound=self._checkpoint.sound is not None)
        frames = min(MAX_FRAMES, max(1, self._use.pixel_frames // (defaults.height * defaults.width)))
        return defaults.model_copy(update={"num_frames": nearest_frame_counts(frames)[0]})

    def _sound(self, params: GenerationParams) -> int:
        sound = self._checkpoint.sound
        if sound is None or not params.generate_sound:
            return 0
        return self.sounded(sound_latent_frames(params.num_frames, params.fps, sound.sample_rate, sound.hop))

    def _bytes(self, weights: Iterable[torch.Tensor]) -> int:
        return sum(weight.numel() for weight in weights) * self._itemsize
