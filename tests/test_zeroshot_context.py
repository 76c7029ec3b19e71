import pytest

from zeroshot.context import read_context, scopes


def state(text: str) -> str:
    """The state of the words in braces."""
    start = text.index("{")
    end = text.index("}") - 1
    return read_context(text.replace("{", "").replace("}", ""), start, end).state


@pytest.mark.parametrize(
    "text",
    [
        "No {effusion}.",
        "There is no evidence of {effusion}.",
        "No pneumothorax, consolidation, or {effusion}.",
        "Neither pneumothorax nor {effusion} is seen.",
        "Negative for {effusion}.",
        "The chest is free of {effusion}.",
        "Cardiomegaly without {effusion}",
        "{Effusion} is not seen.",
        "{Effusion} has resolved.",
        "{Effusion}: none",
        "{Effusion} (none)",
        "{Effusion}: no",
        "{Effusion} is unlikely.",
        "Interval removal of {chest tube}.",
        "No opacity to suggest {pneumonia}.",
        "No findings suspicious for {pneumonia}.",
        "There is nothing to suggest {pneumonia}.",
        "The lungs do not demonstrate {infiltrate}.",
    ],
)
def test_denied(text: str) -> None:
    assert state(text) == "absent"


@pytest.mark.parametrize(
    "text",
    [
        "Small {effusion}.",
        "No pneumothorax, but there is an {effusion}.",
        "No pneumothorax; {effusion}.",
        "No pneumothorax, the {heart} is enlarged.",
        "No pneumothorax and the {heart} is enlarged.",
        "Without pneumothorax, {cardiomegaly} persists.",
        "No change in {cardiomegaly}.",
        "No significant interval change in the {effusion}.",
        "Not only {effusion} but also edema.",
        "{Cardiomegaly} without effusion.",
        "{Effusion}, no pneumothorax.",
        "Findings consistent with {pneumonia}.",
        "Probable {pneumonia}.",
        "Removal of the chest tube with a tiny {pneumothorax}.",
    ],
)
def test_affirmed(text: str) -> None:
    assert state(text) == "present"


@pytest.mark.parametrize(
    "text",
    [
        "Possible {pneumonia}.",
        "This may represent {atelectasis}.",
        "Opacity may be due to {atelectasis}.",
        "Cannot exclude {pneumonia}.",
        "{Pneumonia} cannot be excluded.",
        "{Atelectasis} versus scarring.",
        "Effusion vs. {atelectasis}.",
        "Suspicious for {pneumonia}.",
        "Opacity suggestive of {pneumonia}.",
        "{Pneumonia} is possible.",
        "No effusion, {pneumonia} cannot be excluded.",
    ],
)
def test_doubted(text: str) -> None:
    assert state(text) == "uncertain"


def test_versus_doubts_its_neighbours_only() -> None:
    assert state("Streaky {opacities} at the left lung base, atelectasis versus scarring.") == "present"


def test_the_past() -> None:
    text = "History of pneumonia with effusion."
    assert read_context(text, 11, 20).historical
    assert not read_context(text, 26, 34).historical


def test_narrowed_denials() -> None:
    assert read_context("No large effusion.", 9, 17).qualified
    assert not read_context("No effusion.", 3, 11).qualified


def test_scopes_end_at_terminators() -> None:
    text = "No effusion but edema."
    (scope,) = [one for one in scopes(text) if one.trigger == "no"]
    assert (scope.kind, text[scope.start : scope.end]) == ("deny", "No effusion ")
