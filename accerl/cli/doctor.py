"""`accerl doctor`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from accerl.cli.command import Command
from accerl.config import Section

MARKS = {True: Text("ok", style="green"), False: Text("missing", style="red"), None: Text("note", style="yellow")}


class DoctorOptions(Section):
    """Nothing to choose."""


def examine(_: DoctorOptions) -> int:
    from accerl.doctor import examine_machine

    findings = examine_machine()
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(f"  {finding.subject}", MARKS[finding.ok], Text(finding.detail))
    console = Console(highlight=False)
    console.print(table)
    for finding in findings:
        if finding.remedy:
            console.print(Text(f"{finding.subject}: {finding.remedy}"), soft_wrap=True)
    return 1 if any(finding.ok is False for finding in findings) else 0


COMMAND = Command(
    name="doctor",
    summary="Look for what is missing on this machine and give the commands that mend it; exit code 1 if something is.",
    options=DoctorOptions,
    run=examine,
    examples=(("before the first run", "accerl doctor"),),
)
