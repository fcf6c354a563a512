"""Fields that are derived from their declaration: a new one is a single edit."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.fields import CheckedModel, Number, Why, optional, unchecked, with_fields


class MoodyParams(GenerationParams):
    """The parameters of a release with two more fields."""

    mood: Annotated[Literal["calm", "wild"], Field(description="mood of the video"), Why("these are the moods")] = (
        "calm"
    )
    zoom: Annotated[int, Field(ge=1, le=8, description="magnification"), Number, Why("the lens has 8 settings")] = 1


@with_fields(optional(MoodyParams, without=("seed",)))
class Request(CheckedModel):
    own: Annotated[str | None, Why("it is text")] = None


@with_fields(unchecked(MoodyParams))
class Record(BaseModel):
    own: str


def test_a_new_field_reaches_what_derives_from_its_declaration() -> None:
    for model in (Request, Record):
        assert model.model_fields["zoom"].description == "magnification"
        assert list(model.model_fields)[:3] == ["own", "mood", "zoom"], "own fields first, then inherited ones"
    assert "seed" not in Request.model_fields
    assert Request(prompt="x").model_dump(exclude_none=True) == {"prompt": "x"}
    assert Request.reasons["zoom"] == "the lens has 8 settings"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"zoom": 9}, "zoom: got 9, expected less than or equal to 8, because the lens has 8 settings"),
        ({"zoom": True}, "zoom: got True, expected a number, because the lens has 8 settings"),
        ({"mood": "sad"}, "mood: got 'sad', expected 'calm' or 'wild', because these are the moods"),
        ({"num_frames": 10}, r"num_frames: got 10, expected 4k \+ 1 frames"),
    ],
)
def test_a_derived_field_has_the_rules_of_its_declaration(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Request(prompt="x", **fields)


def test_a_required_field_stays_required() -> None:
    with pytest.raises(InvalidInput, match="prompt: got None, expected a value"):
        Request()


def test_an_unchecked_field_has_its_type_alone() -> None:
    usual = MoodyParams(prompt="x").model_dump()
    assert Record(own="x", **(usual | {"zoom": 99, "mood": "sad"})).model_dump()["mood"] == "sad"
    with pytest.raises(ValidationError):
        Record(own="x", **(usual | {"zoom": "far"}))
