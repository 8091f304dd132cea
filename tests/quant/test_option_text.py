"""What is said of options: what they take, and what is wrong, without the words of the library that checks them."""

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from edgedm.errors import UnsupportedError
from edgedm.quant.api import method_options
from edgedm.quant.methods import METHODS
from edgedm.quant.option_text import takes

FOREIGN = ("Input should", "Value error", "Extra inputs", "validation error", "parse")


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = Field(1, ge=1)
    share: float = Field(0.5, gt=0, le=1)
    limit: int | None = Field(None, ge=0)
    kind: Literal["one", "two", "three"] = "one"
    exact: bool = True
    only: Literal["this"] = "this"


def test_an_option_says_what_it_takes():
    assert {name: takes(info) for name, info in Example.model_fields.items()} == {
        "count": "a whole number, at least 1",
        "share": "a number, above 0, at most 1",
        "limit": "a whole number, at least 0, or null",
        "kind": "one, two or three",
        "exact": "true or false",
        "only": "this",
    }


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("bidm", {"gap": "many"}, "option 'gap' of bidm: expected a whole number, at least 1, got 'many'"),
        ("bidm", {"gap": 0}, "option 'gap' of bidm: expected a whole number, at least 1, got 0"),
        ("bidm", {"connections": "x"}, "expected a whole number, at least 0, or null, got 'x'"),
        ("bidm", {"filter": "box"}, "option 'filter' of bidm: expected learned, fixed or none, got 'box'"),
        ("bidm", {"tbs": "maybe"}, "option 'tbs' of bidm: expected true or false, got 'maybe'"),
        (
            "bidm",
            {"distil": 1},
            "option 'distil': bidm has none of this name; did you mean 'distill'? it has",
        ),
        ("xnor", {"colour": 1}, "option 'colour': xnor has none of this name; it has threshold,"),
        ("dilatequant", {"softmax_bits": 3}, "option 'softmax_bits' of dilatequant: expected 2, 4, 6 or 8, got 3"),
        (
            "binarydm",
            {"second_basis": "float", "bases": "lmb"},
            "of binarydm: second_basis='float' cannot ship",
        ),
        ("dorefa", {"colour": 1}, "option 'colour': dorefa has none of this name"),
        ("efficientdm", {"step_rate": float("inf")}, "expected a number, at least 0, got inf"),
    ],
)
def test_what_is_wrong_is_said_in_our_words(method, options, message):
    with pytest.raises(UnsupportedError) as caught:
        method_options(method, options)
    assert message in str(caught.value)
    assert not any(words in str(caught.value) for words in FOREIGN)


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_every_method_has_words(method):
    for name, info in METHODS[method].options.model_fields.items():
        assert "typing" not in takes(info) and "|" not in takes(info), name
