"""The result file: its fields, reading, and writing.

results.json holds

    schema        "mmkern-bench/1"
    complete      false if the run was interrupted; the rows that did not run are in ``not_run``
    environment   device, cpu, cores, threads, isa, load, os, python, torch, mmkern, commit, date,
                  command
    options       the command line's choices
    inputs        where the photographs come from
    peaks         measured limits of the machine: copy [[bytes, GB/s], ...], matmul {dtype: GFLOP/s}
    rows          one per workload and dtype:
        kind      "op", "model" or "overhead"
        op, function, name, variant ("forward" or "forward+backward"), dtype, shape, model, scale,
        inputs    what was run, on what
        backend   whose kernels served mmkern's call: "cpu", ..., or "reference"
        status    "ok", or "failed" with the reason in ``message``
        notes     remarks to the reader
        flops, bytes   the work itself (mmkern.bench.cost), or null
        times     {contestant: {median_ms, low_ms, high_ms, rounds} or {error: text}}; low and high
                  bound the 95 % bootstrap interval of the median
        ratios    {contestant: {value, low, high}}: how many times faster mmkern is, the median of
                  the ratios within rounds
        errors    {contestant: {max, multiple}} against float64, null if infinite; the multiple is
                  of eager's error, or of one rounding where eager's is smaller
    not_run       identities of rows that an interrupt left out
"""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

SCHEMA = "mmkern-bench/1"
KEY = ("kind", "op", "function", "name", "variant", "dtype")
CSV_FIELDS = (
    *KEY, "shape", "model", "scale", "inputs", "backend", "status", "message",
    "eager_ms", "compile_ms", "mmkern_ms", "vs_eager", "vs_eager_low", "vs_eager_high",
    "vs_compile", "vs_compile_low", "vs_compile_high", "rivals", "error_multiple", "flops", "bytes",
)  # fmt: skip


class ResultsError(ValueError):
    """A file that is no result of mmkern bench."""


def key(row):
    """What two result files must share for their rows to be compared."""
    return tuple(row[field] for field in KEY)


def label(row):
    """A row's name for people."""
    passes = " fwd+bwd" if row["variant"] == "forward+backward" else ""
    return f"{row['function']} {row['name']}{passes}"


def milliseconds(row, contestant):
    """Median time of a contestant, None if it has none."""
    return row["times"].get(contestant, {}).get("median_ms")


def ratio(row, contestant):
    """How many times faster than the contestant mmkern is, None if unknown."""
    return row["ratios"].get(contestant, {}).get("value")


def losses(rows):
    """(row, contestant) wherever mmkern is slower, worst first."""
    found = [(row, name) for row in rows for name, r in row["ratios"].items() if r["value"] < 1]
    return sorted(found, key=lambda pair: pair[0]["ratios"][pair[1]]["value"])


def failures(rows):
    """The rows in which mmkern raised or was wrong."""
    return [row for row in rows if row["status"] == "failed"]


def write_text(path, text):
    """Write a file whole or not at all: a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save(results, folder):
    """Write results.json and results.csv."""
    folder = Path(folder)
    write_text(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_text(folder / "results.csv", to_csv(results["rows"]))


def load(path):
    """Read a results.json.

    Raises:
        ResultsError: the file is missing, is no JSON, or has another schema.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path} is no JSON: {error}") from error
    found = results.get("schema") if isinstance(results, dict) else None
    if found != SCHEMA:
        raise ResultsError(f"{path} has schema {found!r}; wanted {SCHEMA!r}")
    return results


def to_csv(rows):
    """The rows as CSV, one line each."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = dict(row)
        for name in ("eager", "compile", "mmkern"):
            flat[f"{name}_ms"] = milliseconds(row, name)
        for name in ("eager", "compile"):
            bounds = row["ratios"].get(name, {})
            flat |= {f"vs_{name}": bounds.get("value")}
            flat |= {f"vs_{name}_{end}": bounds.get(end) for end in ("low", "high")}
        flat["rivals"] = "; ".join(
            f"{name}: {r['value']:.3f}"
            for name, r in row["ratios"].items()
            if name not in ("eager", "compile")
        )
        flat["error_multiple"] = row["errors"].get("mmkern", {}).get("multiple")
        writer.writerow(flat)
    return buffer.getvalue()
