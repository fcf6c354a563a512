"""The world: what is drawn, what is held out, what captions say, and sound in time with the picture."""

import numpy as np
import pytest
import torch

from benchmarks.judge import judge, validate
from benchmarks.sound_judge import clicks
from training.captions import read_caption, state, states, with_strange_word, write_caption
from training.labels import (
    HELD_OUT,
    MOTIONS,
    ROUND,
    SPEEDS,
    SPINS,
    Part,
    draw_hard_labels,
    draw_labels,
    hard,
    held_out,
    reserved,
)
from training.picture import draw_frames
from training.recipe import Recipe
from training.scene import JITTER, SPIN
from training.world import Draw, World

CPU = torch.device("cpu")
WORLD = World.of(Recipe.read())


def test_the_same_seed_and_step_give_the_same_clip_and_another_step_another() -> None:
    first, again, other = (WORLD.scenes(Draw(3, step, CPU), 2) for step in (5, 5, 6))
    assert torch.equal(WORLD.frames(first), WORLD.frames(again))
    assert torch.equal(WORLD.waveform(first), WORLD.waveform(again))
    assert not torch.equal(WORLD.frames(first), WORLD.frames(other))


def test_a_clip_has_the_size_of_the_demos_defaults() -> None:
    scene = WORLD.scenes(Draw(0, 0, CPU), 1)
    frames, waveform = WORLD.frames(scene), WORLD.waveform(scene)
    assert frames.shape == (1, 3, WORLD.num_frames, WORLD.side, WORLD.side)
    assert waveform.shape == (1, 2, WORLD.samples)
    assert frames.abs().max() <= 1
    assert 0.01 < waveform.abs().max() < 1


def test_a_window_is_that_piece_of_the_whole_picture() -> None:
    scene = WORLD.scenes(Draw(0, 0, CPU), 2)
    times, corners = torch.tensor([0.0, 1.5]), torch.tensor([[30, 7], [100, 150]])
    windows = draw_frames(scene, times, WORLD.side, corners, 40)
    whole = draw_frames(scene, times, WORLD.side)
    for index, (x, y) in enumerate(corners.tolist()):
        assert torch.allclose(windows[index], whole[index, :, :, y : y + 40, x : x + 40], atol=1e-5)


def test_training_windows_lie_in_the_picture_and_mostly_show_a_shape() -> None:
    windows = WORLD.windows(WORLD.scenes(Draw(0, 0, CPU), 40), Draw(1, 0, CPU), 96, 5)
    assert windows.shape == (40, 3, 5, 96, 96)
    chroma = windows.amax(1) - windows.amin(1)
    assert (chroma.flatten(1).amax(1) > 0.5).float().mean() > 0.9


def test_what_spins_begins_upright_and_turns_at_its_speed() -> None:
    labels = draw_labels(np.random.default_rng(0), 500)
    scene = WORLD.scenes_of(labels, Draw(0, 0, CPU))
    _, _, angle = scene.track(torch.tensor([0.0, 1.0]))
    spins = torch.from_numpy(np.isin(labels.motion, SPINS))
    clockwise = torch.from_numpy(labels.motion == MOTIONS.index(("spin", "clockwise")))
    fast = torch.from_numpy(labels.speed == SPEEDS.index("fast"))
    assert not angle[..., 0].any() and not angle[~spins].any()
    turned = angle[spins][:, 1]
    assert torch.equal(turned > 0, clockwise[spins])
    expected = torch.where(fast, SPIN[1], SPIN[0])[spins]
    assert (turned.abs() / expected - 1).abs().max() <= JITTER + 1e-6


def test_part_of_a_waveform_is_that_part_of_the_whole() -> None:
    scene = WORLD.scenes(Draw(2, 0, CPU), 4)
    part = WORLD.waveform(scene, start=24_000, samples=12_000)
    assert torch.allclose(part, WORLD.waveform(scene)[..., 24_000:36_000], atol=1e-5)


def test_training_never_draws_a_held_out_pair_nor_a_reserved_scene() -> None:
    labels = draw_labels(np.random.default_rng(0), 20_000)
    assert not held_out(labels).any()
    assert not reserved(labels).any()


def test_the_other_parts_are_what_training_leaves_out() -> None:
    unseen, pairs = (draw_labels(np.random.default_rng(0), 500, part) for part in ("unseen", "held_out"))
    assert reserved(unseen).all() and not held_out(unseen).any()
    assert held_out(pairs)[:, 0].all()
    assert set(zip(pairs.kind[:, 0], pairs.colour[:, 0], strict=True)) == set(HELD_OUT)


