"""Findings of an audit: plain values, the table that shows them, and the error that they can be.

Knows nothing of modules. Can be logged as JSON, printed with and without colours, and checked.
"""

import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Audit", "Row", "State"]

State = Literal["firing", "silent", "unregistered", "unknown"]
_STYLES: dict[State, str] = {"firing": "green", "silent": "yellow", "unregistered": "red", "unknown": "magenta"}
_WIDTH = 120  # characters of a table that no terminal asks for
_SHOWN = 5  # places that an error names


@dataclass(frozen=True)
class Row:
    """One place, and what one forward did there.

    Args:
        state: ``"firing"``: known, and it dropped. ``"silent"``: known, and it did not. ``"unregistered"``: it dropped
            at a rate that no site holds. ``"unknown"``: it drew, which may be a drop or may not.
        name: Name of the site, or of the module; empty for the model itself.
        kind: What is dropped, as far as known.
        rate: Probability, in [0, 1], as far as known; that of the operation where it is not of a site.
        users: Places of the model that drop at this rate.
        operation: What was seen to drop or draw.
        count: How often.
        location: Where the operation is called, ``file:line``.
        reason: Why the place is not firing.
        cure: What to do about that.
    """

    state: State
    name: str
    kind: str | None = None
    rate: float | None = None
    users: int = 0
    operation: str = ""
    count: int = 0
    location: str = ""
    reason: str = ""
    cure: str = ""

    @property
    def seen(self) -> str:
        """What was seen, and where."""
        return f"{self.operation} at {self.location}" if self.location else self.operation


@dataclass(frozen=True)
class Audit:
    """What one forward in train mode dropped, compared with the sites of the model.

    Args:
        model: Name of its class.
        rows: One per site in the order of the modules, then what no site knows.
        slots: Names of places without a layer, as the model was built with a rate of 0 there.

    Example:
        >>> report = Audit("Net", (Row("firing", "drop", "dropout", 0.1, 1, "dropout", 1),), ())
        >>> print(report)
        Net: 1 firing, 0 silent, 0 unregistered, 0 unknown
          state   place  kind     rate  calls  by / why
          firing  drop   dropout   0.1      1  dropout
        >>> report.check() is report
        True
    """

    model: str
    rows: tuple[Row, ...]
    slots: tuple[str, ...]

    @property
    def firing(self) -> tuple[Row, ...]:
        """Sites that dropped."""
        return self._of("firing")

    @property
    def silent(self) -> tuple[Row, ...]:
        """Sites that did not drop."""
        return self._of("silent")

    @property
    def unregistered(self) -> tuple[Row, ...]:
        """Drops that belong to no site."""
        return self._of("unregistered")

    @property
    def unknown(self) -> tuple[Row, ...]:
        """Draws that belong to no site, and may be drops or not."""
        return self._of("unknown")

    def _of(self, state: State) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.state == state)

    def to_dict(self) -> dict[str, Any]:
        """Return all findings as plain lists, dictionaries, strings and numbers."""
        return {
            "model": self.model,
            **{state: [asdict(row) for row in self._of(state)] for state in get_args(State)},
            "slots": list(self.slots),
        }

    def check(self, allow: Collection[State] = ()) -> "Audit":
        """Return the audit if every place is found and firing.

        Args:
            allow: States to tolerate, such as ``("silent",)``.

        Raises:
            ValueError: If a place is in another state; the message names up to five, each with reason and cure.
        """
        unknown = [state for state in allow if state not in get_args(State)]
        if isinstance(allow, str) or unknown:
            raise ValueError(f"Expected `allow` to hold states among {', '.join(get_args(State))}, but got {allow!r}.")
        wrong = [row for row in (*self.unregistered, *self.unknown, *self.silent) if row.state not in allow]
        if not wrong:
            return self
        counts = ", ".join(f"{count} {state}" for state, count in Counter(row.state for row in wrong).items())
        places = "".join(
            f"\n  `{row.name or 'the model'}` is {row.state}: {row.seen and f'{row.seen}, '}{row.reason}; {row.cure}"
            for row in wrong[:_SHOWN]
        )
        more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(
            f"Expected every place where {self.model} drops to be found and firing, but got {counts}:{places}{more}"
        )

    def show(self) -> None:
        """Print the table: in colours and as wide as the terminal, or as plain text where there is none."""
        import rich

        (rich.print if sys.stdout.isatty() else print)(self)

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        Console(file=text, width=_WIDTH, color_system=None, force_terminal=False, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich__(self) -> "Group":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        counts = ", ".join(f"{len(self._of(state))} {state}" for state in get_args(State))
        parts: list[Text | Table] = [Text(f"{self.model}: {counts if self.rows else 'drops nothing'}", style="bold")]
        if self.rows:
            table = Table(box=None, padding=(0, 0, 0, 2))
            table.add_column("state", no_wrap=True)
            table.add_column("place", overflow="fold")
            table.add_column("kind", no_wrap=True)
            table.add_column("rate", no_wrap=True, justify="right")
            table.add_column("calls", no_wrap=True, justify="right")
            table.add_column("by / why", overflow="fold")
            for rows in _folded(self.rows):
                state = rows[0].state
                table.add_row(*(Text(cell) for cell in (state, *_cells(rows))), style=_STYLES[state])
            parts.append(table)
        if self.slots:
            parts.append(Text(f"Built without dropout (rate 0): {', '.join(_merged_by_pattern(self.slots))}"))
        return Group(*parts)


# Folding: rows that differ in the numbers of their names only are one line of the table.

_NUMBER = re.compile(r"\d+")


def _folded(rows: Iterable[Row]) -> list[list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: get_args(State).index(row.state)):
        key = (row.state, row.kind, row.operation, row.location, _pattern(row.name), _pattern(row.reason), row.cure)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _cells(rows: list[Row]) -> tuple[str, ...]:
    """Return place, kind, rate, calls and why of rows that are shown as one."""
    row = rows[0]
    (place,) = _merged_by_pattern([row.name or "(the model)" for row in rows])
    users, count = sum(row.users for row in rows), sum(row.count for row in rows)
    if users > len(rows):
        place += f", {users} users"
    rates = sorted(row.rate for row in rows if row.rate is not None)
    ends = dict.fromkeys(f"{rate:.2g}" for rate in (*rates[:1], *rates[-1:]))
    why = _merged([row.reason for row in rows]) if row.state == "silent" else row.seen
    why += f": {row.cure}" if row.state == "unregistered" else ""
    return place, row.kind or "", "–".join(ends), str(count or ""), why


def _pattern(text: str) -> str:
    return _NUMBER.sub("#", text)


def _merged_by_pattern(names: Iterable[str]) -> list[str]:
    """Return one text for all names that differ in numbers only.

    Example:
        >>> _merged_by_pattern(["blocks.0.drop", "blocks.1.drop", "head"])
        ['blocks.{0-1}.drop ×2', 'head']
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_pattern(name), []).append(name)
    return [_merged(group) + (f" ×{len(group)}" if len(group) > 1 else "") for group in groups.values()]


def _merged(texts: list[str]) -> str:
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    spans = iter([_span(column) for column in columns])
    return _NUMBER.sub(lambda match: next(spans), texts[0])


def _span(numbers: tuple[str, ...]) -> str:
    """Return all numbers of one position: ``"3"``, ``"{0-11}"``, ``"{0-1,3}"``."""
    if len(set(numbers)) == 1:
        return numbers[0]
    runs: list[list[int]] = []
    for number in sorted({int(number) for number in numbers}):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs) + "}"
