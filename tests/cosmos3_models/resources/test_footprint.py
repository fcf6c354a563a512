"""What is said to fit a GPU against what one H100 took at Cosmos3-Nano's size, and what follows from it."""

import asyncio
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from paths import ROOT

from benchmarks import nano
from cosmos3_models import Cosmos3Pipeline, GenerationParams, InvalidInput
from cosmos3_models.approximations import APPROXIMATIONS, ApproximationName
from cosmos3_models.checkpoint.configs import SchedulerConfig, SoundDecoderConfig, VideoVAEConfig
from cosmos3_models.checkpoint.folder import CardUse, Checkpoint
from cosmos3_models.params import ApproximationPolicy, GenerationDefaults
from cosmos3_models.resources import footprint as memory
from cosmos3_models.resources.budget import GIB
from cosmos3_models.resources.footprint import Footprint
from cosmos3_models.text.prompt import PromptIds
from serve.app import AppArgs
from serve.graph import stages

GPU, CPU = torch.device("cuda"), torch.device("cpu")
TOKENS = nano.PROMPT_TOKENS + nano.NEGATIVE_TOKENS
H100 = int(79.1 * GIB)
Decoders = Literal["same process", "same GPU", "another GPU"]
EXACT: tuple[ApproximationName, ...] = ()
SMALL = GenerationParams(prompt="x", num_frames=5, height=32, width=32, num_inference_steps=1)

# Of all memory that PyTorch reports for the card: RTX 4090, RTX 5090, RTX A6000, H100, H200.
CARDS = [(23.5, False, True), (31.4, False, True), (47.4, False, True), (79.1, True, False), (139.8, True, False)]


def nano_checkpoint() -> Checkpoint:
    return Checkpoint(
        folder=Path("/nano"),
        transformer=nano.transformer_config(nano.TRANSFORMER["num_hidden_layers"]),
        video_vae=VideoVAEConfig.model_validate(nano.VIDEO_VAE),
        sound=SoundDecoderConfig.model_validate(nano.SOUND),
        scheduler=SchedulerConfig.model_validate(nano.SCHEDULER),
        defaults=GenerationDefaults(),
    )


def footprint(
    pixel_frames: int = AppArgs().max_pixel_frames,
    decoders: Decoders = "same GPU",
    approximations: tuple[ApproximationName, ...] = APPROXIMATIONS,
) -> Footprint:
    return Footprint(nano_checkpoint(), torch.bfloat16, CardUse(pixel_frames, decoders, approximations))


@pytest.mark.parametrize("fp8", [False, True])
def test_the_stages_add_up(fp8: bool) -> None:
    one = footprint()
    parts = sum(needs.weights + needs.request for needs in one.stages(H100, fp8=fp8).values())
    assert parts + one.processes * memory.PROCESS_BYTES == one.most(H100, fp8=fp8)


def video(height: int, width: int, frames: int, **fields: object) -> GenerationParams:
    return GenerationParams(prompt="x", height=height, width=width, num_frames=frames, **fields)


def test_the_weights_are_those_of_nano() -> None:
    nanos = footprint()
    assert nanos.transformer == pytest.approx(28.7e9, rel=0.01)
    assert (nanos.transformer - nanos.text) / GIB == pytest.approx(13.1, abs=0.2)
    assert nanos.fp8 == pytest.approx(6.9e9, rel=0.02)


@pytest.mark.parametrize(
    ("params", "peak_gib"),
    [(video(720, 1280, 189), 4.20), (video(720, 1280, 297), 6.33), (video(480, 832, 49), 0.87)],
    ids=lambda value: None if isinstance(value, float) else f"{value.height}p{value.num_frames}",
)
def test_a_denoise_takes_what_was_measured(params: GenerationParams, peak_gib: float) -> None:
    assert footprint().denoised(params.grid.cells, TOKENS) / GIB == pytest.approx(peak_gib, rel=0.05)


def test_longer_prompts_take_what_was_measured() -> None:
    nanos, cells = footprint(), video(720, 1280, 189).grid.cells
    longer = nanos.denoised(cells, 2 * 4096) - nanos.denoised(cells, TOKENS)
    assert longer / GIB == pytest.approx(0.74, rel=0.05)