def test_a_caption_states_nothing_but_the_truth() -> None:
    random = np.random.default_rng(0)
    labels = draw_labels(random, 500)
    for scene in range(len(labels)):
        caption = write_caption(labels, scene, random)
        stated = read_caption(caption)
        assert len(stated) == labels.shapes(scene), caption
        for shape, attributes in enumerate(stated):
            assert attributes.items() <= state(labels, scene, shape).items(), caption


def test_a_full_caption_states_everything() -> None:
    random = np.random.default_rng(1)
    labels = draw_labels(random, 200, "held_out")
    for scene in range(len(labels)):
        caption = write_caption(labels, scene, random, full=True)
        assert read_caption(caption) == states(labels, scene), caption


def test_every_hit_clicks_within_a_hundredth_of_a_second() -> None:
    scene = WORLD.scenes(Draw(4, 0, CPU), 40)
    contacts, waveforms = scene.contacts(), WORLD.waveform(scene).numpy()
    heard = 0
    for times, waveform in zip(contacts, waveforms, strict=True):
        hits = np.sort(times[times.isfinite()].numpy())
        if len(hits) and np.diff(hits, prepend=-1).min() > 0.2 and hits[-1] < 2.6:
            found = clicks(waveform, WORLD.sample_rate)
            assert len(found) == len(hits)
            assert np.abs(np.array(found) - hits).max() < 0.01
            heard += len(hits)
    assert heard > 10


@pytest.mark.parametrize("part", ["unseen", "held_out"])
def test_the_judge_is_right_about_real_clips(part: Part) -> None:
    accuracy = validate(WORLD, 12, part, seed=9).accuracy()
    delay = accuracy.pop("median_delay_s", 0)
    assert min(accuracy.values()) >= 0.98, accuracy
    assert delay < 0.02


def test_the_judge_finds_what_is_wrong() -> None:
    scene = WORLD.scenes(Draw(0, 1, CPU), 1)
    frames = ((WORLD.frames(scene)[0] + 1) * 127.5).byte().permute(1, 2, 3, 0).numpy()
    sound = WORLD.waveform(scene)[0].numpy()
    wrong = {"kind": "none", "colour": "none", "size": "none", "motion": "none", "direction": "none", "speed": "none"}
    verdict = judge(frames, WORLD.fps, sound, WORLD.sample_rate, [wrong] * 3)
    assert not any(verdict.right["count"])
    assert not any(any(verdict.right[name]) for name in (*wrong, "pitch"))


def test_the_judge_survives_noise_and_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    for frames in (noise, np.zeros_like(noise)):
        verdict = judge(frames, 12, np.zeros((2, 48_000), np.float32), 48_000, [{"kind": "circle", "colour": "red"}])
        assert verdict.right["pitch"] == [False]


def test_training_sees_the_hardest_scenes_twice_as_often() -> None:
    random = np.random.default_rng(0)
    plain, drawn = draw_labels(random, 4000), draw_hard_labels(random, 4000)
    assert len(drawn) == 4000
    assert hard(drawn).mean() == pytest.approx(2 * hard(plain).mean(), rel=0.1)
    assert not held_out(drawn).any()


@pytest.mark.parametrize(("part", "there"), [("train", True), ("unseen", False)])
def test_round_shapes_spin_in_training_alone_for_nobody_can_see_it(part: Part, there: bool) -> None:
    labels = draw_labels(np.random.default_rng(0), 500, part)
    assert (np.isin(labels.kind, ROUND) & np.isin(labels.motion, SPINS)).any() == there


def test_a_scene_later_is_what_the_scene_becomes() -> None:
    scene = WORLD.scenes(Draw(0, 0, CPU), 60)
    seconds = torch.rand(60) * scene.duration
    expected = [scene.track(time[None]) for time in seconds]
    for places, name in zip(range(3), ("x", "y", "angle"), strict=True):
        was = torch.stack([track[places][index] for index, track in enumerate(expected)])
        now = scene.later(seconds).track(torch.zeros(1))[places]
        turns = (now - was) / (2 * np.pi) if name == "angle" else torch.zeros(1)
        assert torch.allclose(now - was, turns.round() * 2 * np.pi, atol=1e-4), name


def test_a_caption_of_a_still_states_neither_motion_nor_speed() -> None:
    random = np.random.default_rng(2)
    labels = draw_labels(random, 200)
    for scene in range(len(labels)):
        stated = read_caption(write_caption(labels, scene, random, full=True, still=True))
        whole = states(labels, scene)
        assert stated == [{name: shape[name] for name in ("kind", "colour", "size")} for shape in whole]


def test_a_strange_word_leaves_one_thing_open() -> None:
    random = np.random.default_rng(3)
    labels = draw_labels(random, 200)
    for scene in range(len(labels)):
        caption = write_caption(labels, scene, random, full=True)
        known = sum(map(len, read_caption(caption)))
        assert sum(map(len, read_caption(with_strange_word(caption, random)))) == known - 1, caption
