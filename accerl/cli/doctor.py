"""`accerl doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator
from rich.table import Table
from rich.text import Text

from accerl.cli.command import Command
from accerl.config import ConfigError, Positive, Section
from accerl.console import output

if TYPE_CHECKING:
    from accerl.doctor import Finding

MARKS = {True: Text("ok", style="green"), False: Text("fails", style="red"), None: Text("note", style="yellow")}


class DoctorOptions(Section):
    """What to examine."""

    cluster: bool | str = False
    """Examine the nodes of a Ray cluster, and the ways between them, in place of this machine, which must be one of
    them: its address, host:port; default: that in RAY_ADDRESS."""
    root: Path = Path("runs")
    """Folder that is to hold the runs: with `cluster`, whether all nodes share it."""
    nodes: Positive | None = None
    """With `cluster`: how many there should be; they are given two minutes to join."""
    libero: bool = False
    """Examine LIBERO on this machine, too: half a minute."""

    @model_validator(mode="after")
    def _libero_is_here(self) -> Self:
        if self.libero and self.cluster:
            raise ValueError("libero: is examined on this machine, not with cluster; leave one of them out")
        return self


def examine(options: DoctorOptions) -> int:
    findings = _findings(options)
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(f"  {finding.subject}", MARKS[finding.ok], Text(finding.detail))
    console = output()
    console.print(table)
    for finding in findings:
        if finding.remedy:
            console.print(Text(f"{finding.subject}: {finding.remedy}"), soft_wrap=True)
    return 1 if any(finding.ok is False for finding in findings) else 0


def _findings(options: DoctorOptions) -> list[Finding]:
    if not options.cluster:
        from accerl.doctor import examine_machine

        return [*examine_machine(), *(_libero() if options.libero else ())]
    from accerl.runtime.cluster_doctor import examine_cluster

    address = options.cluster if isinstance(options.cluster, str) else os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError("cluster: RAY_ADDRESS is not set; give the address, --cluster host:port")
    return examine_cluster(address, options.root, options.nodes)


def _libero() -> list[Finding]:
    from accerl.envs.libero.doctor import examine_libero

    return examine_libero()


COMMAND = Command(
    name="doctor",
    summary="Look for what is missing on this machine and give the commands that mend it; exit code 1 if something is.",
    options=DoctorOptions,
    run=examine,
    examples=(
        ("before the first run", "accerl doctor"),
        ("before the first run on LIBERO", "accerl doctor --libero"),
        ("before the first run on a cluster", "accerl doctor --cluster 10.0.0.1:6379 --root /shared/runs"),
    ),
)
