"""What counts in a step's contract, and that every process computes the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, Field, PlainSerializer, WithJsonSchema

from flowpilot.authoring import StepContext, Workflow, output_of
from flowpilot.authoring.contract import structure_hash

Declare = Callable[[Workflow], object]


class Order(BaseModel):
    sku: str
    quantity: int = 1


class Quote(BaseModel):
    cents: int


def contract(declare: Declare, step: str = "s", **options: Any) -> str:
    """The contract of step `s` that `declare` adds below the step `p`, which returns a Quote."""
    workflow = Workflow("w", version="1", **options)

    def p() -> Quote: ...

    workflow.add_step(p, name="p")
    declare(workflow)
    found = workflow.definition.steps[workflow.definition.index[step]].contract
    assert found is not None
    return found


def base(workflow: Workflow) -> None:
    @workflow.step
    def s(input: Order, p: Quote, note: str = "") -> Quote: ...


def same_but_for_docs_and_options(workflow: Workflow) -> None:
    class Order(BaseModel):
        """Another class, of the same fields in another order."""

        quantity: Annotated[int, Field(title="How many", description="so many", examples=[3])] = 7
        sku: str

    @workflow.step(queue="other", timeout="3s", heartbeat="9s", output=True)
    async def s(ctx: StepContext, p: Quote, input: Order) -> Quote:
        """With a docstring."""
        raise AssertionError


def without_input(workflow: Workflow) -> None:
    @workflow.step
    def s(p: Quote) -> Quote: ...


def with_a_narrower_input(workflow: Workflow) -> None:
    class Order(BaseModel):
        sku: str = Field(min_length=3)
        quantity: int = 1

    @workflow.step
    def s(input: Order, p: Quote) -> Quote: ...


def with_an_optional_field_that_is_required(workflow: Workflow) -> None:
    class Order(BaseModel):
        sku: str
        quantity: int

    @workflow.step
    def s(input: Order, p: Quote) -> Quote: ...


def with_any_input(workflow: Workflow) -> None:
    @workflow.step
    def s(input: Any, p: Quote) -> Quote: ...


def with_another_result(workflow: Workflow) -> None:
    @workflow.step
    def s(input: Order, p: Quote) -> Order: ...


def without_annotated_result(workflow: Workflow) -> None:
    @workflow.step
    def s(input: Order, p: Quote): ...  # type: ignore[no-untyped-def]


def with_a_parent_under_another_name(workflow: Workflow) -> None:
    @workflow.step
    def s(input: Order, quote: Annotated[Quote, output_of("p")]) -> Quote: ...


def with_an_optional_parent(workflow: Workflow) -> None:
    @workflow.step
    def s(input: Order, p: Quote | None = None) -> Quote: ...


def with_all_parents(workflow: Workflow) -> None:
    @workflow.step(depends_on=["p"])
    def s(input: Order, parents: Mapping[str, Quote]) -> Quote: ...


def with_another_parent(workflow: Workflow) -> None:
    @workflow.step
    def q(input: Order) -> Quote: ...

    @workflow.step
    def s(input: Order, q: Quote) -> Quote: ...


def with_args(value: int) -> Declare:
    def declare(workflow: Workflow) -> None:
        def s(input: Order, p: Quote, page: int) -> Quote: ...

        workflow.add_step(s, args={"page": value})

    return declare


OTHERS = [
    without_input,
    with_a_narrower_input,
    with_an_optional_field_that_is_required,
    with_any_input,
    with_another_result,
    without_annotated_result,
    with_a_parent_under_another_name,
    with_an_optional_parent,
    with_all_parents,
    with_another_parent,
    with_args(1),
    with_args(2),
]


def test_each_change_of_what_is_taken_or_given_counts() -> None:
    found = {contract(declare) for declare in (base, *OTHERS)}
    assert len(found) == 1 + len(OTHERS)


def test_words_names_of_types_and_options_do_not_count() -> None:
    assert contract(base) == contract(same_but_for_docs_and_options)


def test_unbound_optional_parameter_does_not_count() -> None:
    """Nothing provides it, so its default is the handler's own business."""

    def declare(workflow: Workflow) -> None:
        @workflow.step
        def s(input: Order, p: Quote) -> Quote: ...

    assert contract(base) == contract(declare)


def test_other_steps_and_the_workflow_do_not_count() -> None:
    def declare(workflow: Workflow) -> None:
        base(workflow)

        @workflow.step
        def after(s: Quote) -> str: ...

    assert contract(base) == contract(declare, description="another", timeout="1h", queue="elsewhere")


def returning(annotation: Any) -> str:
    def declare(workflow: Workflow) -> None:
        def s() -> None: ...

        s.__annotations__["return"] = annotation
        workflow.add_step(s)

    return contract(declare)


