"""Every trainer for a few steps, and the models that it trains against the served ones and diffusers'."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import small_demo
import tiny
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file

from benchmarks import reconstruction
from cosmos3_models import Cosmos3Pipeline
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.checkpoint.configs import VideoVAEConfig
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.text.prompt import DEFAULT_NEGATIVE, PromptEncoder
from cosmos3_models.transformer.generation_tower import Streams
from cosmos3_models.transformer.joined_linear import JoinedLinear
from training import export, latents, mix, sound_autoencoder, tokenizer, tone, transformer, unpack, video_vae
from training.latents import Cache
from training.loop import LOG, WEIGHTS, Gradients, Run, Settings, Task, half_forward, train
from training.muon import Muon
from training.recipe import Recipe
from training.world import Draw

CPU = torch.device("cpu")
LATENTS = (8, 3, 4, 4)  # of the small recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return small_demo.recipe()


@pytest.fixture(scope="module")
def text(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small demo's tokenizer."""
    out = tmp_path_factory.mktemp("text")
    tokenizer.write(recipe, out, tokenizer.build(recipe, captions=300))
    return out


def plain_cache(prompts: PromptEncoder, recipe: Recipe) -> Cache:
    generator = torch.Generator().manual_seed(0)
    captions = ("A red star spins.", "A blue box sinks.", "A blue box.")
    texts = [[prompts.token_ids(text).tolist() for text in captions]] * 8
    ids, lengths = latents._padded(texts)
    video, sound = torch.randn(8, 1, generator=generator), torch.randn(8, 1, generator=generator)
    shapes = (8, *LATENTS), (8, recipe.sound.latent_dim, recipe.sound_frames)
    colour = torch.rand(8, *LATENTS[1:], generator=generator)
    streams = video.view(8, 1, 1, 1, 1).expand(shapes[0]), sound.view(8, 1, 1).expand(shapes[1])
    return Cache(*streams, colour, torch.arange(8) % 2 == 0, ids, lengths)


def make_task(name: str, recipe: Recipe, text: Path) -> Task:
    if name == "video":
        return video_vae.VideoTask(recipe, 2, seed=0)
    if name == "decoder":
        return video_vae.VideoTask(recipe, 2, seed=0, decoder_only=True)
    if name == "sound":
        return sound_autoencoder.SoundTask(recipe, 2, seed=0)
    prompts = PromptEncoder.from_checkpoint(text)
    return transformer.TransformerTask(recipe, plain_cache(prompts, recipe), prompts, 8, seed=0)


@pytest.mark.parametrize("name", ["video", "sound", "transformer"])
def test_a_run_that_was_cut_ends_like_one_that_was_not(name: str, recipe: Recipe, text: Path, tmp_path: Path) -> None:
    def run(folder: str, stop_at: int | None) -> dict[str, torch.Tensor]:
        settings = Settings(tmp_path / folder, steps=3, learning_rate=1e-2, warmup=1, stop_at=stop_at, log_every=1)
        train(make_task(name, recipe, text), settings, CPU)
        return load_file(tmp_path / folder / WEIGHTS)

    whole = run("whole", None)
    run("cut", 2)
    cut = run("cut", None)
    start = make_task(name, recipe, text).module.state_dict()
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert any(not torch.equal(whole[key], start[key]) for key in whole)
    lines = [json.loads(line) for line in (tmp_path / "cut" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(0 < line["loss"] < float("inf") for line in lines)


def test_a_run_may_begin_with_the_weights_of_another(recipe: Recipe, text: Path, tmp_path: Path) -> None:
    train(make_task("transformer", recipe, text), Settings(tmp_path / "one", 2, 1e-3, warmup=1), CPU)
    earlier = tmp_path / "one" / WEIGHTS
    train(make_task("transformer", recipe, text), Settings(tmp_path / "two", 0, 1e-3, start=earlier), CPU)
    one, two = load_file(earlier), load_file(tmp_path / "two" / WEIGHTS)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    "name, rate, falls_to",
    [("video", 1e-2, 0.9), ("sound", 1e-2, 0.97), ("transformer", 1e-2, 0.9)],
)
def test_the_loss_falls(name: str, rate: float, falls_to: float, recipe: Recipe, text: Path, tmp_path: Path) -> None:
    train(make_task(name, recipe, text), Settings(tmp_path, 20, rate, warmup=3, log_every=5), CPU)
    losses = [json.loads(line)["loss"] for line in (tmp_path / LOG).read_text().splitlines()]
    assert losses[-1] < falls_to * losses[0], losses


@pytest.mark.parametrize("name", ["video", "decoder", "transformer"])
def test_bf16_copies_give_about_the_same_gradients(name: str, recipe: Recipe, text: Path) -> None:
    task = make_task(name, recipe, text)
    gradients = []
    for forward in (task.module, half_forward(task)):
        Gradients(task, forward).of(task.parts(Draw(0, 0, CPU), 0.0))
        trained = [parameter for parameter in task.module.parameters() if parameter.requires_grad]
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained]))
    assert gradients[1].dtype == torch.float32
    assert tiny.relative_error(gradients[1], gradients[0]) < 0.05


