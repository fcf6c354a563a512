"""Every place that knows the fields of a request agrees with their one declaration, ``GenerationParams``."""

import json
import re
from collections.abc import Iterator
from typing import Any

import click
import pytest
from paths import ROOT
from pydantic.fields import FieldInfo

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.approximations import Approximation
from cosmos3_models.params import OF_A_REQUEST, GenerationDefaults
from serve.cli.generate import command as generate
from serve.cli.submit import command as submit
from serve.http.pages.routes import assembled
from serve.schema import ListQuery, Video, VideoRequest

OF_REQUESTS_ALONE = {"model", "size", "seconds", "metadata", "input_reference", "webhook_url"}
OF_SERVERS_ALONE = {"prompt_upsampling"}
NOT_ON_THE_PAGE = {"flow_shift", "sigma_schedule", "append_metadata", "previews", *Approximation.model_fields}

TYPES = {"string": "text", "boolean": "true, false", "object": "texts by name", "array": "numbers"}

DECLARED = GenerationParams.model_fields
PAGE = assembled("page.html")
NAMED = re.search(r"const FIELDS = \[(.*?)\]", PAGE)
ON_THE_PAGE = re.findall(r'"(\w+)"', NAMED[1] if NAMED else "")
INPUTS = {
    element["name"]: element
    for tag in re.findall(r"<(?:input|textarea|select) [^>]*>", PAGE)
    if "name" in (element := dict(re.findall(r'(\w+)="([^"]*)"', tag)))
}
NUMBERS = [name for name, element in INPUTS.items() if element.get("type") == "number"]


def test_requests_defaults_and_records_have_the_declared_fields() -> None:
    assert set(VideoRequest.model_fields) == set(DECLARED) | OF_REQUESTS_ALONE
    assert set(GenerationDefaults.model_fields) == set(DECLARED) - set(OF_A_REQUEST)
    assert set(Video.model_fields) > set(DECLARED)
    assert VideoRequest.model_fields["prompt"].is_required(), "alone"
    assert [name for name, field in VideoRequest.model_fields.items() if field.is_required()] == ["prompt"]


@pytest.mark.parametrize("model", [GenerationParams, GenerationDefaults, VideoRequest, Video])
def test_every_declared_field_is_described_where_it_appears(model: Any) -> None:
    described: dict[str, FieldInfo] = model.model_fields
    for name in set(DECLARED) & set(described):
        assert DECLARED[name].description, name
        assert described[name].description == DECLARED[name].description, name


def test_a_record_keeps_what_was_true_when_it_was_made() -> None:
    stored = {"sigma_schedule": "of another release", "fps": 240, "num_frames": 10, "negative_prompt": "x" * 40_000}
    for name, value in stored.items():
        Video.__pydantic_validator__.validate_assignment(Video.model_construct(), name, value)


@pytest.mark.parametrize("command", [generate, submit], ids=lambda command: str(command.name))
def test_a_command_line_has_the_declared_fields_as_options(command: Any) -> None:
    options = {option for one in command.params for option in one.opts}
    own = OF_SERVERS_ALONE if command is generate else set()
    expected = {f"--{name.replace('_', '-')}" for name in set(DECLARED) - own} - {"--prompt"}
    assert not {f"--{name.replace('_', '-')}" for name in own} & options
    assert not expected - options, "options are missing"
    assert {"prompt", "--size", "--seconds", "--sound", "--out"} <= options


def test_every_choice_of_the_command_line_is_one_of_the_field() -> None:
    (option,) = [one for one in submit.params if one.name == "prompt_upsampling"]
    assert isinstance(option.type, click.Choice)
    taken = [VideoRequest(prompt="x", prompt_upsampling=choice).prompt_upsampling for choice in option.type.choices]
    assert taken == [False, True, "required"]


def test_the_pages_form_has_the_declared_fields() -> None:
    assert set(ON_THE_PAGE) | NOT_ON_THE_PAGE == set(DECLARED), "add a field to the form, or to the list of those not"
    assert not set(ON_THE_PAGE) & NOT_ON_THE_PAGE
    assert set(INPUTS) == set(ON_THE_PAGE)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_the_pages_form_has_the_limits_of_its_field(name: str) -> None:
    low, high = float(INPUTS[name]["min"]), float(INPUTS[name]["max"])
    step = INPUTS[name].get("step", "1")
    for value in (low, high):
        assert getattr(GenerationParams(**{"prompt": "x", name: value}), name) == value
    near = 1.0 if step == "any" else float(step)
    for value in (low - near, high + near, *([low + 1] if near > 1 else [])):
        with pytest.raises(InvalidInput):
            GenerationParams(**{"prompt": "x", name: value})
    assert (step == "any") == (DECLARED[name].annotation is float)


def rows() -> Iterator[str]:
    """How the documentation's row of each field begins."""
    properties = VideoRequest.model_json_schema()["properties"]
    for name, property_ in properties.items():
        schema = property_.get("anyOf", [property_])[0]
        values = "a picture or clip" if name == "input_reference" else ""
        if "enum" in schema:
            values = ", ".join(f"`{json.dumps(choice)}`".replace('"', "") for choice in schema["enum"])
        elif not values:
            values = TYPES.get(schema["type"], "")
        if "maximum" in schema:
            values = f"{schema['minimum']} to {schema['maximum']}"
        yield f"| `{name}` | {values} | {property_['description']}"


def test_the_documentation_has_a_row_for_every_field() -> None:
    lines = (ROOT / "docs" / "api.md").read_text().splitlines()
    missing = [row for row in rows() if not any(line.startswith(row) for line in lines)]
    assert not missing, "\n".join(["docs/api.md needs rows that begin so:", *missing])
    documented = {name for line in lines for name in re.findall(r"^\| `(\w+)` \| [^|]+ \| ", line)}
    assert documented == set(VideoRequest.model_fields)


def test_the_documentation_names_every_parameter_of_lists() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in ListQuery.model_fields if f"`{name}" not in text] == []
