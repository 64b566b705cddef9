"""One line that names key and value, hides secrets, and crosses process borders."""

import pickle

import pytest

from lightning_dropout.configuration.errors import ConfigError, assignment, closest, listed


def test_line_names_key_value_and_cure() -> None:
    error = ConfigError("Expected a rate;\n\tlower it.", key="model.p", value=1.5)
    assert str(error) == "model.p=1.5: Expected a rate; lower it."
    assert error.key == "model.p"
    assert isinstance(error, ValueError)


def test_key_without_value_and_neither() -> None:
    assert str(ConfigError("No such key.", key="model.q")) == "model.q: No such key."
    assert str(ConfigError("Nothing fits.")) == "Nothing fits."


@pytest.mark.parametrize("value", ["a\nb", "a\r\nb", ["x\n", "y"], {"k": "v\n"}])
def test_no_value_breaks_the_line(value: object) -> None:
    assert len(str(ConfigError("Wrong.", key="k", value=value)).splitlines()) == 1


def test_long_values_are_cut() -> None:
    assert len(assignment("model.p", "x" * 10_000)) < 200


def test_value_of_a_secret_is_hidden() -> None:
    assert "hunter2hunter2" not in str(ConfigError("Wrong.", key="logger.password", value="hunter2hunter2"))


def test_survives_pickling_with_its_key() -> None:
    error = ConfigError("Expected a rate; lower it.", key="model.p", value=1.5)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.key == "model.p"


def test_yaml_words() -> None:
    assert [assignment("k", value) for value in (None, True, False)] == ["k=null", "k=true", "k=false"]


def test_closest_prefers_the_likely_typo() -> None:
    assert closest("max_epoch", ["min_epochs", "max_epochs", "max_steps"]) == "max_epochs"
    assert closest("zzz", ["max_epochs"]) is None


def test_long_lists_are_cut() -> None:
    assert listed([f"n{i}" for i in range(100)], limit=3) == "n0, n1, n10, …"
    assert listed([]) == "nothing"