def test_frozen_weights_stay_out_of_the_backward(recipe: Recipe, text: Path) -> None:
    task = make_task("decoder", recipe, text)
    [inputs] = task.parts(Draw(0, 0, CPU), 0.0)
    reconstruction, mean, _ = half_forward(task)(*inputs)
    assert reconstruction.requires_grad
    assert not mean.requires_grad


def test_muon_equals_that_of_pytorch() -> None:
    matrices = [torch.randn(shape) for shape in ((8, 8), (4, 12), (12, 4), (8, 8))]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in matrices] for _ in range(2))
    mine = Muon(ours, lr=0.05, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        mine.step()
        reference.step()
    for one, other, start in zip(ours, theirs, matrices, strict=True):
        assert tiny.relative_error(one.detach() - start, other.detach() - start) < 0.01  # both in bf16


def test_muon_steps_each_part_of_a_joined_matrix_by_itself() -> None:
    parts = [torch.randn(rows, 6) for rows in (8, 4, 4)]
    alone, joined = [torch.nn.Parameter(part.clone()) for part in parts], torch.nn.Parameter(torch.cat(parts))
    optimizers = Muon(alone, 0.05, 0.1), Muon([joined], 0.05, 0.1, parts={joined: [8, 4, 4]})
    for _ in range(2):
        for part in alone:
            part.grad = torch.randn(part.shape)
        joined.grad = torch.cat([part.grad for part in alone if part.grad is not None])
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(joined, torch.cat(alone), atol=1e-6)


def test_training_steps_queries_keys_and_values_by_themselves(recipe: Recipe, text: Path, tmp_path: Path) -> None:
    run = Run(make_task("transformer", recipe, text), Settings(tmp_path, 1, 1e-3), CPU)
    muon = run.optimizers[1]
    assert isinstance(muon, Muon)
    joined = [module for module in run.module.modules() if isinstance(module, JoinedLinear)]
    assert joined
    assert all(list(muon._parts[module.weight]) == list(module.parts.values()) for module in joined)


def test_a_loss_that_is_no_number_ends_the_run(recipe: Recipe, text: Path, tmp_path: Path) -> None:
    task = make_task("sound", recipe, text)
    torch.nn.init.constant_(task.module.decoder.decoder.conv1.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="step 1"):
        train(task, Settings(tmp_path, 5, 1e-3, log_every=1), CPU)


def test_a_run_whose_time_is_over_stops(recipe: Recipe, text: Path, tmp_path: Path) -> None:
    run = train(make_task("sound", recipe, text), Settings(tmp_path, 10**6, 1e-3, minutes=1e-9), CPU)
    assert run.step < 3
    assert (tmp_path / WEIGHTS).is_file()


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_the_encode_in_training_equals_that_of_diffusers(frames: int) -> None:
    with tiny.quiet_reference():
        reference = tiny.randomize(tiny._video_vae(1), 3)
    encoder = WanVideoEncoder(VideoVAEConfig.model_validate(dict(reference.config)))
    ours = [name for name, _ in encoder.named_parameters()]
    encoder.load_state_dict({name: reference.state_dict()[name] for name in ours})
    pixels = 2 * torch.rand(2, 3, frames, 64, 48, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        expected = reference.encode(pixels).latent_dist
        mean, log_variance = video_vae.encode(encoder, pixels)
    assert tiny.relative_error(mean, expected.mean) <= 1e-5
    assert tiny.relative_error(log_variance.clamp(-30, 20), expected.logvar) <= 1e-5


@pytest.mark.parametrize("frames", [1, 4])
def test_the_decode_in_training_equals_the_served_one(frames: int) -> None:
    with tiny.quiet_reference():
        reference = tiny.randomize(tiny._video_vae(1), 3)
    config = VideoVAEConfig.model_validate(dict(reference.config))
    decoder = WanVideoDecoder(config)
    decoder.load_state_dict({name: reference.state_dict()[name] for name, _ in decoder.named_parameters()})
    normal = torch.randn(1, config.z_dim, frames, 3, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    got = video_vae.decode(decoder, normal * std + mean)
    served = torch.cat(list(decoder(normal, 1)), dim=2)
    assert tiny.relative_error((got.detach().clamp(-1, 1) + 1) / 2, served) <= 1e-6


def test_the_velocity_in_training_equals_the_served_one(recipe: Recipe) -> None:
    trained = transformer.Trainable(tiny.randomize(transformer.build(recipe), 0), recipe.fps)
    streams = Streams(torch.randn(2, *LATENTS), torch.randn(2, recipe.sound.latent_dim, recipe.sound_frames))
    ids = torch.randint(400, (2, 7))
    got = trained(streams, torch.tensor([900.0, 20.0]), ids)
    for row, timestep in enumerate((900, 20)):
        condition = trained.model.condition(ids[row : row + 1], recipe.grid, recipe.fps, recipe.sound_frames)
        served = trained.model(Streams(*(s[row : row + 1] for s in streams.present)), timestep, condition)
        for ours, theirs in zip(got.present, served.present, strict=True):
            assert tiny.relative_error(ours[row : row + 1].detach(), theirs) <= 1e-5


def test_sound_latents_have_the_served_rate_and_hold_the_sound(recipe: Recipe) -> None:
    task = sound_autoencoder.SoundTask(recipe, 8, seed=0)
    waveform = task.world.waveform(task.world.scenes(Draw(0, 0, CPU), 8))
    encoded = task.module.encoder(waveform)
    assert encoded.shape == (8, recipe.sound.latent_dim, recipe.sound_frames)
    assert float(encoded.square().mean()) == pytest.approx(0.5, abs=0.3)
    assert task.module.decoder.decoder(encoded).shape == waveform.shape
    atoms = tone.atoms(recipe.sound.hop, recipe.sound.sample_rate)
    frames = rearrange(encoded / sound_autoencoder.GAIN, "b (c k) t -> b c t k", c=2) @ atoms
    error = rearrange(frames, "b c t s -> b c (t s)") - waveform
    assert float(error.square().mean() / waveform.square().mean()) < 1e-3  # panning moves within a frame


def test_micro_batches_have_the_recipes_shares_of_pictures_clips_and_images(recipe: Recipe, text: Path) -> None:
    task = make_task("transformer", recipe, text)
    found = []
    for step in range(100):
        for ids, _sigma, clean, _weight, *streams in task.parts(Draw(0, step, CPU), 0.0):
            assert clean.tolist() == sorted(clean.tolist(), reverse=True), "the first ones"
            assert (len(clean) == 1) <= (len(streams) == 2), "an image has no sound"
            assert streams[0].shape[2] == len(clean) and len(ids) == 2
            found.append("image" if len(clean) == 1 else int(clean.sum()))
    shares = recipe.shares
    for sort, share in ((1, shares.picture), (2, shares.clip), ("image", shares.image)):
        assert found.count(sort) / len(found) == pytest.approx(share, abs=0.05)


def test_clean_frames_are_seen_without_noise_and_their_velocity_does_not_count(recipe: Recipe, text: Path) -> None:
    task = make_task("transformer", recipe, text)
    parts = (part for step in range(50) for part in task.parts(Draw(0, step, CPU), 0.0))
    ids, sigma, clean, weight, *streams = next(part for part in parts if part[2].sum() == 2)
    seen = []

    def forward(noisy: Streams, _timesteps: torch.Tensor, _ids: torch.Tensor, off: float = 0.0) -> Streams:
        seen.append(noisy)
        return Streams(*(torch.zeros_like(stream) for stream in noisy.present)).replaced(
            [torch.where(clean[:, None, None], off, 0.0).expand(noisy.video.shape), *noisy.present[1:]]
        )

    one, other = (
        task.losses(lambda *inputs, off=off: forward(*inputs, off), ids, sigma, clean, weight, *streams)
        for off in (0.0, 100.0)
    )
    assert torch.equal(seen[0].video[:, :, :2], streams[0][:, :, :2])
    assert not torch.equal(seen[0].video[:, :, 2:], streams[0][:, :, 2:])
    assert seen[0].clean is not None and seen[0].clean.tolist() == [True, True, False]
    assert torch.equal(one["loss"], other["loss"])


def test_the_sigmas_follow_the_served_shift() -> None:
    sigmas = transformer.draw_sigmas(1000, 5.0, Draw(0, 0, CPU))
    assert sigmas.median() == pytest.approx(5 * 0.5 / (1 + 4 * 0.5), abs=0.01)
    assert sigmas.min() > 0 and sigmas.max() < 1


def test_the_tokenizer_reads_any_text_and_splits_digits(recipe: Recipe, text: Path) -> None:
    prompts = PromptEncoder.from_checkpoint(text)
    vocabulary = recipe.transformer.vocab_size
    for prompt in ("A red ball bounces.", "Zürich 猫 \u0000", DEFAULT_NEGATIVE.read_text(), ""):
        assert prompts.token_ids(prompt).max() < vocabulary
    one, two = (len(prompts.token_ids(f"{digits} FPS")) for digits in ("1", "12"))
    assert two == one + 1
    params = recipe.generation.model_copy(update={"prompt": "A red ball bounces.", "guidance_scale": 3.0})
    negative = prompts.encode(params).negative
    assert negative is not None and len(negative) < 30, "a long default negative prompt would cost every step"


def test_statistics_are_those_of_each_channel() -> None:
    values = torch.randn(5, 3, 2, 4, 4) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1) + 1
    mean, std = latents.statistics(values)
    flat = values.transpose(0, 1).flatten(1)
    assert torch.allclose(mean, flat.mean(1), atol=1e-5)
    assert torch.allclose(std, flat.std(1, correction=0), atol=1e-5)


def test_the_commands_make_a_checkpoint_that_makes_a_video(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(recipe.dump())
    out = ["--out", str(tmp_path / "run")]
    common = [*out, "--recipe", str(tmp_path / "recipe.json")]
    steps = [*common, "--steps", "2", "--batch", "4", "--log-every", "1", "--device", "cpu"]
    commands: list[tuple[Callable[[list[str]], None], list[str]]] = [
        (tokenizer.main, [*common, "--captions", "300"]),
        (video_vae.main, steps),
        (sound_autoencoder.main, steps),
        (latents.main, [*common, "--clips", "16", "--device", "cpu"]),
        (transformer.main, steps),
        (export.main, [*out, "--to", str(tmp_path / "demo")]),
    ]
    for main, arguments in commands:
        main(arguments)
    pipeline = Cosmos3Pipeline.from_pretrained(tmp_path / "demo", "cpu")
    params = pipeline.checkpoint.defaults.params(prompt="A red ball bounces.", generate_sound=True)
    result = pipeline(params)
    assert result.frames.shape == (9, 64, 64, 3)
    assert result.waveform is not None and result.waveform.shape[1] == recipe.sound_frames * recipe.sound.hop
    assert pipeline.checkpoint.video_vae.latents_std != (1.0,) * 8
    small = latents.recipe_of(tmp_path / "run")
    lost = reconstruction.measure(pipeline, latents.Encoders(small, tmp_path / "run", CPU), small, clips=1)
    assert -20 < lost["video_psnr_db"] < 20, "two steps teach nothing"
    assert lost["right"]["kind"] < 1


def test_a_checkpoint_comes_apart_into_what_it_was_made_of(recipe: Recipe, text: Path, tmp_path: Path) -> None:
    trained = transformer.Trainable(tiny.randomize(transformer.build(recipe), 0), recipe.fps)
    video, sound = tiny.randomize(video_vae.build(recipe), 1), sound_autoencoder.build(recipe)
    parts = export.Parts(trained.model, video, sound)
    folder = export.export(recipe.with_statistics([0.1] * 8, [0.8] * 8), parts, text, tmp_path / "demo", torch.float32)
    unpack.unpack(Checkpoint.open(folder), recipe, tmp_path / "run")
    for module, file in (
        (trained, unpack.START),
        (video, Path(video_vae.COMPONENT) / WEIGHTS),
        (sound, Path(sound_autoencoder.COMPONENT) / WEIGHTS),
    ):
        found = load_file(tmp_path / "run" / file)
        assert found.keys() == module.state_dict().keys()
        for name, tensor in module.state_dict().items():
            assert torch.allclose(found[name], tensor, rtol=1e-6, atol=1e-7), name
    assert PromptEncoder.from_checkpoint(tmp_path / "run").token_ids("A red star.").size
    assert latents.recipe_of(tmp_path / "run").video_vae.latents_std == (0.8,) * 8


def test_a_mix_lies_between_two_checkpoints(recipe: Recipe, text: Path, tmp_path: Path) -> None:
    video, sound = video_vae.build(recipe), sound_autoencoder.build(recipe)
    for seed, name in enumerate(("first", "second")):
        parts = export.Parts(tiny.randomize(transformer.build(recipe), seed), video, sound)
        statistics = recipe.with_statistics([0.1 * seed] * 8, [0.8 + 0.1 * seed] * 8)
        export.export(statistics, parts, text, tmp_path / name)
    first, second, mixed = (tmp_path / name for name in ("first", "second", "mixed"))
    mix.main(["--of", str(first), "--and", str(second), "--share", "0.25", "--to", str(mixed)])
    of_first, of_second, of_mixed = (
        load_file(folder / "transformer" / export.WEIGHTS) for folder in (first, second, mixed)
    )
    for name, x in of_mixed.items():
        expected = 0.75 * of_first[name].double() + 0.25 * of_second[name].double()
        assert x.dtype == torch.float16 and torch.allclose(x.double(), expected, rtol=2**-11, atol=2**-25), name
    opened = Checkpoint.open(mixed)
    assert opened.video_vae.latents_mean == pytest.approx((0.025,) * 8)
    assert opened.video_vae.latents_std == pytest.approx((0.825,) * 8)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_lies_between_none_and_all(share: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        mix.mix(tmp_path, tmp_path, share, tmp_path / "new")


def test_other_tensors_do_not_mix(tmp_path: Path) -> None:
    for name, size in (("first", 2), ("second", 3)):
        (tmp_path / name / "transformer").mkdir(parents=True)
        save_file({"x": torch.zeros(size)}, tmp_path / name / "transformer" / export.WEIGHTS)
    with pytest.raises(ValueError, match="different tensors"):
        mix.mix(tmp_path / "first", tmp_path / "second", 0.5, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("sound", [False, True], ids=["T2V", "T2AV"])
def test_diffusers_makes_the_same_video_of_an_exported_folder(
    sound: bool, recipe: Recipe, text: Path, tmp_path: Path
) -> None:
    parts = export.Parts(
        tiny.randomize(transformer.build(recipe), 0),
        tiny.randomize(video_vae.build(recipe), 1),
        sound_autoencoder.build(recipe),
    )
    torch.nn.init.normal_(parts.sound.decoder.decoder.conv1.bias)
    for name, parameter in parts.sound.decoder.named_parameters():
        if "conv2.weight" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder = export.export(recipe.with_statistics([0.1] * 8, [0.8] * 8), parts, text, tmp_path / "demo")
    pipeline = Cosmos3Pipeline.from_pretrained(folder, "cpu")
    params = pipeline.checkpoint.defaults.params(
        prompt="A red ball bounces.", negative_prompt="", generate_sound=sound, append_metadata=False
    )
    errors = tiny.compare_with_diffusers(pipeline, params).errors
    assert ("waveform" in errors) == sound
    assert all(error <= 1e-5 for error in errors.values()), errors


def test_a_decoder_may_be_trained_alone(recipe: Recipe, tmp_path: Path) -> None:
    task = video_vae.VideoTask(recipe, 2, seed=0, decoder_only=True)
    before = {name: tensor.clone() for name, tensor in task.module.state_dict().items()}
    train(task, Settings(tmp_path, steps=2, learning_rate=1e-2, warmup=1), CPU)
    after = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("encoder."))
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("decoder."))


def test_a_latent_knows_the_most_colourful_of_its_pixels() -> None:
    frames, encoded = torch.zeros(1, 3, 9, 32, 48), torch.zeros(1, 4, 3, 2, 3)
    frames[0, 0, 0, 20, 40] = 1.0  # one pixel of the first frame, of chroma 0.5
    frames[0, 2, 5, 3, 17] = -0.4
    expected = torch.zeros(1, 3, 2, 3)
    expected[0, 0, 1, 2], expected[0, 2, 0, 1] = 0.5, 0.2
    assert torch.allclose(latents.most_colourful(frames, encoded), expected)


def test_shapes_count_more_than_grey_until_noise_hides_them() -> None:
    colour = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(2, 1, 1, 2)
    grey, shape = transformer.weights(colour, torch.tensor([0.0, 1.0])).unbind(-1)
    assert grey.flatten().tolist() == [1, 1]
    assert shape.flatten().tolist() == [1 + transformer.SHAPE_WEIGHT, 1]


def test_the_sound_latents_of_clicks_count_more_and_no_others(recipe: Recipe) -> None:
    """Where a wave that is a note or a click has its latents, measured by the encoder."""
    encoder = sound_autoencoder.build(recipe).encoder
    atoms = tone.atoms(recipe.sound.hop, recipe.sound.sample_rate)
    waves = atoms[:, None].expand(-1, recipe.sound.channels, -1)
    notes = len(tone.PITCH_HZ)
    found = encoder(waves)[..., 0].abs() > 0.1
    heavy = transformer.sound_weights(recipe)[:, 0] == transformer.CLICK_WEIGHT
    assert torch.equal(found[notes:].any(0), heavy)
    assert torch.equal(found[:notes].any(0), ~heavy)


def test_plain_errors_weighted_alike_are_the_mean_squared_error(recipe: Recipe, text: Path) -> None:
    task = make_task("transformer", recipe, text)
    ids, sigma, clean, weight, *streams = next(iter(task.parts(Draw(0, 0, CPU), 0.0)))
    assert isinstance(task, transformer.TransformerTask)
    task.sound_weights = torch.ones(1, 1)
    losses = task.losses(task.module, ids, sigma, clean, torch.full_like(weight, 3.0), *streams)
    assert torch.allclose(losses["loss"], losses["video"] + transformer.SOUND_WEIGHT * losses["sound"])
    weighted = task.losses(task.module, ids, sigma, clean, weight, *streams)
    assert not torch.allclose(weighted["loss"], losses["loss"])
