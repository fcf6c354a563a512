"""Rotary positions: axes, frame rates, rotation."""

import math

import pytest
import torch

from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.kernels.token_ops import rotate
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.transformer.positions import rotary, sound_positions, text_positions, video_positions

FIELDS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 10,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e6,
    "rope_axes_dim": [24, 20, 20],
    "latent_channel": 8,
    "latent_patch_size": 2,
    "patch_latent_dim": 32,
    "timestep_scale": 0.001,
    "base_fps": 24,
    "enable_fps_modulation": True,
    "unified_3d_mrope_temporal_modality_margin": 15000,
    "sound_gen": True,
    "sound_dim": 4,
    "sound_latent_fps": 25.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "qk_norm_for_text": True,
    "unified_3d_mrope_reset_spatial_ids": True,
}
NANO = TransformerConfig.model_validate(FIELDS)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("sections", "layout"),
    [((24, 20, 20), "THW" * 20 + "TTTT"), ((4, 2, 2), "THWTHWTT"), ((6, 5, 5), "THW" * 5 + "T")],
)
def test_slots_turn_with_their_axis(sections: tuple[int, int, int], layout: str) -> None:
    config = NANO.model_copy(update={"rope_sections": sections, "head_dim": 2 * sum(sections)})
    for axis, letter in enumerate("THW"):
        positions = torch.zeros(3, 1)
        positions[axis] = 0.5
        turned = rotary(positions, config, CPU, torch.float64).sin[0] != 0
        assert "".join(letter if moves else "." for moves in turned) == "".join(
            slot if slot == letter else "." for slot in layout
        )


@pytest.mark.parametrize(("fps", "pace"), [(24.0, 1.0), (16.0, 1.5), (30.0, 0.8)])
def test_a_second_of_video_spans_the_same_positions_at_every_frame_rate(fps: float, pace: float) -> None:
    time, rows, columns = video_positions(LatentGrid(3, 2, 2), 100, fps, NANO)
    assert torch.allclose(time.view(3, 4)[:, 0], 100 + pace * torch.arange(3))
    assert rows[:4].tolist() == [0, 0, 1, 1]
    assert columns[:4].tolist() == [0, 1, 0, 1]


def test_one_frame_sits_at_the_offset_whatever_the_frame_rate() -> None:
    assert video_positions(LatentGrid(1, 1, 1), 100, 16.0, NANO).tolist() == [[100], [0], [0]]


def test_frame_rates_are_ignored_where_the_checkpoint_says_so() -> None:
    config = NANO.model_copy(update={"enable_fps_modulation": False})
    assert video_positions(LatentGrid(3, 1, 1), 5, 16.0, config)[0].tolist() == [5, 6, 7]


def test_sound_runs_24_positions_a_second_from_the_same_origin() -> None:
    time, rows, columns = sound_positions(26, 100, NANO)
    assert time[0] == 100
    assert time[25] == 124
    assert not rows.any()
    assert not columns.any()


def test_rotation_is_that_of_complex_numbers() -> None:
    positions = torch.stack([torch.arange(5.0) + 15_000, torch.arange(5.0), torch.arange(5.0) * 2])
    x = torch.randn(1, 5, 3, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = rotary(positions, NANO, CPU, torch.float64)
    got = rotate(x, table)
    turned = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.complex(table.cos, table.sin)[:, None]
    assert torch.allclose(got, torch.cat([turned.real, turned.imag], -1), atol=1e-12)


def test_angles_are_exact_to_fp32_far_from_the_origin() -> None:
    positions = torch.tensor([[15_047.0], [22.0], [39.0]])
    table = rotary(positions, NANO, CPU, torch.float32)
    for slot, axis in ((0, 0), (1, 1), (2, 2), (60, 0), (63, 0)):
        frequency = torch.tensor(5e6 ** (-2 * slot / 128), dtype=torch.float32).item()
        angle = positions[axis].item() * frequency
        assert table.cos[0, slot].item() == pytest.approx(math.cos(angle), abs=1e-3 if slot == 0 else 1e-2)


def test_text_advances_on_all_axes() -> None:
    assert text_positions(3).tolist() == [[0, 1, 2]] * 3
