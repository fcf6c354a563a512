"""The mixture-of-transformers: a causal text tower and a generation tower that attends to it, layer by layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cosmos3_models.approximations import Approximation
from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.kernels import fp8_ops
from cosmos3_models.kernels.token_ops import Rotary
from cosmos3_models.parallel.split import ALONE, Group
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.transformer.generation_tower import Condition, GenerationTower, Streams
from cosmos3_models.transformer.positions import rotary, sound_positions, text_positions, video_positions
from cosmos3_models.transformer.precision import EXACT, Fp8, Precision, check_fp8, quantized_weights
from cosmos3_models.transformer.text_tower import TextTower


class Transformer(nn.Module):
    """Both towers. ``conditions`` once per request, then the call once per step."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextTower(config)
        self.generation = GenerationTower(config)
        self._fp8: Fp8 | None = None

    @property
    def device(self) -> torch.device:
        """Where the generation tower computes."""
        return self.generation.proj_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, except those of the time embedding, which are fp32."""
        return self.generation.proj_in.weight.dtype

    def precision(self, approximation: Approximation) -> Precision:
        """How to compute as asked. The fp8 weights are kept for as long as every request asks for them.

        Raises:
            InvalidInput: this device or model cannot.
        """
        check_fp8(approximation, self.device, self.config)
        if approximation.fp8_linears and self._fp8 is None:
            self._fp8 = Fp8(quantized_weights(self.generation.linears))
        elif not approximation.fp8_linears and self._fp8 is not None:
            self._fp8 = None
            torch.cuda.empty_cache()  # for the other processes of the card
        attend = fp8_ops.attention if approximation.fp8_attention else EXACT.attend
        return Precision(self._fp8 or EXACT.products, attend)

    def condition(self, ids: Tensor, grid: LatentGrid, fps: float, sound_frames: int | None) -> Condition:
        """``conditions`` of one prompt."""
        return self.conditions([ids], grid, fps, sound_frames)[0]

    @torch.inference_mode()
    def conditions(
        self,
        prompts: Sequence[Tensor],
        grid: LatentGrid,
        fps: float,
        sound_frames: int | None,
        context: Group = ALONE,
    ) -> list[Condition]:
        """Run the text tower and lay out the positions of the media tokens behind each text.

        Args:
            prompts: int64 (1, n) token ids of each.
            grid: latent frames, rows and columns of the video.
            fps: frames per second of the video.
            sound_frames: latent frames of sound, or None without sound.
            context: the ranks that share the media tokens; each runs the whole text tower and keeps its own heads.

        Raises:
            ValueError: sound frames for a transformer without a sound stream.
        """
        lengths = [ids.shape[1] for ids in prompts]
        texts = self.text(prompts, [self._rotary(text_positions(length)) for length in lengths])
        texts = [[context.own_heads(layer) for layer in text] for text in texts]
        media = (self._media_positions(length, grid, fps, sound_frames) for length in lengths)
        return [Condition(text, self._rotary(positions)) for text, positions in zip(texts, media, strict=True)]

    def _media_positions(self, text_length: int, grid: LatentGrid, fps: float, sound_frames: int | None) -> Tensor:
        offset = text_length + self.config.media_position_offset
        media = [video_positions(grid.patches(self.config.latent_patch_size), offset, fps, self.config)]
        if sound_frames is not None:
            media.append(sound_positions(sound_frames, offset, self.config))
        return torch.cat(media, dim=1)

    def _rotary(self, positions: Tensor) -> Rotary:
        return rotary(positions, self.config, self.device, torch.float32)

    @torch.inference_mode()
    def forward(
        self,
        streams: Streams,
        timestep: int,
        condition: Condition,
        precision: Precision = EXACT,
        context: Group = ALONE,
    ) -> Streams:
        """Predict the velocity of each stream; see ``GenerationTower.forward``.

        Args:
            timestep: 0 to 999.
            condition: of the same grid, sound length and context.
            precision: as ``precision`` made it.
        """
        return self.generation(streams, timestep, condition, precision, context)
