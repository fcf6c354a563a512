"""Scenes to stereo sound in time with the picture.

A shape's note is its colour's. It comes from where the shape is: panned by x, louder further down and for larger
shapes. Every hit at a wall or the floor is a click.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.scene import Scene, table

# Multiples of the latent rate of 25 Hz, so that a steady note looks the same in every latent frame; a third apart.
PITCH_HZ = (225, 275, 325, 400, 475, 575, 700, 850)  # of labels.COLOURS
HARMONICS = (0.7, 0.2, 0.1)  # strength of each
LOUDNESS = (0.45, 0.7, 1.0)  # of labels.SIZES
FLOOR_GAIN, CEILING_GAIN = 1.0, 0.5
TONE_PEAK = 0.35
CLICK_PEAK = 0.35
CLICK_HZ = 6000
CLICK_DECAY_S = 0.008
CLICK_LENGTH_S = 0.06
CLICK_RASTER_S = 0.01  # clicks start on this raster, of which CLICK_HZ is a multiple
CONTROL_HZ = 200  # how often panning and loudness are computed; linear in between


def draw_waveform(scene: Scene, samples: int, rate: int, start: int = 0) -> Tensor:
    """The sound of each scene: fp32 (n, 2, samples), left then right, from sample ``start`` on."""
    times = (torch.arange(samples, device=scene.radius.device) + start) / rate
    left, right = _gains(scene, samples, rate, start)
    notes = _notes(scene, times) * TONE_PEAK + _clicks(scene, samples, rate, start) * CLICK_PEAK
    return torch.stack([(notes * left).sum(1), (notes * right).sum(1)], dim=1)


def _gains(scene: Scene, samples: int, rate: int, start: int) -> tuple[Tensor, Tensor]:
    """Gain of each shape in the left and the right channel, (n, 2, samples) each."""
    count = samples * CONTROL_HZ // rate + 2
    control = torch.arange(count, device=scene.radius.device) / CONTROL_HZ + start / rate
    x, y, _ = scene.track(control)
    loudness = table(LOUDNESS, x.device)[scene.size] * scene.present
    gain = loudness[..., None] * (CEILING_GAIN + (FLOOR_GAIN - CEILING_GAIN) * y)
    pan = x.clamp(0, 1) * math.pi / 2
    long = (count - 1) * rate // CONTROL_HZ + 1
    left, right = (
        F.interpolate(side, long, mode="linear", align_corners=True)[..., :samples]
        for side in (gain * pan.cos(), gain * pan.sin())
    )
    return left, right


def _notes(scene: Scene, times: Tensor) -> Tensor:
    """Each shape's tone at full strength, (n, 2, samples)."""
    return _tone(table(PITCH_HZ, times.device)[scene.colour][..., None], times)


def _tone(pitch: Tensor, times: Tensor) -> Tensor:
    # The turn, not the angle, is reduced: an angle of thousands of radians has no precision left in fp32.
    angle = (2 * math.pi * ((pitch * times.double()) % 1)).float()
    harmonics = (strength * ((index + 1) * angle).sin() for index, strength in enumerate(HARMONICS))
    return torch.stack(list(harmonics)).sum(0)


def _click(age: Tensor) -> Tensor:
    return (-age / CLICK_DECAY_S).exp() * (2 * math.pi * CLICK_HZ * age).sin()


def atoms(hop: int, rate: int) -> Tensor:
    """What a latent frame of sound is made of: each colour's note, then a step of a click at each place of the raster.

    Pitches are multiples of the latent rate, so a note looks the same in every frame; and a click's tail is the click
    itself, softer, a step of the raster later. Fp32 (8 + hop / raster, hop), of the loudest possible shape.
    """
    times = torch.arange(hop) / rate
    notes = _tone(torch.tensor(PITCH_HZ)[:, None], times) * TONE_PEAK
    step = round(CLICK_RASTER_S * rate)
    click = _click(times[:step]) * CLICK_PEAK
    return torch.cat([notes, torch.block_diag(*[click] * (hop // step))])


def click_atoms(hop: int, rate: int) -> Tensor:
    """Which of ``atoms`` are steps of a click: bool (8 + hop / raster,)."""
    return torch.arange(len(atoms(hop, rate))) >= len(PITCH_HZ)


def _clicks(scene: Scene, samples: int, rate: int, start: int) -> Tensor:
    """Each shape's clicks at full strength, (n, 2, samples)."""
    length = int(CLICK_LENGTH_S * rate)
    age = torch.arange(length, device=scene.radius.device) / rate
    click = _click(age)
    contacts = scene.contacts()
    real = contacts.isfinite()
    onset = (torch.where(real, contacts, 0.0) / CLICK_RASTER_S).round().long() * round(CLICK_RASTER_S * rate)
    onset = onset - start + length  # in a buffer with room for a click before and after
    inside = real & (onset >= 0) & (onset < samples + length)
    places = torch.where(inside, onset, 0)[..., None] + torch.arange(length, device=age.device)
    strength = (inside.float()[..., None] * click).flatten(2)
    buffer = torch.zeros(*contacts.shape[:2], samples + 2 * length, device=age.device)
    return buffer.scatter_add_(2, places.flatten(2), strength)[..., length : length + samples]