@pytest.mark.parametrize(("size", "peak_gib"), [((720, 1280), 14.13), ((480, 832), 10.62), ((1072, 1920), 13.40)])
def test_a_decode_takes_no_more_than_is_said_and_little_less(size: tuple[int, int], peak_gib: float) -> None:
    said = footprint().decoded(size[0] // 16, size[1] // 16, H100) / GIB
    assert peak_gib <= said <= 1.13 * peak_gib


@pytest.mark.parametrize(("latents", "peak_gib"), [(197, 1.47), (400, 2.98), (1251, 9.31)])
def test_sound_takes_what_was_measured(latents: int, peak_gib: float) -> None:
    assert footprint().sounded(latents) / GIB == pytest.approx(peak_gib, rel=0.02)


@pytest.mark.parametrize(("frames", "size", "used_gib"), [(189, (720, 1280), 58.5), (49, (480, 832), 45.6)])
def test_a_whole_server_takes_what_was_measured(frames: int, size: tuple[int, int], used_gib: float) -> None:
    """All stages on one card; its default negative prompt had 623 tokens."""
    checkpoint = nano_checkpoint()
    defaults = GenerationDefaults(height=size[0], width=size[1])
    checkpoint = replace(checkpoint, defaults=defaults)
    use = CardUse(frames * size[0] * size[1], "same GPU", EXACT)
    said = Footprint(checkpoint, torch.bfloat16, use).most(H100, fp8=True) / GIB
    assert said == pytest.approx(used_gib, rel=0.07)


@pytest.fixture
def with_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "has_video_encoder", True)


def test_a_video_encoder_adds_its_weights_its_chunk_and_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without = footprint()
    monkeypatch.setattr(Checkpoint, "has_video_encoder", True)
    encoder = footprint()
    weights, chunk = encoder.autoencoders - without.autoencoders, encoder.encoded(45, 80)
    assert weights == 2 * 149_637_088  # bf16
    assert 2.66 <= chunk / GIB <= 1.13 * 2.66, "as much as is alive at once, and little more"
    assert without.encoded(45, 80) == 0
    added = weights + int(memory.SLACK * chunk) + memory.PROCESS_BYTES
    assert encoder.most(H100, fp8=True) - without.most(H100, fp8=True) == added


@pytest.mark.usefixtures("with_encoder")
@pytest.mark.parametrize(("gib", "fp8", "expected"), CARDS)
def test_a_video_encoder_fits_the_same_cards(
    monkeypatch: pytest.MonkeyPatch, gib: float, fp8: bool, expected: bool
) -> None:
    put_card(monkeypatch, gib, fp8)
    assert footprint().offloads("auto", GPU) is expected


@pytest.mark.parametrize(("decoders", "chunk_counts"), [("same process", False), ("same GPU", True)])
def test_in_one_process_pictures_are_encoded_in_memory_that_the_decode_needs_anyway(
    monkeypatch: pytest.MonkeyPatch, decoders: Decoders, chunk_counts: bool
) -> None:
    without = footprint(decoders=decoders).most(H100, fp8=True)
    monkeypatch.setattr(Checkpoint, "has_video_encoder", True)
    added = footprint(decoders=decoders).most(H100, fp8=True) - without
    assert (added > footprint().encoded(45, 80)) is chunk_counts


@pytest.mark.parametrize(("gib", "fp8", "expected"), CARDS)
def test_the_text_tower_leaves_a_card_that_the_longest_video_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, gib: float, fp8: bool, expected: bool
) -> None:
    put_card(monkeypatch, gib, fp8)
    assert footprint().offloads("auto", GPU) is expected
    assert footprint().offloads(True, GPU) and not footprint().offloads(False, GPU)
    assert not footprint().offloads("auto", CPU)


@pytest.mark.parametrize(("gib", "fp8", "expected"), [(23.5, False, True), (47.4, False, False), (79.1, True, False)])
def test_a_denoiser_alone_on_its_card_needs_a_smaller_one(
    monkeypatch: pytest.MonkeyPatch, gib: float, fp8: bool, expected: bool
) -> None:
    put_card(monkeypatch, gib, fp8)
    assert footprint(decoders="another GPU").offloads("auto", GPU) is expected


def test_what_requests_may_give_up_counts_where_the_card_can_compute_it() -> None:
    without, fp8 = (footprint(approximations=allowed).most(H100, fp8=True) for allowed in (EXACT, ("fp8_linears",)))
    assert fp8 - without == footprint().fp8
    assert footprint(approximations=("fp8_linears",)).most(H100, fp8=False) == without


