"""What a checkpoint holds and can make, and the memory and time that its stages need, in lines of text."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import click

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.folder import CardUse, Checkpoint, checkpoint_name
from cosmos3_models.resources.budget import GIB, Decoders
from cosmos3_models.resources.cards import CARDS, MEASURED, Card
from serve.app import AppArgs
from serve.estimates.cost import cost_of

if TYPE_CHECKING:
    from cosmos3_models.resources.footprint import Footprint

SIZES = ((1280, 720, 189), (1280, 720, 49), (832, 480, 189), (832, 480, 49))
"""Width, height and frames of the requests whose time is estimated, besides the checkpoint's default."""

PROMPT_TOKENS = (100, 623)  # a short prompt, and the default negative one in Nano's vocabulary
ONE: Decoders = "same GPU"
OTHERS: Decoders = "another GPU"


def print_report(args: AppArgs, checkpoint: Checkpoint, gpu: str | None) -> None:
    """Print the report on a checkpoint without problems.

    Args:
        gpu: a name in ``CARDS``; None prints one line for each card.
    """
    report = Report(args, checkpoint, list(CARDS.items()) if gpu is None else [(gpu, CARDS[gpu])])
    for part in (report.contents, report.abilities, report.memory, report.stages, report.times):
        for line in part():
            click.echo(line)


@dataclass(frozen=True)
class Report:
    """The lines on one checkpoint, for one card or several.

    Attributes:
        cards: by their names.
    """

    args: AppArgs
    checkpoint: Checkpoint
    cards: list[tuple[str, Card]]

    def contents(self) -> Iterator[str]:
        """What the files hold."""
        from cosmos3_models.checkpoint.inspection import contents  # brings PyTorch

        yield f"{checkpoint_name(self.args.checkpoint)}: configs, text tokenizer and all tensors are as they should be"
        for name, holds in contents(self.checkpoint).items():
            types = ", ".join(f"{count} {kind}" for kind, count in holds.types.most_common())
            yield f"  {name:<16}{holds.file_bytes / 1e9:8.2f} GB  {types} tensors"

    def abilities(self) -> Iterator[str]:
        """What requests may ask for."""
        sound, pictures = self.checkpoint.sound is not None, self.checkpoint.has_video_encoder
        params = self._default
        yield f"  sound           {'yes' if sound else 'no: there is no sound_tokenizer'}"
        yield f"  from pictures   {'yes, and from clips' if pictures else 'no: vae has no encoder'}"
        yield (
            f"  by default      {params.width}x{params.height}, {params.num_frames} frames, {params.fps:g} fps, "
            f"{params.num_inference_steps} steps"
        )

    def memory(self) -> Iterator[str]:
        """What a card needs if it has all stages, and if it has the denoiser alone."""
        largest = self._footprints[ONE].largest()
        sound = " with sound" if largest.generate_sound else ""
        longest = f"{largest.width}x{largest.height}, {largest.num_frames} frames{sound}"
        yield f"GPU memory for the longest video ({longest}):"
        yield f"  {'card':<16}{'memory':>10}  {'all stages on one':<30}the denoiser alone"
        for name, card in self.cards:
            one, alone = (self._need(self._footprints[decoders], card) for decoders in (ONE, OTHERS))
            yield f"  {name:<16}{card.gib:6.1f} GiB  {one:<30}{alone}"

    def stages(self) -> Iterator[str]:
        """The same by stage, and the memory of the host, for one card alone."""
        from cosmos3_models.checkpoint.upload import READERS, STAGING_BYTES
        from cosmos3_models.resources.footprint import PROCESS_BYTES

        if len(self.cards) > 1:
            return
        ((name, card),), footprint = self.cards, self._footprints[ONE]
        yield f"  {'stage':<16}{'weights':>10}{'request':>12}   all stages and the text tower on one {name}"
        for stage, needs in footprint.stages(card.memory, fp8=card.fp8).items():
            yield f"  {stage:<16}{needs.weights / GIB:6.1f} GiB{needs.request / GIB:8.1f} GiB"
        yield f"  {'processes':<16}{footprint.processes * PROCESS_BYTES / GIB:6.1f} GiB"
        yield "Host memory, page-locked, besides that of the processes:"
        yield f"  {READERS * STAGING_BYTES / GIB:.2f} GiB of each stage while it loads"
        yield f"  {footprint.text / GIB:.1f} GiB of text tower for each GPU of a denoiser, where it says 'in host'"

    def times(self) -> Iterator[str]:
        """How long requests of several sizes take."""
        requests = list(self._requests())
        yield f"Expected seconds of a request ({self._default.num_inference_steps} steps, exact), from its operations:"
        sizes = (f"{params.width}x{params.height}x{params.num_frames}" for params in requests)
        yield f"  {'card':<16}{''.join(f'{size:>15}' for size in sizes)}"
        for name, card in self.cards:
            yield f"  {name:<16}{''.join(f'{self._seconds(params, card):>15}' for params in requests)}"
        yield f"  from the speed of {MEASURED} at Nano's size; other cards by their peak in bf16, not measured"

    @cached_property
    def _footprints(self) -> dict[Decoders, "Footprint"]:
        from cosmos3_models.checkpoint.loading import resolve_device
        from cosmos3_models.resources.footprint import Footprint

        limit, allowed, gpus = self.args.max_pixel_frames, self.args.approximation.allowed, self.args.gpus_per_denoiser
        _, dtype = resolve_device("cuda")
        uses = [CardUse(limit, decoders, allowed, gpus) for decoders in (ONE, OTHERS)]
        return {use.decoders: Footprint(self.checkpoint, dtype, use) for use in uses}

    @property
    def _default(self) -> GenerationParams:
        return self.checkpoint.defaults.params(prompt="-")

    def _need(self, footprint: "Footprint", card: Card) -> str:
        most = footprint.most(card.memory, fp8=card.fp8)
        choice = self.args.offload_text
        offloaded = most > card.memory if choice == "auto" else choice
        most -= footprint.text * offloaded
        gib = f"{most / GIB:.1f} GiB"
        if most > card.memory:
            return f"{gib}: too small"
        return f"{gib}, {footprint.text / GIB:.1f} in host" if offloaded else gib

    def _requests(self) -> Iterator[GenerationParams]:
        """The default request, and others of the sizes that the model can make and the server accepts."""
        yield self._default
        guide = self.checkpoint.guide
        for width, height, frames in () if guide is not None and "width" in guide.fixed_fields else SIZES:
            request = self._default.model_copy(update={"width": width, "height": height, "num_frames": frames})
            if request != self._default and request.pixel_frames <= self.args.max_pixel_frames:
                yield request

    def _seconds(self, params: GenerationParams, card: Card) -> str:
        prompts = PROMPT_TOKENS[: 1 if params.guidance_scale == 1 else 2]
        cost = cost_of(self.checkpoint, "cuda", params, prompts, ranks=self.args.gpus_per_denoiser)
        steps = params.num_inference_steps
        seconds = card.seconds(cost.text + cost.full_steps(steps, steps) * cost.step, cost.decode)
        return "under 1" if seconds < 1 else f"{seconds:.0f}"
