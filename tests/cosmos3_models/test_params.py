"""What a request may hold, and how a refusal reads."""

import json
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.fields import CheckedModel
from cosmos3_models.params import (
    ApproximationPolicy,
    GenerationDefaults,
    check_pixel_frames,
)
from cosmos3_models.references import ReferenceKind, check_reference, clean_frames
from cosmos3_models.shapes import LatentGrid, nearest_frame_counts, pixel_frames_needed, sound_latent_frames
from serve.schema import ListQuery, VideoRequest


def test_defaults_are_those_of_nvidia() -> None:
    assert GenerationParams(prompt="x").model_dump() == {
        "prompt": "x",
        "negative_prompt": None,
        "num_frames": 189,
        "height": 720,
        "width": 1280,
        "fps": 24.0,
        "num_inference_steps": 35,
        "guidance_scale": 6.0,
        "flow_shift": 10.0,
        "sigma_schedule": "flow",
        "seed": 42,
        "generate_sound": False,
        "append_metadata": True,
        "condition_frame_indexes_vision": None,
        "condition_video_keep": "first",
        "previews": 0,
        "prompt_upsampling": False,
        "fp8_linears": False,
        "fp8_attention": False,
        "velocity_reuse": 0,
        "guidance_reuse": 0,
        "profile": None,
    }


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prompt", ["x", "x" * 32_768]),
        ("negative_prompt", [None, "", "x" * 32_768]),
        ("num_frames", [1, 5, 1201]),
        ("height", [16, 4096]),
        ("width", [16, 4096]),
        ("fps", [1, 29.97, 60]),
        ("num_inference_steps", [1, 200]),
        ("guidance_scale", [1, 20]),
        ("flow_shift", [0.01, 100]),
        ("sigma_schedule", ["flow", "phyai", "karras", "checkpoint"]),
        ("seed", [0, 2**32 - 1]),
    ],
)
def test_the_edges_of_every_range_are_accepted(field: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(GenerationParams(**({"prompt": "x"} | {field: value})), field) == value


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("prompt", "", "some text"),
        ("prompt", " \n", "some text"),
        ("prompt", 3, "a valid string"),
        ("prompt", None, "a valid string"),
        ("prompt", "x" * 32_769, "at most 32768 characters"),
        ("negative_prompt", 3, "a valid string"),
        ("num_frames", 10, r"4k \+ 1 frames \(nearest: 9 or 13\)"),
        ("num_frames", 0, "greater than or equal to 1"),
        ("num_frames", 1205, "less than or equal to 1201"),
        ("num_frames", 9.5, "a valid integer"),
        ("num_frames", True, "a number"),
        ("height", 100, r"a multiple of 16 \(nearest: 96 or 112\)"),
        ("width", 0, "greater than or equal to 16"),
        ("width", 4112, "less than or equal to 4096"),
        ("fps", 0.5, "greater than or equal to 1"),
        ("fps", 61, "less than or equal to 60"),
        ("fps", float("nan"), "less than or equal to 60"),
        ("fps", "fast", "a number"),
        ("num_inference_steps", 0, "greater than or equal to 1"),
        ("num_inference_steps", 201, "less than or equal to 200"),
        ("guidance_scale", 0.5, "greater than or equal to 1"),
        ("guidance_scale", float("inf"), "less than or equal to 20"),
        ("flow_shift", 0, "greater than or equal to 0.01"),
        ("flow_shift", float("nan"), "less than or equal to 100"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**32, "less than or equal to 4294967295"),
        ("sigma_schedule", "euler", "'flow', 'phyai', 'karras' or 'checkpoint'"),
        ("generate_sound", "loud", "a valid boolean"),
        ("condition_frame_indexes_vision", [], "1 to 301 numbers of latent frames"),
        ("condition_frame_indexes_vision", "0, 1", "1 to 301 numbers of latent frames"),
        ("condition_frame_indexes_vision", "", "1 to 301 numbers of latent frames"),
        ("condition_frame_indexes_vision", True, "1 to 301 numbers of latent frames"),
        ("condition_frame_indexes_vision", [0] * 302, "1 to 301 numbers of latent frames"),
        ("condition_frame_indexes_vision", [True], "a number"),
        ("condition_frame_indexes_vision", [0.5], "a valid integer"),
        ("condition_frame_indexes_vision", -1, "greater than or equal to 0"),
        ("condition_frame_indexes_vision", [0, 48], "numbers below 48"),
        ("condition_video_keep", "middle", "'first' or 'last'"),
        ("steps", 3, "one of the fields .*prompt, "),
    ],
)
def test_a_refusal_names_field_value_expectation_and_reason(field: str, value: object, expected: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: got .+, expected .*{expected}.*, because \w") as refusal:
        GenerationParams(**({"prompt": "x"} | {field: value}))
    assert refusal.value.param == field


@pytest.mark.parametrize(("given", "taken"), [(2, (2,)), ([3, 0, 3], (0, 3)), ((1, 0), (0, 1)), ("0,12", (0, 12))])
def test_clean_frames_are_in_order_and_once_however_they_are_written(given: object, taken: tuple[int, ...]) -> None:
    params = GenerationParams(prompt="x", condition_frame_indexes_vision=given)
    assert params.condition_frame_indexes_vision == taken
    stored = json.loads(json.dumps(params.model_dump()))
    assert stored == params.model_dump(), "what is stored and read back compares equal"
    assert clean_frames(GenerationParams.model_construct(**stored), "image") == taken


@pytest.mark.parametrize(
    ("frames", "kind", "taken"), [(5, "image", (0,)), (9, "video", (0, 1)), (5, "video", (0, 1)), (1, "video", (0,))]
)
def test_a_picture_determines_one_latent_frame_and_a_clip_two(
    frames: int, kind: ReferenceKind, taken: tuple[int, ...]
) -> None:
    assert clean_frames(GenerationParams(prompt="x", num_frames=frames), kind) == taken


@pytest.mark.parametrize(
    ("fields", "kind", "least"),
    [
        ({"num_frames": 1}, "image", 5),
        ({"num_frames": 1}, "video", 9),
        ({"num_frames": 5}, "video", 9),
        ({"num_frames": 1, "condition_frame_indexes_vision": 0}, "video", 5),
        ({"num_frames": 9, "condition_frame_indexes_vision": "0,1,2"}, "image", 13),
    ],
)
def test_a_request_leaves_frames_to_be_generated(fields: dict[str, Any], kind: ReferenceKind, least: int) -> None:
    expected = rf"^num_frames: got {fields['num_frames']}, expected at least {least}, because .* nothing to generate"
    with pytest.raises(InvalidInput, match=expected):
        check_reference(GenerationParams(prompt="x", **fields), kind)
    check_reference(GenerationParams(prompt="x", **fields | {"num_frames": least}), kind)


def test_sound_can_be_made_for_a_video_that_is_given() -> None:
    fields = {"num_frames": 9, "condition_frame_indexes_vision": (0, 1, 2)}
    check_reference(GenerationParams(prompt="x", generate_sound=True, **fields), "video")


def test_latent_frames_are_taken_from_a_picture_or_clip_alone() -> None:
    params = GenerationParams(prompt="x", condition_frame_indexes_vision=(0, 2))
    check_reference(params, "image")
    expected = r"^condition_frame_indexes_vision: got \[0, 2\], expected a picture or clip as well, because "
    with pytest.raises(InvalidInput, match=expected):
        check_reference(params, None)


def test_one_frame_is_an_image_and_has_no_sound() -> None:
    assert not GenerationParams(prompt="x", num_frames=1).generate_sound
    with pytest.raises(InvalidInput, match=r"^generate_sound: got True, expected false, because a video of one frame"):
        GenerationParams(prompt="x", num_frames=1, generate_sound=True)


@pytest.mark.parametrize(("indexes", "frames"), [((0,), 1), ((0, 1), 5), ((0, 3), 13)])
def test_latent_frames_depend_on_no_later_frame(indexes: tuple[int, ...], frames: int) -> None:
    assert pixel_frames_needed(indexes) == frames


def test_params_of_an_older_release_have_the_defaults_of_newer_fields() -> None:
    stored = GenerationParams(prompt="x").model_dump(exclude={"condition_frame_indexes_vision", "condition_video_keep"})
    params = GenerationParams.model_construct(**stored)
    assert (params.condition_video_keep, clean_frames(params, "video")) == ("first", (0, 1))


def test_a_missing_prompt_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^prompt: got None, expected a value"):
        GenerationParams()


def test_a_long_value_is_shortened_in_the_refusal() -> None:
    with pytest.raises(InvalidInput) as refusal:
        GenerationParams(prompt="x" * 100_000)
    assert len(str(refusal.value)) < 400


def test_params_do_not_change() -> None:
    params = GenerationParams(prompt="x")
    with pytest.raises(ValidationError, match="frozen"):
        params.seed = 1  # type: ignore[misc]


def test_params_and_refusals_survive_pickling() -> None:
    params = GenerationParams(prompt="x", seed=7)
    assert pickle.loads(pickle.dumps(params)) == params
    refusal = InvalidInput("seed", -1, "more", "so")
    assert str(pickle.loads(pickle.dumps(refusal))) == str(refusal) == "seed: got -1, expected more, because so"


def test_what_is_given_goes_over_the_checkpoints_defaults_and_these_over_ours() -> None:
    defaults = GenerationDefaults(height=256, width=256, num_inference_steps=12)
    params = defaults.params(prompt="x", num_inference_steps=3)
    assert (params.height, params.width, params.num_inference_steps, params.fps) == (256, 256, 3, 24.0)


def test_the_size_of_a_request_is_bounded_over_all_frames() -> None:
    params = GenerationParams(prompt="x", height=64, width=32, num_frames=5)
    check_pixel_frames(params, 64 * 32 * 5)
    with pytest.raises(InvalidInput, match=r"^size: got '32x64 x 5 frames = 10240', expected at most 10239 pixels"):
        check_pixel_frames(params, 64 * 32 * 5 - 1)


@pytest.mark.parametrize(("frames", "nearest"), [(1, (1, 1)), (2, (1, 5)), (5, (5, 5)), (96, (93, 97)), (0, (1, 1))])
def test_the_nearest_frame_counts(frames: int, nearest: tuple[int, int]) -> None:
    assert nearest_frame_counts(frames) == nearest


def test_the_default_video_has_the_published_number_of_latents_and_tokens() -> None:
    grid = LatentGrid.of_video(189, 720, 1280)
    assert grid == LatentGrid(48, 45, 80)
    assert grid.patches(2) == LatentGrid(48, 23, 40)
    assert grid.patches(2).cells == 44_160
    assert grid.num_frames == 189
    assert sound_latent_frames(189, 24.0, 48_000, 1920) == 197
    assert sound_latent_frames(22, 10.0, 48_000, 1920) == 55


@pytest.mark.parametrize("model", [GenerationParams, ApproximationPolicy, VideoRequest, ListQuery])
def test_every_refusal_gives_the_reason_of_its_own_field(model: type[CheckedModel]) -> None:
    for field in model.model_fields:
        with pytest.raises(InvalidInput) as refused:
            model(**({"prompt": "x"} if "prompt" in model.model_fields else {}) | {field: object()})
        assert (refused.value.param, refused.value.why) == (field, model.reasons[field])
        assert "Input should" not in refused.value.expected
        assert "String should" not in refused.value.expected


def test_a_field_without_a_reason_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match=r"Careless.reasons: got none for \['mood'\]"):
        type("Careless", (CheckedModel,), {"__module__": __name__, "__annotations__": {"mood": str}})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"size": "abc"}, "expected text to match pattern '^[1-9]"),
        ({"metadata": {"a": "x" * 513}}, "expected text of at most 512 characters, because a video has up to 16 texts"),
        ({"model": 3}, "because a model is chosen by its name"),
    ],
)
def test_what_pydantic_refuses_reads_as_a_sentence(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        VideoRequest(prompt="x", **fields)
    assert told in str(refused.value)