@pytest.mark.parametrize(
    ("params", "gib", "offloaded", "fits"),
    [
        (video(720, 1280, 189), 79.1, False, True),
        (video(1920, 1920, 65), 79.1, False, True),
        (video(2560, 2560, 41), 79.1, False, False),
        (video(480, 832, 189), 23.5, True, True),
        (video(480, 832, 189), 23.5, False, False),
        (video(720, 1280, 189), 23.5, True, False),
        (video(720, 1280, 297, fp8_linears=True), 23.5, True, False),
        (video(64, 64, 1201, fps=1, generate_sound=True), 79.1, False, False),
        (video(64, 64, 1201, fps=1), 79.1, False, True),
    ],
)
def test_a_video_that_cannot_fit_the_card_is_refused(
    monkeypatch: pytest.MonkeyPatch, params: GenerationParams, gib: float, offloaded: bool, fits: bool
) -> None:
    put_card(monkeypatch, gib, fp8=True)
    budget = footprint().budget(GPU, offloaded=offloaded)
    assert budget is not None
    if fits:
        return budget.check(params)
    with pytest.raises(InvalidInput, match=f"GiB, and the GPU has {gib}"):
        budget.check(params)


def test_a_cpu_has_no_budget() -> None:
    assert footprint().budget(CPU, offloaded=False) is None


def test_a_budget_travels_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    put_card(monkeypatch, 79.1, fp8=True)
    budget = pickle.dumps(footprint().budget(GPU, offloaded=False))
    script = "import pickle, sys; pickle.load(sys.stdin.buffer); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], input=budget, cwd=ROOT).returncode == 0


@pytest.mark.parametrize(("decoders", "fits"), [("same process", True), ("same GPU", False), ("another GPU", True)])
def test_parts_of_one_process_take_turns_with_memory(
    monkeypatch: pytest.MonkeyPatch, decoders: Decoders, fits: bool
) -> None:
    put_card(monkeypatch, 23.5, fp8=False)
    budget = footprint(decoders=decoders).budget(GPU, offloaded=True)
    assert budget is not None
    assert (budget.least(video(720, 1280, 189)) < budget.card_bytes) is fits


def test_the_refusal_comes_before_the_first_step(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []
    monkeypatch.setattr(Footprint, "budget", lambda *_, **__: SimpleNamespace(check=refuse))
    pipeline = Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu")
    policy, use, patience = ApproximationPolicy(), CardUse(1, "same GPU", EXACT), AppArgs().patience()
    denoiser = stages.Denoiser(str(tiny_checkpoint), "cpu", policy, False, use, patience)
    ids = pipeline.prompt_encoder.encode(SMALL)
    with pytest.raises(InvalidInput):
        pipeline(SMALL, on_step=lambda *step: steps.append(step))
    with pytest.raises(InvalidInput):
        asyncio.run(collect(denoiser, ids, steps))
    assert steps == []


async def collect(denoiser: stages.Denoiser, ids: PromptIds, steps: list[object]) -> None:
    async for item in denoiser.denoise(ids, SMALL):
        steps.append(item)


def refuse(_: GenerationParams) -> None:
    raise InvalidInput("size", 1, "2", "3")


def put_card(monkeypatch: pytest.MonkeyPatch, gib: float, fp8: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=int(gib * GIB)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0) if fp8 else (8, 9))


@pytest.mark.parametrize(
    ("ranks", "guidance", "share"), [(2, 6.0, 1), (4, 6.0, 2), (8, 6.0, 4), (2, 1.0, 2), (3, 6.0, 3)]
)
def test_gpus_that_share_the_tokens_have_a_part_of_their_mlp_each(
    monkeypatch: pytest.MonkeyPatch, ranks: int, guidance: float, share: int
) -> None:
    put_card(monkeypatch, 79.1, fp8=True)
    request, config = video(720, 1280, 189, guidance_scale=guidance), nano_checkpoint().transformer
    least = []
    for count in (1, ranks):
        use = CardUse(AppArgs().max_pixel_frames, "another GPU", EXACT, count)
        budget = Footprint(nano_checkpoint(), torch.bfloat16, use).budget(GPU, offloaded=False)
        assert budget is not None
        least.append(budget.least(request))
    tokens = request.grid.cells // config.latent_patch_size**2
    of_all, own = config.hidden_size * (share > 1), (config.hidden_size + 3 * config.intermediate_size) / share
    saved = 2 * tokens * (config.hidden_size + 3 * config.intermediate_size - of_all - own)
    assert least[0] - least[1] == pytest.approx(saved, rel=1e-6)


def test_the_longest_video_takes_less_of_four_gpus_than_of_one() -> None:
    one, two, four = (
        Footprint(nano_checkpoint(), torch.bfloat16, CardUse(AppArgs().max_pixel_frames, "another GPU", EXACT, ranks))
        for ranks in (1, 2, 4)
    )
    alone = one.most(H100, fp8=True)
    assert two.most(H100, fp8=True) == alone + memory.EXCHANGE_BYTES, "a whole pass on each"
    assert four.most(H100, fp8=True) < alone + memory.EXCHANGE_BYTES - 2 * GIB
