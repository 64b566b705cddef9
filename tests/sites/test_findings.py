"""Findings: the table and its folding, JSON, and what the check says."""

import json
import re
from dataclasses import FrozenInstanceError
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from lightning_dropout.sites.findings import Audit, Row


def firing(name: str, rate: float = 0.1, kind: str = "dropout", **options: Any) -> Row:
    return Row("firing", name, kind, rate, **{"users": 1, "operation": "dropout", "count": 1, **options})


def silent(name: str, rate: float = 0.0, reason: str = "rate 0") -> Row:
    return Row("silent", name, "dropout", rate, 1, reason=reason, cure="set a rate above 0")


def unregistered(name: str, line: int = 7) -> Row:
    cure = '`register_adapter(Head, "p")`'
    return Row("unregistered", name, "dropout", 0.3, 0, "dropout", 1, f"net.py:{line}", "no site knows", cure)


def unknown(name: str) -> Row:
    return Row("unknown", name, None, None, 0, "rand", 2, "net.py:9", "draws at random", "register it")


VIT = Audit(
    "ViT",
    (
        firing("pos_drop"),
        *(
            row
            for block in range(12)
            for row in (
                firing(f"blocks.{block}.attn.attn_drop", kind="attention", operation="scaled_dot_product_attention"),
                firing(f"blocks.{block}.mlp.drop1"),
                firing(f"blocks.{block}.mlp.drop2"),
                *([firing(f"blocks.{block}.drop_path", block / 110, "drop_path")] if block else []),
            )
        ),
        silent("head_drop"),
    ),
    ("blocks.0.drop_path1", "blocks.0.drop_path2", "patch_drop"),
)


def lines(report: Audit) -> list[str]:
    return str(report).splitlines()


# The table.


def test_a_table_of_blocks_is_short() -> None:
    assert str(VIT) == "\n".join(
        [
            "ViT: 48 firing, 1 silent, 0 unregistered, 0 unknown",
            "  state   place                             kind             rate  calls  by / why",
            "  firing  pos_drop                          dropout           0.1      1  dropout",
            "  firing  blocks.{0-11}.attn.attn_drop ×12  attention         0.1     12  scaled_dot_product_attention",
            "  firing  blocks.{0-11}.mlp.drop{1-2} ×24   dropout           0.1     24  dropout",
            "  firing  blocks.{1-11}.drop_path ×11       drop_path  0.0091–0.1     11  dropout",
            "  silent  head_drop                         dropout             0         rate 0",
            "Built without dropout (rate 0): blocks.0.drop_path{1-2} ×2, patch_drop",
        ]
    )


def test_problems_stand_last_and_say_what_to_do() -> None:
    report = Audit(
        "Net", (unregistered("head"), unknown(""), silent("a.0", 0.1, "`a.0` is in eval mode"), firing("b")), ()
    )
    states = [line.split()[0] for line in lines(report)[2:]]
    assert states == ["firing", "silent", "unregistered", "unknown"]
    assert lines(report)[3].endswith("`a.0` is in eval mode")
    assert lines(report)[4].endswith('0.3      1  dropout at net.py:7: `register_adapter(Head, "p")`')
    assert re.search(r"\(the model\) +2  rand at net.py:9$", lines(report)[5])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.0.b", "a.1.b"], ["a.{0-1}.b ×2"]),
        (["a.3.b", "a.0.b", "a.1.b", "a.7.b"], ["a.{0-1,3,7}.b ×4"]),
        (["a.9.b", "a.10.b"], ["a.{9-10}.b ×2"]),
        (["l1.0.c2", "l1.1.c2", "l2.0.c2"], ["l{1-2}.{0-1}.c2 ×3"]),
        (["a.0.b", "a.0.c"], ["a.0.b", "a.0.c"]),
        (["a.0.b"], ["a.0.b"]),
        (["0", "1"], ["{0-1} ×2"]),
        (["", "a"], ["(the model)", "a"]),
    ],
    ids=str,
)
def test_names_that_differ_in_numbers_are_folded(names: list[str], expected: list[str]) -> None:
    printed = lines(Audit("Net", tuple(firing(name) for name in names), ()))[2:]
    assert [re.split(r"  +", line)[2] for line in printed] == expected


def test_what_differs_otherwise_is_not_folded() -> None:
    rows = (
        firing("a.0"),
        silent("a.1"),
        firing("a.2", kind="attention"),
        firing("a.3", operation="rand"),
        silent("a.4", 0.1, "never reached by this forward"),
        unregistered("a.5", line=1),
        unregistered("a.6", line=2),
    )
    assert len(lines(Audit("Net", rows, ()))) == 2 + len(rows)


