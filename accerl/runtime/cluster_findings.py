"""What the answers of a cluster's nodes mean for a run: findings with their remedies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accerl.doctor import MIN_MEMORY_GB, Finding

Facts = Mapping[str, Any]
"""What `node_probe.facts` gives."""
MAX_SKEW_S = 0.01
"""Between clocks; the spans of a trace are tens of milliseconds long."""
MIN_GPU_SHARE = 0.9
"""Of a GPU's memory that is free where nobody else uses it."""


def versions(here: Facts, nodes: Mapping[str, Facts]) -> list[Finding]:
    """Whether the nodes run what this machine runs."""
    findings = [_version(label, name, here, there) for label, there in nodes.items() for name in here["versions"]]
    differing = [finding for finding in findings if finding is not None]
    if differing:
        return differing
    known = {**here["versions"], "accerl": f"{here['versions']['accerl']} ({here['source']})"}
    detail = ", ".join(f"{name} {version}" for name, version in known.items())
    return [Finding(subject="versions", ok=True, detail=f"{detail}; on {_all(nodes)}")]


def clocks(offsets: Mapping[str, tuple[float, float]]) -> list[Finding]:
    """Args: offsets: seconds that a node's clock is ahead of this machine's, and by how much that may be wrong."""
    findings = []
    for label, (offset, error) in offsets.items():
        if abs(offset) - error > MAX_SKEW_S:
            how = f"{_duration(abs(offset))} {'ahead of' if offset > 0 else 'behind'} this machine's"
            remedy = (
                f"set it by NTP (on {label}: `chronyc makestep`, or `timedatectl set-ntp true`): traces of the run are "
                f"displaced by as much, and `accerl status` on it takes a live run for dead above a minute"
            )
            findings.append(
                Finding(subject=f"{label} clock", ok=None, detail=f"{how} (± {_duration(error)})", remedy=remedy)
            )
    if findings or not offsets:
        return findings
    most = max(abs(offset) + error for offset, error in offsets.values())
    return [Finding(subject="clocks", ok=True, detail=f"within {_duration(most)} of this machine's")]


def ways(reached: Mapping[str, Mapping[str, float | str]], ports: Mapping[str, str]) -> list[Finding]:
    """The matrix of TCP connections, a row for each node that connects.

    Args:
        reached: from, to: seconds until an answer, or what went wrong.
        ports: of each node, those that may be given to a listening process.
    """
    times = [time for row in reached.values() for time in row.values() if not isinstance(time, str)]
    if all(not isinstance(time, str) for row in reached.values() for time in row.values()):
        detail = f"every node reaches every other, in {_duration(max(times))} at most" if times else "there is one node"
        return [Finding(subject="tcp", ok=True, detail=detail)]
    return [_row(label, row, ports) for label, row in reached.items()]


def hardware(label: str, facts: Facts, resources: Mapping[str, float]) -> list[Finding]:
    """What the node has, then what is wrong with it.

    Args:
        resources: that Ray thinks it has.
    """
    free, total = facts["memory"]
    shared_free, shared_total = facts["shared_memory"]
    summary = (
        f"{facts['hostname']}, {facts['cores']} cores, {_gb(free)} of {_gb(total)} GB free, "
        f"/dev/shm {_gb(shared_free)} of {_gb(shared_total)} GB free{_describe_gpus(facts)}"
    )
    findings = [Finding(subject=label, ok=True, detail=summary)]
    if free < MIN_MEMORY_GB * 2**30:
        remedy = f"close something there: the processes of a small run want {MIN_MEMORY_GB:.0f} GB"
        findings.append(Finding(subject=f"{label} memory", ok=None, detail=f"{_gb(free)} GB free", remedy=remedy))
    store = resources.get("object_store_memory", 0.0)
    if shared_total < store:
        remedy = "restart Ray there with a smaller --object-store-memory, or enlarge /dev/shm (Docker: --shm-size)"
        detail = f"Ray's store of {_gb(store)} GB lies on disk, because /dev/shm has {_gb(shared_total)}"
        findings.append(Finding(subject=f"{label} store", ok=None, detail=detail, remedy=remedy))
    if not facts["has_curve"]:
        detail = "pyzmq lacks CURVE, or is missing: no requests can cross to or from this node"
        remedy = f"on {label}: {facts['executable']} -m pip install --force-reinstall pyzmq"
        findings.append(Finding(subject=f"{label} curve", ok=False, detail=detail, remedy=remedy))
    draws, drawing = facts["drawing"]
    if not draws and facts["versions"]["accerl"] is not None:
        remedy = "needed by rollout workers of MuJoCo environments: run `accerl doctor` there"
        findings.append(Finding(subject=f"{label} drawing", ok=False, detail=drawing, remedy=remedy))
    return findings + _gpu_problems(label, facts, resources)


def gpu_software(nodes: Mapping[str, Facts]) -> list[Finding]:
    """Whether the nodes with GPUs can form one NCCL group."""
    known: dict[str, list[str]] = {}
    for label, facts in nodes.items():
        if nccl := facts["cuda"].get("nccl"):
            known.setdefault(nccl, []).append(label)
    if len(known) < 2:
        return []
    detail = "; ".join(f"{version} on {', '.join(labels)}" for version, labels in known.items())
    remedy = "install one torch build on all of them; until then leave weights.channel at 'store'"
    return [Finding(subject="nccl", ok=False, detail=detail, remedy=remedy)]


