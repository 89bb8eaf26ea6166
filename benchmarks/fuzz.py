"""Damaged inputs for everything that reads files and messages: does anything but the declared errors happen?

    python -m benchmarks.fuzz --inputs 100000 --seed 0

Each input is a specimen with seeded changes: bits, cuts, repeated and moved parts, words of JSON, TOML and safetensors'
headers, values of other types. A reader runs in a process of its own with bounded memory and time, so that a crash, a
hang or a flood of memory is found too. Prints a table by reader and, last, one line of JSON; appends to
results/fuzz.csv. An input that did something else stays in `--findings`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fuzz_readers import Reader, readers
from benchmarks.results_file import append, print_json, show

HANG_S = 20
MEMORY_BYTES = 12 * 2**30
WORDS = (
    *(b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"9" * 30, b"9" * 5000),
    *(b'"../x"', b'"/etc/passwd"', b"[" * 3000, b'{"a":' * 3000, b"\\u0000", b"\xff\xfe", b"\x00", b"\n", b"="),
    *(b"--seed", b"--env", b"none", b"os:system", b"subprocess:run", b"a:b", b"__import__", b"inf", b"format", b"2"),
    *(b"\xff" * 8, b"\x00" * 8, b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', b'"F64"', b'"BF16"', b"[0,0]"),
)


class Found(NamedTuple):
    """An input that did something else."""

    reader: str
    number: int
    what: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", help="only these")
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--results", type=Path, help="folder for the CSV; default: benchmarks/results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="accerl-fuzz-") as folder:
        specimens = Path(folder) / "specimens"
        tried = [each for each in readers(specimens) if not arguments.readers or each.name in arguments.readers]
        rows = []
        for place, reader in enumerate(tried):
            share = arguments.inputs // len(tried) + (place < arguments.inputs % len(tried))
            rows.append(row_of(reader, share, specimens, arguments.seed, arguments.findings))
    show("inputs", ("reader", "inputs", "refused", "accepted", "undeclared", "crashes", "hangs"), rows)
    names = ("inputs", "refused", "accepted", "undeclared", "crashes", "hangs")
    total = {"seed": arguments.seed, "readers": len(rows), **{name: sum(row[name] for row in rows) for name in names}}
    append("fuzz", [total], arguments.results)
    print_json("fuzz", total)
    return 0


def row_of(reader: Reader, inputs: int, specimens: Path, seed: int, findings: Path) -> dict[str, Any]:
    """What became of so many inputs of one reader; those that did something else are written down."""
    counts, found = tried(reader, inputs, specimens, seed)
    specimen = (specimens / reader.specimen / reader.file).read_bytes()
    for each in found:
        findings.mkdir(parents=True, exist_ok=True)
        name = f"{reader.name.replace(' ', '-')}-{seed}-{each.number}"
        (findings / name).write_bytes(
            changed(specimen, random.Random(f"{seed} {reader.name} {each.number}"), reader.is_text)
        )
        (findings / f"{name}.txt").write_text(each.what)
        print(f"{reader.name} {each.number}: {each.what.splitlines()[-1]}", file=sys.stderr, flush=True)
    return {"reader": reader.name, "inputs": inputs, **counts}


def tried(reader: Reader, inputs: int, specimens: Path, seed: int) -> tuple[dict[str, int], list[Found]]:
    """Counts, and what is to be looked at. A process that ends is replaced; its input is one of those."""
    counts: dict[str, int] = dict.fromkeys(("refused", "accepted", "undeclared", "crashes", "hangs"), 0)
    found: list[Found] = []
    context = multiprocessing.get_context("fork")
    number = 0
    while number < inputs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_try, args=(reader, number, inputs, specimens, seed, sender))
        process.start()
        sender.close()
        while receiver.poll(2 * HANG_S):
            try:
                number, what, how = receiver.recv()
            except EOFError:
                break
            counts[what] += 1
            if how:
                found.append(Found(reader.name, number, how))
            number += 1
        process.kill() if process.is_alive() and number < inputs else None
        process.join()
        if number < inputs:
            counts["crashes"] += 1
            found.append(Found(reader.name, number, f"its process ended with {process.exitcode}"))
            number += 1
    return counts, found


def _try(reader: Reader, first: int, end: int, specimens: Path, seed: int, sender: Any) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _hangs)
    with tempfile.TemporaryDirectory(prefix="accerl-fuzz-") as scratch, open("/dev/null", "w") as nowhere:
        folder = Path(scratch) / reader.specimen
        shutil.copytree(specimens / reader.specimen, folder)
        target = folder / reader.file
        specimen = target.read_bytes()
        for number in range(first, end):
            target.write_bytes(changed(specimen, random.Random(f"{seed} {reader.name} {number}"), reader.is_text))
            signal.alarm(HANG_S)
            try:
                with redirect_stdout(nowhere), redirect_stderr(nowhere):
                    outcome = ("accepted" if _is_read(reader.read, folder, reader.declared) else "refused", "")
            except _Hang:
                outcome = ("hangs", f"it took more than {HANG_S} s")
            except BaseException:
                outcome = ("undeclared", traceback.format_exc())
            finally:
                signal.alarm(0)
            sender.send((number, *outcome))


class _Hang(BaseException):
    pass


def _hangs(*_: object) -> None:
    raise _Hang


def _is_read(read: Callable[[Path], Any], folder: Path, declared: tuple[type[Exception], ...]) -> bool:
    try:
        read(folder)
        return True
    except declared as error:
        str(error)
        return False


def changed(specimen: bytes, chance: random.Random, is_text: bool) -> bytes:
    """The specimen with one to four changes."""
    data = bytearray(specimen)
    if is_text and chance.random() < 0.4:
        with suppress(ValueError):
            return json.dumps(_with_other_value(json.loads(specimen), chance)).encode()
    for _ in range(chance.randint(1, 4)):
        _change(data, chance, is_text)
    return bytes(data)


def _change(data: bytearray, chance: random.Random, is_text: bool) -> None:
    header = len(data) if is_text else min(len(data), 8 + int.from_bytes(data[:8], "little") % 100_000)
    span = header if chance.random() < 0.8 else len(data)
    place = chance.randrange(span + 1)
    match chance.randrange(7):
        case 0:
            if place < len(data):
                data[place] ^= 1 << chance.randrange(8)
        case 1:
            del data[place:]
        case 2:
            del data[place : place + chance.randint(1, 40)]
        case 3:
            data[place:place] = data[place : place + chance.randint(1, 60)]
        case 4:
            word = chance.choice(WORDS)
            data[place : place + chance.choice((0, 0, 1, len(word)))] = word
        case 5:
            other = chance.randrange(span + 1)
            data[place:place] = data[other : other + chance.randint(1, 40)]
        case 6:
            near = max(0, len(data) + chance.randint(-40, 40))
            data[:8] = (near if chance.random() < 0.5 else chance.getrandbits(64)).to_bytes(8, "little")


def _with_other_value(content: Any, chance: random.Random) -> Any:
    """Somewhere in it a value of another type or size, a key less, or one more."""
    values = (None, True, -1, 0, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf"), "", "x", "../x", [], {}, [[1]])
    if isinstance(content, dict) and content and chance.random() < 0.9:
        key = chance.choice(sorted(content))
        own = dict(content)
        kind = chance.random()
        if kind < 0.1:
            del own[key]
        elif kind < 0.2:
            own[f"{key}{chance.randrange(9)}"] = chance.choice(values)
        else:
            own[key] = _with_other_value(own[key], chance)
        return own
    if isinstance(content, list) and content and chance.random() < 0.9:
        place = chance.randrange(len(content))
        return [*content[:place], _with_other_value(content[place], chance), *content[place + 1 :]]
    return chance.choice(values)


if __name__ == "__main__":
    sys.exit(main())
