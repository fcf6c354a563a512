"""Fields of a request: declared once on a checked model, and derived from there wherever they appear again."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cosmos3_models.errors import InvalidInput

Model = TypeVar("Model", bound=BaseModel)
Definitions = dict[str, Any]
"""Fields as pydantic's ``create_model`` takes them."""


@dataclass(frozen=True)
class Why:
    """The reason for a field's rule, for the error text; part of the field's ``Annotated`` type."""

    reason: str


def _plain_number(value: object) -> object:
    """Refuse values that pydantic accepts as a number and nobody means as one: true, "1_000", " 5 ", "nan"."""
    if isinstance(value, bool) or (isinstance(value, str) and not NUMBER_TEXT.fullmatch(value)):
        raise ValueError("a number")
    return value


NUMBER_TEXT = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
Number = BeforeValidator(_plain_number)


class CheckedModel(BaseModel):
    """A frozen model without unknown fields whose constructor raises ``InvalidInput``.

    Attributes:
        reasons: the reason for each field's rule. A class with a field that has no ``Why`` is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    reasons: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        found = [(name, one) for name, field in cls.model_fields.items() for one in field.metadata]
        cls.reasons = {name: one.reason for name, one in found if isinstance(one, Why)}
        if missing := set(cls.model_fields) - set(cls.reasons):
            raise TypeError(f"{cls.__name__}.reasons: got none for {sorted(missing)}, expected one for each field")

    def __init__(self, /, **fields: Any) -> None:  # the slash, so that a client's field may be called self
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _invalid_input(error.errors()[0], type(self)) from None


def with_fields(fields: Definitions) -> Callable[[type[Model]], type[Model]]:
    """Decorate a model with further fields, which follow its own."""

    def add(model: type[Model]) -> type[Model]:
        name, module = model.__name__, model.__module__
        return create_model(name, __base__=model, __module__=module, __doc__=model.__doc__, **fields)

    return add


def optional(model: type[BaseModel], without: Collection[str] = ()) -> Definitions:
    """The fields of ``model`` under the same rules, each of which may be absent (None); a required one stays so."""
    return {name: _optional(field) for name, field in _own_first(model).items() if name not in without}


def unchecked(model: type[BaseModel]) -> Definitions:
    """The fields of ``model`` by type alone, without its rules and choices: for values of other releases."""
    types = get_type_hints(model)  # without Annotated
    return {
        name: (str if get_origin(types[name]) is Literal else types[name], Field(description=field.description))
        for name, field in _own_first(model).items()
    }


def _optional(field: FieldInfo) -> Any:
    about = [Field(description=field.description), *(one for one in field.metadata if isinstance(one, Why))]
    rules = [one for one in field.metadata if not isinstance(one, Why)]
    kind: Any = Annotated[field.annotation, *rules] if rules else field.annotation
    return Annotated[kind, *about] if field.is_required() else (Annotated[kind | None, *about], None)


def _own_first(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of ``model``; those that it inherits come last."""
    own = model.__annotations__
    return dict(sorted(model.model_fields.items(), key=lambda named: named[0] not in own))


# The start of pydantic's messages, and the start of a noun phrase in its place.
STARTS = (
    ("Input should be ", ""),
    ("Value error, ", ""),
    ("String should match pattern ", "text to match pattern "),
    ("String should have ", "text of "),
    ("Dictionary should have ", ""),
)


def expected_by_pydantic(message: str) -> str:
    """The noun form of pydantic's message: what it would have accepted."""
    for start, noun in STARTS:
        if message.startswith(start):
            return noun + message.removeprefix(start)
    return message


def _invalid_input(error: ErrorDetails, model: type[CheckedModel]) -> InvalidInput:
    """The first problem that pydantic found, in our one form."""
    original = error.get("ctx", {}).get("error")
    param = str(error["loc"][0]) if error["loc"] else "request"
    if isinstance(original, InvalidInput):
        named = param if original.param == "size" else original.param
        return InvalidInput(named, original.got, original.expected, original.why)
    if error["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields)
        return InvalidInput(param, error["input"], f"one of the fields {known}", "this field is unknown")
    why = model.reasons[param]
    if error["type"] == "missing":
        return InvalidInput(param, None, "a value", why)
    return InvalidInput(param, error["input"], expected_by_pydantic(error["msg"]), why)