def root(path: Path, word: str, answers: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Whether the folder of the runs is one and the same everywhere.

    Args:
        word: that was written into it here.
        answers: what `NodeProbe.look_for` gave on each node.
    """
    apart = [label for label, answer in answers.items() if answer["content"] != word]
    closed = [label for label, answer in answers.items() if not answer["writable"]]
    if closed:
        detail = f"{path} cannot be written on {', '.join(closed)}"
        remedy = "no process of a run could start there: choose a --root that the user of Ray can write on every node"
        return [Finding(subject="root", ok=False, detail=detail, remedy=remedy)]
    if apart:
        remedy = (
            "a run works, as the learner, the replay and the controller write on the node where it is started; but "
            "crash logs and traces of other nodes stay there, a learner that Ray moves to one of them finds no "
            "checkpoint, and weights.trainable_only no start: better put --root on a file system that all nodes mount"
        )
        detail = f"{path} is another folder on {', '.join(apart)}"
        return [Finding(subject="root", ok=None, detail=detail, remedy=remedy)]
    return [Finding(subject="root", ok=True, detail=f"{path} is the same folder on {_all(answers)}")]


def _version(label: str, name: str, here: Facts, there: Facts) -> Finding | None:
    ours, theirs = here["versions"][name], there["versions"][name]
    ok: bool | None = False
    detail = f"{theirs or 'missing'}, here {ours}"
    remedy = f"on {label}: {there['executable']} -m pip install {name}=={ours}"
    if name == "accerl":
        if theirs is None:
            detail = there["source"]
        elif theirs == ours and here["source"] != there["source"]:
            detail = f"{theirs} of other source ({there['source']}, here {here['source']})"
        elif theirs == ours:
            return None
        remedy = (
            f"install the same commit for {there['executable']} on {label}, or share one environment between the nodes"
        )
    elif theirs == ours:
        return None
    elif name == "python":
        ok = None if theirs.rpartition(".")[0] == ours.rpartition(".")[0] else False
        remedy = f"make the environment on {label} anew with Python {ours}"
    elif theirs and ours and theirs.partition("+")[0] == ours.partition("+")[0]:
        ok, remedy = None, "another build of the same version; fine between nodes with and without GPUs"
    return Finding(subject=f"{label} {name}", ok=ok, detail=detail, remedy=remedy)


def _row(label: str, row: Mapping[str, float | str], ports: Mapping[str, str]) -> Finding:
    cells = [f"{other} {time if isinstance(time, str) else _duration(time)}" for other, time in row.items()]
    barred = [other for other, time in row.items() if isinstance(time, str)]
    remedy = "; ".join(f"on {other} let {label} in on TCP ports {ports[other]}" for other in barred)
    if remedy:
        remedy += ": Ray's workers, requests and groups listen on ports that the system chooses"
    return Finding(subject=f"tcp from {label}", ok=not barred, detail=", ".join(cells), remedy=remedy)


def _describe_gpus(facts: Facts) -> str:
    if not facts["gpus"]:
        return ""
    names = [gpu["name"] for gpu in facts["gpus"]]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    free = min(int(gpu["memory.free"]) for gpu in facts["gpus"]) * 2**20
    drivers = ", ".join(dict.fromkeys(gpu["driver_version"] for gpu in facts["gpus"]))
    nccl = facts["cuda"].get("nccl") or "missing"
    return f", {kinds} (at least {_gb(free)} GB free), driver {drivers}, NCCL {nccl}"


def _gpu_problems(label: str, facts: Facts, resources: Mapping[str, float]) -> list[Finding]:
    subject = f"{label} gpus"
    gpus, known = facts["gpus"], resources.get("GPU", 0.0)
    if facts["gpu_error"]:
        remedy = "mend the driver there, or start Ray there with --num-gpus 0"
        return [Finding(subject=subject, ok=False, detail=f"nvidia-smi: {facts['gpu_error']}", remedy=remedy)]
    findings = []
    if known != len(gpus):
        remedy = f"restart Ray there with --num-gpus {len(gpus)}, unless the others are meant for somebody else"
        detail = f"Ray counts {known:g}, nvidia-smi {len(gpus)}"
        findings.append(Finding(subject=subject, ok=None, detail=detail, remedy=remedy))
    if gpus and not facts["cuda"]["works"]:
        build = facts["cuda"]["torch_cuda"] or "no CUDA"
        remedy = f"on {label}: install a torch for its driver for {facts['executable']}"
        detail = f"torch {facts['versions']['torch']}, built for {build}, cannot use them"
        findings.append(Finding(subject=subject, ok=False, detail=detail, remedy=remedy))
    taken = [n for n, gpu in enumerate(gpus) if int(gpu["memory.free"]) < MIN_GPU_SHARE * int(gpu["memory.total"])]
    if taken:
        remedy = "`nvidia-smi` there says whose; count on less, or end it"
        detail = f"another process holds memory of number {', '.join(map(str, taken))}"
        findings.append(Finding(subject=subject, ok=None, detail=detail, remedy=remedy))
    return findings


def _all(nodes: Mapping[str, Any]) -> str:
    return "the one node" if len(nodes) == 1 else f"all {len(nodes)} nodes"


def _gb(amount: float) -> str:
    return f"{amount / 2**30:.1f}"


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
