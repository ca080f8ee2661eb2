"""Workflows as users write them: what is declared is what is defined, and plain calls stay plain."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

import flowpilot
from flowpilot import DefinitionError, InputInvalid, Retry, StepContext, Workflow, on_topic, output_of


class NewPatient(BaseModel):
    patient_id: str
    email: str = ""


class Patient(BaseModel):
    id: str


class OtpSent(BaseModel):
    at: str


def onboarding() -> Workflow:
    workflow = Workflow(
        "patient-onboarding",
        version="1",
        input=NewPatient,
        triggers=[on_topic("patients.registered", unique_by="patient_id")],
    )

    @workflow.step
    def create_patient(input: NewPatient) -> Patient:
        return Patient(id=input.patient_id)

    @workflow.step(
        queue="notify",
        retry=Retry(max_attempts=5, initial="1s", backoff=2.0, max_interval="1m", non_retryable=(KeyError, "Gone")),
        timeout="30s",
    )
    async def send_otp(create_patient: Patient) -> OtpSent:
        return OtpSent(at="now")

    @workflow.step(queue="notify", depends_on=[create_patient])
    async def send_email(input: NewPatient, ctx: StepContext) -> None: ...

    @workflow.step(output=True)
    def activate(
        patient: Annotated[Patient, output_of(create_patient)], send_otp: OtpSent, send_email: None = None
    ) -> str:
        return patient.id

    assert create_patient(NewPatient(patient_id="p")) == Patient(id="p")  # a plain function
    return workflow


def test_the_definition_says_what_was_declared() -> None:
    definition = onboarding().definition
    assert (definition.name, definition.version) == ("patient-onboarding", "1")
    assert definition.triggers[0].unique_by == "patient_id"
    assert definition.input_schema is not None
    assert definition.input_schema["required"] == ["patient_id"]
    create, otp, email, activate = definition.steps
    assert (create.queue, create.takes_input, create.depends_on) == ("patient-onboarding", True, ())
    assert (otp.queue, otp.takes, otp.start_to_close_ms, otp.retry.max_attempts) == (
        "notify",
        ("create_patient",),
        30_000,
        5,
    )
    assert otp.retry.non_retryable == ("KeyError", "Gone")
    assert (email.depends_on, email.takes, email.takes_input) == (("create_patient",), (), True)
    assert activate.depends_on == ("create_patient", "send_otp", "send_email")
    assert activate.output
    assert create.retry.max_attempts == 3


def test_the_same_source_has_the_same_hash_and_another_option_another() -> None:
    assert onboarding().definition.hash == onboarding().definition.hash
    changed = onboarding()
    changed.add_step(lambda: 1, name="more")
    assert changed.definition.hash != onboarding().definition.hash


def test_steps_may_be_declared_before_their_parents() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step(depends_on=["first"])
    def last(middle: int) -> int:
        return middle

    @workflow.step
    def middle(first: int) -> int:
        return first

    @workflow.step
    def first() -> int:
        return 1

    assert [step.name for step in workflow.definition.steps] == ["first", "middle", "last"]
    assert workflow.definition.steps[2].depends_on == ("first", "middle")


def test_the_declared_order_is_kept_where_it_is_a_topological_one() -> None:
    workflow = Workflow("w", version="1")
    for name in ("c", "a", "b"):
        workflow.add_step(lambda: None, name=name)
    assert [step.name for step in workflow.definition.steps] == ["c", "a", "b"]


def test_add_step_in_a_loop_with_args_and_all_parents() -> None:
    workflow = Workflow("w", version="1")

    def part(i: int, delta: timedelta = timedelta(0)) -> int:
        return i

    parts = [
        workflow.add_step(part, name=f"part-{i}", args={"i": i, "delta": timedelta(seconds=1)}) for i in range(300)
    ]

    @workflow.step(depends_on=parts)
    def total(parents: Mapping[str, int]) -> int:
        return sum(parents.values())

    definition = workflow.definition
    assert definition.steps[7].args == {"i": 7, "delta": "PT1S"}
    assert definition.steps[-1].takes == tuple(f"part-{i}" for i in range(300))


def test_a_wide_workflow_is_declared_in_linear_time() -> None:
    workflow = Workflow("wide", version="1")
    names = [workflow.add_step(lambda: 1, name=f"s{i}") for i in range(3_000)]
    workflow.add_step(lambda: None, name="end", depends_on=names)
    assert len(workflow.definition.steps) == 3_001


def test_methods_partials_and_callable_objects_are_handlers() -> None:
    class Service:
        def bound(self, input: NewPatient) -> Patient:
            return Patient(id=input.patient_id)

        async def __call__(self, create: Patient) -> None: ...

    workflow = Workflow("w", version="1", input=NewPatient)
    workflow.add_step(functools.partial(Service().bound), name="create")
    workflow.add_step(Service(), name="call")
    assert workflow.definition.steps[1].takes == ("create",)
    assert workflow.steps["call"].signature.is_async


def test_input_json_validates_and_says_what_does_not_fit() -> None:
    workflow = onboarding()
    assert workflow.input_json(NewPatient(patient_id="p")) == {"patient_id": "p", "email": ""}
    assert workflow.input_json({"patient_id": "p"}) == {"patient_id": "p", "email": ""}
    with pytest.raises(InputInvalid, match=r"'patient-onboarding'.*patient_id: Field required"):
        workflow.input_json({})
    with pytest.raises(InputInvalid, match="must be JSON"):
        Workflow("w", version="1").input_json(float("nan"))


WRONG: list[tuple[str, Any, str]] = []


def wrong(pattern: str, workflow: str = "w") -> Any:
    """Register a workflow that must be refused with a sentence that matches."""

    def keep(declare: Any) -> Any:
        WRONG.append((declare.__name__, declare, pattern))
        return declare

    return keep


@wrong(r"workflow 'bad name': 'bad name' is not a legal workflow name; use")
def illegal_workflow_name() -> None:
    Workflow("bad name", version="1")


@wrong(r"workflow 'w', step '<lambda>': '<lambda>' is not a legal step name; use a letter.*name=")
def illegal_step_name() -> None:
    Workflow("w", version="1").step(lambda: None)


@wrong(r"workflow 'w', step 'input': the name 'input' is reserved .*; choose another")
def reserved_step_name() -> None:
    Workflow("w", version="1").add_step(lambda: None, name="input")


@wrong(r"workflow 'w', step 'a': there is a step of that name already; rename one")
def duplicate_step() -> None:
    workflow = Workflow("w", version="1")
    workflow.add_step(lambda: None, name="a")
    workflow.add_step(lambda: None, name="a")


@wrong(r"workflow 'w', step 'a': 'no queue' is not a legal queue name")
def illegal_queue() -> None:
    Workflow("w", version="1").add_step(lambda: None, name="a", queue="no queue")


@wrong(r"workflow 'w', step 'first': it depends on itself: first → last → first; remove one")
def cycle() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step
    def last(first: int) -> int:
        return 1

    @workflow.step  # told here, not at first use
    def first(last: int) -> int:
        return 1


@wrong(r"step 'a': it depends on itself: a → a")
def cycle_of_one() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step
    def a(a: int) -> int:
        return a


@wrong(r"step 'b': it depends on 'creat', which is not a step \(did you mean 'create'\?\); declare it")
def unknown_step() -> None:
    workflow = Workflow("w", version="1")
    workflow.add_step(lambda: None, name="create")
    workflow.add_step(lambda: None, name="b", depends_on=["creat"])
    _ = workflow.definition


@wrong(r"step 'a': other is not a step of this workflow; declare it above, or give the step's name")
def unknown_function() -> None:
    def other() -> None: ...

    Workflow("w", version="1").add_step(lambda: None, name="a", depends_on=[other])


@wrong(
    r"step 'a': nothing provides the parameter 'patient'; name it after a step, take .* 'input', .* default .* args"
)
def parameter_nothing_provides() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step
    def a(patient: Patient) -> None: ...

    _ = workflow.definition


@wrong(
    r"step 'b': the parameter 'create' is annotated OtpSent, but step 'create' returns Patient; annotate it Patient"
)
def type_that_does_not_fit() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step
    def create() -> Patient:
        return Patient(id="1")

    @workflow.step
    def b(create: OtpSent) -> None: ...


@wrong(r"step 'b': the parameter 'create' is annotated OtpSent, but step 'create' returns Patient")
def type_that_does_not_fit_a_later_parent() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step
    def b(create: OtpSent) -> None: ...

    @workflow.step
    def create() -> Patient:
        return Patient(id="1")


@wrong(r"step 'b': the parameter 'parents' is annotated int, but step 'create' returns Patient")
def parents_of_another_type() -> None:
    workflow = Workflow("w", version="1")
    create = workflow.add_step(make_patient, name="create")

    @workflow.step(depends_on=[create])
    def b(parents: Mapping[str, int]) -> None: ...


@wrong(r"step 'b': the parameter 'parents' takes all parents' outputs; annotate it Mapping")
def parents_that_are_no_mapping() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step
    def b(parents: list[int]) -> None: ...


@wrong(r"step 'a': the parameter 'input' is annotated Patient, but the workflow's input is NewPatient; annotate it")
def input_of_another_type() -> None:
    workflow = Workflow("w", version="1", input=NewPatient)

    @workflow.step
    def a(input: Patient) -> None: ...


@wrong(r"step 'a': the annotation 'Nowhere' is not known here; define or import it above the step")
def annotation_nobody_knows() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step
    def a(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@wrong(r"step 'a': the parameter 'input' has a type that does not travel as JSON .*; use a pydantic model")
def type_that_does_not_travel() -> None:
    workflow = Workflow("w", version="1")

    class Socket: ...

    @workflow.step
    def a(input: Socket) -> None: ...


@wrong(r"step 'a': args gives 'j', which is not a parameter of the handler; correct it")
def unknown_argument() -> None:
    Workflow("w", version="1").add_step(lambda i: i, name="a", args={"j": 1})


@wrong(r"step 'a': args gives 'i' a value that does not fit: .*integer")
def argument_that_does_not_fit() -> None:
    def handler(i: int) -> None: ...

    Workflow("w", version="1").add_step(handler, name="a", args={"i": "x"})


@wrong(r"step 'a': timeout: 'soon' is not a duration: write \"500ms\", \"30s\"")
def no_duration() -> None:
    Workflow("w", version="1").add_step(lambda: None, name="a", timeout="soon")


@wrong(r"step 'a': schedule_to_start: Input should be less than")
def duration_out_of_range() -> None:
    Workflow("w", version="1").add_step(lambda: None, name="a", schedule_to_start="7d")


@wrong(r"workflow 'w': dedupe_window: Input should be less than")
def window_out_of_range() -> None:
    Workflow("w", version="1", dedupe_window="8d")


@wrong(r"step 'b': step 'a' is the output already; mark one")
def two_outputs() -> None:
    workflow = Workflow("w", version="1")
    workflow.add_step(lambda: None, name="a", output=True)
    workflow.add_step(lambda: None, name="b", output=True)


@wrong(r"workflow 'w': it has no steps; declare one with @w.step")
def no_steps() -> None:
    _ = Workflow("w", version="1").definition


@wrong(r"step 'a': the handler is a generator; return one value")
def generator() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step
    def a() -> Any:
        yield 1


@wrong(r"step 'b': step 'a' belongs to another workflow")
def step_of_another_workflow() -> None:
    other = Workflow("other", version="1").add_step(lambda: None, name="a")
    Workflow("w", version="1").add_step(lambda: None, name="b", depends_on=[other])


def make_patient() -> Patient:
    return Patient(id="1")


@pytest.mark.parametrize(("declare", "pattern"), [pytest.param(d, p, id=n) for n, d, p in WRONG])
def test_what_is_wrong_is_told_in_one_sentence(declare: Any, pattern: str) -> None:
    with pytest.raises(DefinitionError, match=pattern) as caught:
        declare()
    assert "\n" not in str(caught.value)


def test_a_refused_step_leaves_the_workflow_as_it_was() -> None:
    workflow = onboarding()
    before = workflow.definition.hash
    with pytest.raises(DefinitionError):
        workflow.add_step(make_patient, name="bad", timeout="x")
    with pytest.raises(DefinitionError):
        workflow.add_step(lambda create_patient: None, name="create_patient")
    assert workflow.definition.hash == before


def test_every_name_of_the_package_is_there_and_no_other() -> None:
    assert {name for name in flowpilot.__all__ if getattr(flowpilot, name, None) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'Agent'"):
        _ = flowpilot.Agent


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("data.amount >", "line 1, column"),
        ("amount > 100", "no variable 'amount'"),
        ("frob(data.amount)", "no function frob"),
        ("data.items.map(i, i) == []", "map"),
        ("data.a.exists(x, x) && data.b.exists(x, x)", "more than one"),
        ('data.name.matches("[")', "regular expression"),
        ("(" * 200 + "true" + ")" * 200, "nested too deeply"),
    ],
)
def test_a_where_is_checked_where_the_workflow_is_declared(where: str, problem: str) -> None:
    with pytest.raises(DefinitionError, match="workflow 'billing'") as raised:
        Workflow("billing", version="1", triggers=[on_topic("payments", where=where)])
    assert "topic 'payments'" in str(raised.value)
    assert problem in str(raised.value)


def test_a_trigger_says_what_was_declared() -> None:
    trigger = on_topic("payments", where="data.amount > 100", start=datetime(2026, 1, 31, 1, tzinfo=UTC))
    workflow = Workflow("billing", version="1", triggers=[trigger])
    workflow.add_step(lambda: None, name="only")
    [defined] = workflow.definition.triggers
    assert (defined.where, defined.start) == ("data.amount > 100", "2026-01-31T01:00:00.000Z")