def test_users_are_shown_where_there_are_more_than_places() -> None:
    rows = (firing("a.0", users=3, count=5), firing("a.1", users=3, count=6))
    assert "a.{0-1} ×2, 6 users  dropout   0.1     11  dropout" in str(Audit("Net", rows, ()))


def test_a_model_that_drops_nothing_says_so() -> None:
    assert str(Audit("Linear", (), ())) == "Linear: drops nothing"
    assert Audit("Linear", (), ()).check() == Audit("Linear", (), ())


def test_brackets_are_no_markup() -> None:
    assert "layers[0]" in str(Audit("Net", (firing("layers[0]"),), ("[red]drop",)))
    assert "[red]drop" in str(Audit("Net", (), ("[red]drop",)))


def test_a_plain_table_is_120_characters_wide_at_most_and_loses_nothing() -> None:
    name = "encoder." + ".".join(["a_long_name"] * 12)
    text = str(Audit("Net", (firing(name), unregistered("head")), ()))
    assert max(map(len, text.splitlines())) <= 120
    assert name in re.sub(r"\s+(firing|dropout|unregistered)?\s*", "", text.replace("0.1      1  dropout", ""))
    assert "\x1b" not in text


def test_a_terminal_decides_over_width_and_colours() -> None:
    narrow, coloured = StringIO(), StringIO()
    Console(file=narrow, width=70).print(VIT)
    assert max(map(len, narrow.getvalue().rstrip("\n").splitlines())) <= 70
    Console(file=coloured, width=120, force_terminal=True, color_system="standard", no_color=False).print(VIT)
    assert "\x1b[32m" in coloured.getvalue()


# Plain values.


def test_everything_is_plain_and_complete() -> None:
    report = Audit("Net", (firing("a"), silent("b"), unregistered("c"), unknown("")), ("d",))
    stored = json.loads(json.dumps(report.to_dict()))
    assert stored == report.to_dict()
    assert list(stored) == ["model", "firing", "silent", "unregistered", "unknown", "slots"]
    assert stored["firing"] == [
        {
            "state": "firing",
            "name": "a",
            "kind": "dropout",
            "rate": 0.1,
            "users": 1,
            "operation": "dropout",
            "count": 1,
            "location": "",
            "reason": "",
            "cure": "",
        }
    ]
    assert [stored[state][0]["name"] for state in ("silent", "unregistered", "unknown")] == ["b", "c", ""]
    with pytest.raises(FrozenInstanceError):
        report.model = "other"  # type: ignore[misc]


# The check.


def test_a_complete_audit_passes() -> None:
    report = Audit("Net", (firing("a"), firing("b")), ("c",))
    assert report.check() is report


@pytest.mark.parametrize("row", [silent("b"), unregistered("b"), unknown("b")], ids=lambda row: row.state)
def test_every_other_state_fails_unless_it_is_tolerated(row: Row) -> None:
    report = Audit("Net", (firing("a"), row), ())
    with pytest.raises(
        ValueError, match=rf"^Expected every place where Net drops .*, but got 1 {row.state}:\n  `b` is"
    ):
        report.check()
    assert report.check(allow=(row.state,)) is report
    with pytest.raises(ValueError, match="1 " + row.state):
        report.check(allow={"silent", "unregistered", "unknown"} - {row.state})


def test_the_error_names_five_places_the_worst_first_each_with_reason_and_cure() -> None:
    report = Audit("Net", (*(silent(f"s{number}") for number in range(4)), unregistered("head"), unknown("")), ())
    with pytest.raises(ValueError, match="Expected") as caught:
        report.check()
    assert str(caught.value).splitlines() == [
        "Expected every place where Net drops to be found and firing, but got 1 unregistered, 1 unknown, 4 silent:",
        '  `head` is unregistered: dropout at net.py:7, no site knows; `register_adapter(Head, "p")`',
        "  `the model` is unknown: rand at net.py:9, draws at random; register it",
        "  `s0` is silent: rate 0; set a rate above 0",
        "  `s1` is silent: rate 0; set a rate above 0",
        "  `s2` is silent: rate 0; set a rate above 0",
        "  and 1 more",
    ]


@pytest.mark.parametrize("allow", ["silent", ("quiet",), ["firing", "Silent"]], ids=str)
def test_only_states_can_be_tolerated(allow: Any) -> None:
    with pytest.raises(ValueError, match=r"^Expected `allow` to hold states among firing, silent, "):
        Audit("Net", (), ()).check(allow=allow)


def test_without_a_terminal_the_table_is_not_cut_to_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a_module_with_a_long_name." * 2 + "drop"
    report = Audit("Net", (Row("firing", name, "dropout", 0.1, 1, "scaled_dot_product_attention", 1),), ())
    report.show()
    assert name in capsys.readouterr().out
