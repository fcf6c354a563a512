"""What a sound of the world holds, by plain signal processing: notes, where they come from, and clicks."""

import math

import numpy as np
from numpy.typing import NDArray

from training.labels import COLOURS
from training.tone import PITCH_HZ

Floats = NDArray[np.float64]
Waveform = NDArray[np.float32]

NOTE_TOLERANCE = 0.02  # of a pitch: less than a quarter tone
NOTE_BAND_HZ = (150, 1000)
LEAST_NOTE = 0.05  # of the strongest note's amplitude
PEAK_WIDTH_HZ = 15  # to either side of a peak nothing else is looked for
CLICK_BAND_HZ = 4500  # and above: no note reaches it
CLICK_SMOOTH_S = 0.004
LEAST_CLICK = 0.01  # of full scale
LEAST_SHARE = 0.1  # of the loudest click
CLICK_GAP_S = 0.04  # between two clicks
PAN_WINDOW_S = 0.15


def notes(waveform: Waveform, rate: int, count: int) -> list[str | None]:
    """Colours of the ``count`` strongest notes of (2, samples); None for a pitch that is no colour's."""
    spectrum = sum(np.abs(np.fft.rfft(channel * np.hanning(len(channel)))) ** 2 for channel in waveform)
    frequency = np.fft.rfftfreq(waveform.shape[1], 1 / rate)
    strength = np.where((frequency > NOTE_BAND_HZ[0]) & (frequency < NOTE_BAND_HZ[1]), spectrum, 0)
    found: list[str | None] = []
    strongest = float(strength.max())
    while len(found) < count and strength.max() > LEAST_NOTE**2 * strongest:
        pitch = float(frequency[strength.argmax()])
        strength = np.where(np.abs(frequency - pitch) < PEAK_WIDTH_HZ, 0, strength)
        colour = _colour(pitch)
        if colour or not found:  # what is no note beside a note is its harmonic
            found.append(colour)
    return found


def pan(waveform: Waveform, rate: int, colour: str, times: Floats) -> Floats:
    """Where a colour's note comes from at ``times``: 0 is left, 1 is right."""
    pitch = PITCH_HZ[COLOURS.index(colour)]
    half = int(PAN_WINDOW_S * rate / 2)
    carrier = np.exp(-2j * math.pi * pitch * np.arange(waveform.shape[1]) / rate)
    sums = np.cumsum(np.pad(waveform * carrier, ((0, 0), (1, 0))), axis=1)
    middle = (times * rate).astype(int)
    start, end = (np.clip(middle + shift, 0, waveform.shape[1]) for shift in (-half, half))
    left, right = np.abs(sums[:, end] - sums[:, start])
    return np.asarray(np.arctan2(right, left) * 2 / math.pi)


def clicks(waveform: Waveform, rate: int) -> list[float]:
    """Seconds at which clicks begin."""
    spectrum = np.fft.rfft(waveform, axis=1)
    spectrum[:, np.fft.rfftfreq(waveform.shape[1], 1 / rate) < CLICK_BAND_HZ] = 0
    high = np.sqrt((np.fft.irfft(spectrum, waveform.shape[1], axis=1) ** 2).sum(0))
    width = max(1, int(CLICK_SMOOTH_S * rate))
    envelope = np.convolve(high, np.ones(width) / width, mode="same")
    loudest = float(envelope.max())
    found: list[float] = []
    while envelope.max() > max(LEAST_CLICK, LEAST_SHARE * loudest):
        peak = int(envelope.argmax())
        start = peak
        while start > 0 and envelope[start] > envelope[peak] / 2:
            start -= 1
        found.append(start / rate)
        gap = int(CLICK_GAP_S * rate)
        envelope[max(0, peak - gap) : peak + gap] = 0
    return sorted(found)


def _colour(pitch: float) -> str | None:
    for colour, expected in zip(COLOURS, PITCH_HZ, strict=True):
        if abs(pitch / expected - 1) < NOTE_TOLERANCE:
            return colour
    return None