def taking(annotation: Any) -> str:
    def declare(workflow: Workflow) -> None:
        def s(input) -> None: ...  # type: ignore[no-untyped-def]

        s.__annotations__["input"] = annotation
        workflow.add_step(s)

    workflow = Workflow("w", version="1")
    declare(workflow)
    found = workflow.definition.steps[0].contract
    assert found is not None
    return found


def test_order_of_unions_and_enumerations_does_not_count() -> None:
    assert taking(int | str) == taking(str | int)
    assert taking(list[Literal["a", "b"]]) == taking(list[Literal["b", "a"]])
    assert taking(Literal["a", "b"]) != taking(Literal["a", "c"])
    assert taking(int | str) != taking(int | bool)


def test_recursive_types_count_by_structure() -> None:
    def tree(leaf: type, name: str) -> Any:
        made = type(name, (BaseModel,), {"__annotations__": {"children": f"list['{name}']", "leaf": leaf}})
        made.model_rebuild(_types_namespace={name: made})
        return made

    assert taking(tree(int, "Node")) == taking(tree(int, "Tree"))
    assert taking(tree(int, "Node")) != taking(tree(str, "Node"))


def test_other_aliases_count_though_the_schema_shows_one() -> None:
    def model(*names: str) -> Any:
        annotations = {"sku": Annotated[str, Field(validation_alias=AliasChoices(*names))]}
        return type("Aliased", (BaseModel,), {"__annotations__": annotations})

    assert taking(model("a", "b")) == taking(model("a", "b"))
    assert taking(model("a", "b")) != taking(model("a", "c"))


def test_what_a_type_takes_and_gives_may_differ() -> None:
    text = Annotated[int, PlainSerializer(str, return_type=str)]
    assert taking(text) == taking(int)
    assert returning(text) == returning(str)
    assert returning(text) != returning(int)


def test_types_without_a_schema_count_by_their_kind() -> None:
    class Odd:
        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            from pydantic_core import core_schema

            return core_schema.no_info_plain_validator_function(lambda value: value)

    assert returning(Odd) == returning(Odd)
    assert taking(Odd) == taking(Odd)
    assert taking(Odd) != taking(int)


def test_property_may_be_called_title_or_default() -> None:
    def model(*names: str) -> Any:
        return type("Named", (BaseModel,), {"__annotations__": dict.fromkeys(names, str)})

    assert taking(model("title", "default")) != taking(model("title", "description"))
    assert taking(model("title")) != taking(model("examples"))


def test_odd_extras_of_a_schema_do_not_break_it() -> None:
    odd = Annotated[Any, WithJsonSchema({"enum": [2**70, {1, 2}, object()], "x-odd": {"a": {3, 1}}})]
    assert taking(odd) == taking(odd)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    tags: frozenset[str] = frozenset({"one", "two", "three", "four"})


_PROGRAM = """
from tests.unit.test_contract import Colour, Order, Point, base, contract, taking, with_args
print(contract(base), contract(with_args(3)), taking(Point | Colour | list[Order]))
"""


def test_every_process_computes_the_same() -> None:
    expected = [contract(base), contract(with_args(3)), taking(Point | Colour | list[Order])]
    for seed in ("1", "2", "3"):
        command = [sys.executable, "-c", _PROGRAM]
        ran = subprocess.run(
            command, env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
        )
        assert ran.stdout.split() == expected, ran.stderr


def test_a_contract_changes_only_with_the_rule() -> None:
    """Or with pydantic's schemas; then every workflow needs another version."""
    assert taking(int) == "sha256:fbfa9528f06e4f244dcf175b95c54e7b5162190fb3a11cc217c8555c1a8a89bf"


NAMES = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=5, max_size=5, unique=True)


@given(names=NAMES, order=st.permutations(range(5)), edges=st.lists(st.integers(0, 4), min_size=5, max_size=5))
def test_structure_is_not_about_names(names: list[str], order: list[int], edges: list[int]) -> None:
    def schema(called: list[str], placed: list[int]) -> dict[str, Any]:
        definitions = {
            called[n]: {"type": "object", "properties": {"to": {"$ref": f"#/$defs/{called[edges[n]]}"}, "n": {}}}
            for n in placed
        }
        definitions[called[0]]["required"] = ["to", "n"] if placed[0] else ["n", "to"]
        return {"$ref": f"#/$defs/{called[1]}", "$defs": definitions}

    plain = schema([f"N{n}" for n in range(5)], list(range(5)))
    assert structure_hash(schema(names, order)) == structure_hash(plain)


@pytest.mark.parametrize("steps", [300])
def test_wide_workflow_is_defined_fast_enough(steps: int) -> None:
    workflow = Workflow("w", version="1", input=Order)
    for n in range(steps):

        def s(input: Order, page: int) -> Quote: ...

        workflow.add_step(s, name=f"s{n}", args={"page": n})
    contracts = {step.contract for step in workflow.definition.steps}
    assert len(contracts) == steps
