"""What a chat model is asked for, and what of its answers becomes a prompt."""

import base64
import json
import re
from typing import Any

import pytest
from fake_chat import caption
from pydantic import BaseModel

from cosmos3_models import Cosmos3Pipeline, GenerationParams, InvalidInput
from cosmos3_models.checkpoint.folder import DEMO_FOLDER
from cosmos3_models.params import MAX_PROMPT_CHARS
from cosmos3_models.text.caption import IMAGE_CAPTION, MEASURES, VIDEO_CAPTION, measures
from cosmos3_models.text.metadata import caption_in, with_metadata
from cosmos3_models.text.upsampling import InvalidCaption, caption_schema, messages, prompt_of

VIDEO = GenerationParams(prompt='a "red" ball', num_frames=9, height=64, width=96, fps=8)
IMAGE = GenerationParams(prompt="a red ball", num_frames=1, height=64, width=64)

OF_BOTH = ("subjects", "background_setting", "lighting", "aesthetics", "cinematography", "style_medium")
OF_BOTH += ("artistic_style", "context")
SAID = "text_and_signage_elements"
IN_TIME = ("segments", "transitions", "temporal_caption", "audio_description")
OF_A_VIDEO = [*OF_BOTH, "actions", SAID, *IN_TIME]
OF_AN_IMAGE = [*OF_BOTH, SAID, "quadrant_scan", "comprehensive_t2i_caption"]


def objects(schema: Any) -> list[dict[str, Any]]:
    """Every schema of an object within a schema."""
    if isinstance(schema, list):
        return [found for one in schema for found in objects(one)]
    if not isinstance(schema, dict):
        return []
    return [schema] * (schema.get("type") == "object") + objects(list(schema.values()))


@pytest.mark.parametrize(("params", "fields"), [(VIDEO, OF_A_VIDEO), (IMAGE, OF_AN_IMAGE)], ids=["video", "image"])
def test_the_schema_has_the_fields_of_the_training_data_and_what_servers_that_decode_by_one_need(
    params: GenerationParams, fields: list[str]
) -> None:
    schema = caption_schema(params)
    assert list(schema["properties"]) == fields
    within = objects(schema)
    assert len(within) >= 5
    assert not set(re.findall(r'"([$\w]+)":', json.dumps(schema))) & {"$ref", "$defs", "title", "allOf", "minLength"}
    for one in within:
        assert one["additionalProperties"] is False
        assert one["required"] == list(one["properties"])


@pytest.mark.parametrize(("params", "model"), [(VIDEO, VIDEO_CAPTION), (IMAGE, IMAGE_CAPTION)], ids=["video", "image"])
def test_an_answer_becomes_the_prompt_that_the_tokenizer_would_make_of_it(
    params: GenerationParams, model: type[BaseModel]
) -> None:
    prompt = prompt_of(json.dumps(caption("é", model)), params)
    video = {"duration": "1s", "fps": 8.0} if params.num_frames > 1 else {}
    shape = {"aspect_ratio": "1,1"} if params.width == params.height else {}
    expected = caption("é", model) | {"resolution": {"H": 64, "W": params.width}} | shape | video
    assert prompt == json.dumps(expected), "ASCII, in order"
    size = {"num_frames": params.num_frames, "fps": params.fps, "height": params.height, "width": params.width}
    assert with_metadata(prompt, **size) == prompt
    bare = params.model_copy(update={"append_metadata": False})
    assert json.loads(prompt_of(json.dumps(caption("é", model)), bare)) == caption("é", model)


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ((1280, 720), "16,9"),
        ((832, 480), "16,9"),
        ((320, 192), "16,9"),
        ((320, 256), "4,3"),
        ((544, 736), "3,4"),
        ((480, 832), "9,16"),
        ((960, 960), "1,1"),
        ((1280, 320), None),
    ],
)
def test_a_caption_names_the_ratio_of_the_official_sizes(size: tuple[int, int], ratio: str | None) -> None:
    assert dict(measures(9, 24, size[1], size[0])).get("aspect_ratio") == ratio


def test_what_follows_from_the_request_is_never_the_models_choice() -> None:
    lie = {"resolution": {"H": 1, "W": 1}, "duration": "99s", "fps": 1, "aspect_ratio": "16,9"}
    assert set(lie) == set(MEASURES)
    assert prompt_of(json.dumps(caption() | lie), VIDEO) == prompt_of(json.dumps(caption()), VIDEO)


@pytest.mark.parametrize(
    "around",
    ["{}", "```json\n{}\n```", "<think>A {{ball}}.</think>{}", "Here it is: {} Done."],
    ids=lambda text: text[:5],
)
def test_an_object_is_found_in_its_surroundings(around: str) -> None:
    assert caption_in(prompt_of(around.format(json.dumps(caption())), VIDEO)) is not None


MISSING = {name: value for name, value in caption().items() if name != "lighting"}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("", "no JSON object"),
        ("A red ball.", "no JSON object"),
        ("[1]", "no JSON object"),
        (json.dumps(caption())[:-5], "no JSON object"),
        ("{" * 50_000 + "}" * 50_000, "no JSON object"),
        (json.dumps(MISSING), "another form: lighting: Field required"),
        (json.dumps(caption() | {"subjects": "a ball"}), "another form: subjects"),
        (json.dumps(caption() | {"mood": "x"}), "another form: mood"),
        (json.dumps(caption() | {"temporal_caption": " "}), "another form: temporal_caption"),
        (json.dumps(caption("a", IMAGE_CAPTION)), "another form"),
        (json.dumps(caption("x" * 2000)), f"more than the {MAX_PROMPT_CHARS}"),
    ],
    ids=[
        "empty",
        "text",
        "a list",
        "cut off",
        "deep",
        "a field less",
        "type",
        "a field more",
        "blank",
        "image",
        "long",
    ],
)
def test_anything_else_is_refused_without_being_quoted(answer: str, told: str) -> None:
    with pytest.raises(InvalidCaption, match=told):
        prompt_of(answer, VIDEO)


def test_the_request_is_data_beside_the_instruction() -> None:
    system, user = messages(VIDEO)
    assert VIDEO.prompt not in system["content"]
    decided = {"width": 96, "height": 64, "seconds": 1.12, "frames_per_second": 8.0, "with_sound": False}
    assert json.loads(user["content"]) == {"request": VIDEO.prompt} | decided
    assert json.dumps(caption_schema(VIDEO)) in system["content"]
    assert json.loads(messages(IMAGE)[1]["content"]) == {"request": IMAGE.prompt, "width": 64, "height": 64}


def test_a_picture_comes_before_the_request() -> None:
    picture, text = messages(VIDEO, b"jpeg")[1]["content"]
    assert picture["image_url"]["url"] == f"data:image/jpeg;base64,{base64.b64encode(b'jpeg').decode()}"
    assert json.loads(text["text"])["request"] == VIDEO.prompt
    assert "first frame" in messages(VIDEO, b"jpeg")[0]["content"]
    assert "first frame" not in messages(VIDEO)[0]["content"]


def test_a_pipeline_without_a_server_refuses_to_upsample() -> None:
    pipeline = Cosmos3Pipeline.from_pretrained(str(DEMO_FOLDER), device="cpu")
    with pytest.raises(InvalidInput, match="prompt_upsampling: got True, expected false, because only a server"):
        pipeline(GenerationParams(prompt="x", prompt_upsampling=True))
