"""The file of a batch: what its lines ask for, and what is wrong with them."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sample_media import clip, picture

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.params import MAX_SEED
from serve.client.batch import InvalidBatch, Options
from serve.client.batch import lines as reading
from serve.client.batch.checks import Checks
from serve.client.batch.lines import Line, Lines, parse
from serve.client.batch.wanted import Plan, Wanted, wanted

CARD: dict[str, Any] = {
    "id": "served",
    "sound": True,
    "pictures": True,
    "prompt_upsampling": True,
    "defaults": GenerationParams(prompt="-").model_dump(exclude={"prompt", "seed"}),
    "max_pixel_frames": 1280 * 720 * 297,
    "allowed_approximations": [],
}


def read(folder: Path, *texts: str | bytes) -> list[tuple[int, Any]]:
    file = folder / "prompts.jsonl"
    file.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
    with closing(Lines(file)) as lines:
        return list(lines.read())


def problem(line: object, options: Options = Options(), folder: Path = Path(), **card: Any) -> str:  # noqa: B008
    """What is wrong with a line that holds this value; nothing if it is empty."""
    try:
        Checks([CARD | card], options).check(parse(1, json.dumps(line).encode(), folder))
    except InvalidInput as error:
        return str(error)
    return ""


def test_a_line_is_a_request_or_a_prompt_alone(tmp_path: Path) -> None:
    found = read(tmp_path, '{"prompt": "a ball", "seed": 3, "name": "ball"}', "", '"a star"', b"\xef\xbb\xbf{}", "  ")
    assert found == [
        (1, Line(1, "ball", {"prompt": "a ball", "seed": 3}, None)),
        (3, Line(3, "000003", {"prompt": "a star"}, None)),
        (4, Line(4, "000004", {}, None)),
    ]


def test_a_reference_is_a_file_beside_the_file_or_a_video_of_the_server(tmp_path: Path) -> None:
    stored = {"file_id": "video_1"}
    found = read(tmp_path, '{"input_reference": "pictures/a.png"}', json.dumps({"input_reference": stored}))
    assert found[0][1].reference == tmp_path / "pictures/a.png"
    assert found[1][1].fields == {"input_reference": stored}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{", "Expecting property name"),
        (b"[1]", 'expected a JSON object such as {"prompt": "..."}'),
        (b'{"prompt": "x", "prompt": "y"}', "because prompt is there twice"),
        (b'{"prompt": "\\ud800"}', "surrogates not allowed"),
        (b'{"prompt": "\xff"}', "invalid start byte"),
        (b'{"name": "../x"}', "name: got '../x', expected up to 100 letters, digits and ._-"),
        (b'{"name": 5}', "name: got 5"),
        (b'{"input_reference": {"image_url": "data:image/png;base64,AAAA"}}', "expected the path of a picture or clip"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_line_that_is_no_request_says_why(text: bytes, told: str, tmp_path: Path) -> None:
    ((number, error), after) = read(tmp_path, text, '{"prompt": "x"}')
    assert (number, type(error)) == (1, InvalidInput)
    assert told in str(error)
    assert after[0] == 2, "the lines after it are read"


def test_a_line_too_long_is_passed_over_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 100)
    found = read(tmp_path, '"' + "x" * 1000 + '"', '"' + "x" * 97 + '"', '"y"')
    assert [number for number, _ in found] == [1, 2, 3]
    assert "expected at most 100 bytes" in str(found[0][1])
    assert [line.fields["prompt"] for _, line in found[1:]] == ["x" * 97, "y"]


def test_a_file_that_is_not_there_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidBatch, match=r"none\.jsonl: No such file"):
        Lines(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({}, "prompt: got"),
        ({"prompt": "x", "num_frames": 10}, "expected 4k + 1 frames (nearest: 9 or 13)"),
        ({"prompt": "x", "frames": 9}, "frames: got 9"),
        ({"prompt": "x", "seconds": "4", "num_frames": 9}, "the fields contradict"),
        ({"prompt": "x", "model": "other"}, "model: got 'other', expected 'served' or no model"),
        ({"prompt": "x", "size": "4096x4096", "num_frames": 189}, "size: got"),
        ({"prompt": "x", "velocity_reuse": 2}, "this server's operator does not allow it"),
        ({"prompt": "x", "condition_frame_indexes_vision": [0]}, "expected a picture or clip as well"),
        ({"prompt": "x", "input_reference": "none.png"}, "no such file or directory"),
        ({"prompt": "x", "input_reference": "."}, "is a directory"),
    ],
)
def test_a_request_that_the_server_would_refuse_is_refused_before(line: dict[str, Any], told: str) -> None:
    assert told in problem(line)


def test_the_limits_are_those_on_the_servers_card(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    sound, pictured = {"prompt": "x", "generate_sound": True}, {"prompt": "x", "input_reference": "a.png"}
    asks = {"prompt": "x", "prompt_upsampling": "required"}
    assert problem(sound) == problem(pictured, folder=tmp_path) == problem({"prompt": "x", "model": "served"}) == ""
    assert problem(asks) == problem(asks | {"prompt_upsampling": False}, prompt_upsampling=False) == ""
    assert "no prompt upsampler" in problem(asks, prompt_upsampling=False)
    assert "no sound decoder" in problem(sound, sound=False)
    assert "no video encoder" in problem(pictured, folder=tmp_path, pictures=False)
    assert problem({"prompt": "x", "velocity_reuse": 2}, allowed_approximations=["velocity_reuse"]) == ""
    assert problem({"prompt": "x", "input_reference": {"file_id": "video_1"}}) == ""


def test_the_file_of_a_line_is_decoded_and_its_video_must_go_beyond_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "clip.mp4").write_bytes(clip())
    assert "input_reference: got" in problem({"prompt": "x", "input_reference": "a.txt"}, folder=tmp_path)
    line = {"prompt": "x", "input_reference": "clip.mp4", "num_frames": 5}
    assert "so there is nothing to generate" in problem(line, folder=tmp_path)
    assert problem(line | {"num_frames": 9}, folder=tmp_path) == ""


def test_seeds_and_repetitions_are_checked_with_the_line() -> None:
    assert "expected no seed in a line" in problem({"prompt": "x", "seed": 1}, Options(seeds=(1, 2)))
    assert problem({"prompt": "x", "seed": MAX_SEED - 1}, Options(repeat=2)) == ""
    assert f"seed: got {MAX_SEED + 1}" in problem({"prompt": "x", "seed": MAX_SEED}, Options(repeat=2))
    assert "seed: got '5', expected a number" in problem({"prompt": "x", "seed": "5"}, Options(repeat=2))


def planned(folder: Path, options: Options, *texts: str) -> list[Wanted]:
    """The videos of a file in the order in which they are made."""
    (folder / "prompts.jsonl").write_text("\n".join(texts))
    with closing(Lines(folder / "prompts.jsonl")) as lines:
        list(lines.read())
        plan = Plan(lines, options)
        return [plan.at(place) for place in plan.order()]


def test_a_line_becomes_as_many_videos_as_it_has_repetitions_or_seeds(tmp_path: Path) -> None:
    texts = ('{"prompt": "a", "name": "a"}', '{"prompt": "b", "seed": 7}')
    once, twice = planned(tmp_path, Options(), *texts), planned(tmp_path, Options(repeat=2), *texts)
    seeded = planned(tmp_path, Options(seeds=(5, 9)), texts[0])
    assert [video.name for video in once] == ["a", "000002"]
    assert [video.name for video in twice] == ["a-1", "a-2", "000002-1", "000002-2"]
    assert [video.fields.get("seed") for video in twice] == [None, None, 7, 8]
    assert len({video.key for video in twice}) == 4
    assert [(video.name, video.fields["seed"]) for video in seeded] == [("a-seed5", 5), ("a-seed9", 9)]


def test_a_shuffled_batch_has_the_same_videos(tmp_path: Path) -> None:
    texts = ('"a"', '"b"')
    shuffled = planned(tmp_path, Options(repeat=20, shuffle=True), *texts)
    ordered = planned(tmp_path, Options(repeat=20), *texts)
    assert sorted(shuffled) == sorted(ordered)
    assert shuffled != ordered


def test_a_key_follows_from_number_and_content_alone(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    for folder in ("here", "there"):
        (tmp_path / folder / "a.png").write_bytes(picture())

    def key(number: int = 1, folder: str = "here", **fields: Any) -> str:
        line = json.dumps({"prompt": "x", "input_reference": "a.png"} | fields).encode()
        return wanted(parse(number, line, tmp_path / folder), Options(), 0).key

    assert key() == key(folder="there") == key(name="other") == wanted_once_more(tmp_path)
    assert len({key(), key(2), key(seed=1), key(prompt="y")}) == 4
    (tmp_path / "there" / "a.png").write_bytes(picture(seed=1))
    assert key(folder="there") != key()


def wanted_once_more(folder: Path) -> str:
    """The key of the first of several repetitions of the line above, with its fields in another order."""
    line = parse(1, b'{"input_reference": "a.png", "prompt": "x"}', folder / "here")
    return wanted(line, Options(repeat=2), 0).key


def test_a_key_of_an_earlier_release_is_known_again() -> None:
    line = parse(3, b'{"prompt": "a ball", "seed": 1}', Path())
    assert wanted(line, Options(), 0).key == "de66f366ed6c0a657b49c742f37f1f96c4e42fa168a81ed677ab00dace52c211"
