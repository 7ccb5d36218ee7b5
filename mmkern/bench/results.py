"""The result file: its fields, reading, and writing.

results.json holds

    schema        "mmkern-bench/1"
    complete      false if the run was interrupted; the rows that did not run are in ``not_run``
    environment   device, cpu, cores, threads, isa, load, os, python, torch, mmkern, commit, date,
                  command
    options       the command line's choices
    inputs        where the photographs come from
    peers         {library: why it took no part}
    noise         of two equal contestants, timed five times: differences |ratio - 1|, and
                  half_widths of the 95 % intervals
    memory        with --full: [{op, size (what x counts), passes, dtype, x, peak_bytes
                  {contestant: [one per x]}}]
    peaks         measured limits of the machine: copy [[bytes, GB/s], ...], matmul {dtype: GFLOP/s}
    rows          one per workload and dtype:
        kind      "op", "model" or "overhead"
        op, function, name, variant ("forward", "backward", "forward+backward"), dtype, shape,
        model, scale, inputs    what was run, on what
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
        peak_bytes  {contestant: memory of one call at its peak, outputs and scratch included, or
                  null}; on the CPU resident memory
        host_us   {contestant: microseconds until a call returns}, on an accelerator alone; on the
                  CPU the rows of kind "overhead" tell the cost of a call
        repeatable  whether a second call of mmkern gave the same bits
        stages    of a model alone: [{name, times: {contestant: ms}}], its parts in the order of
                  their calls (mmkern.bench.stages)
    not_run       identities of rows that an interrupt left out

A file that lacks some of these fields was written by an earlier version: it loads, and what is
missing shows as "-".
"""

import csv
import io
import json
import math
import os
import tempfile
from pathlib import Path

SCHEMA = "mmkern-bench/1"
KEY = ("kind", "op", "function", "name", "variant", "dtype")
CSV_FIELDS = (
    *KEY, "shape", "model", "scale", "inputs", "backend", "status", "message",
    "eager_ms", "compile_ms", "mmkern_ms", "vs_eager", "vs_eager_low", "vs_eager_high",
    "vs_compile", "vs_compile_low", "vs_compile_high", "best_peer", "vs_best_peer", "rivals",
    "error_multiple", "flops", "bytes", "mmkern_peak_bytes", "eager_peak_bytes", "mmkern_host_us",
    "repeatable",
)  # fmt: skip


#: what a label says of a row's variant
PASSES = {"forward": "", "backward": " bwd", "forward+backward": " fwd+bwd"}
BASELINES = ("eager", "compile")


class ResultsError(ValueError):
    """A file that is no result of mmkern bench."""


def key(row):
    """What two result files must share for their rows to be compared."""
    return tuple(row[field] for field in KEY)


def label(row):
    """A row's name for people."""
    return f"{row['function']} {row['name']}{PASSES[row['variant']]}"


def milliseconds(row, contestant):
    """Median time of a contestant, None if it has none."""
    return row["times"].get(contestant, {}).get("median_ms")


def ratio(row, contestant):
    """How many times faster than the contestant mmkern is, None if unknown."""
    return row["ratios"].get(contestant, {}).get("value")


def best_peer(row):
    """The fastest contestant besides mmkern and the baselines, None if there is none."""
    others = {n: r["value"] for n, r in row["ratios"].items() if n not in BASELINES}
    return min(others, key=others.get, default=None)


def peak_bytes(row, contestant):
    """Memory of a call at its peak, None where it was not measured."""
    return row.get("peak_bytes", {}).get(contestant)


def losses(rows):
    """(row, contestant) wherever mmkern is slower, worst first."""
    found = [(row, name) for row in rows for name, r in row["ratios"].items() if r["value"] < 1]
    return sorted(found, key=lambda pair: pair[0]["ratios"][pair[1]]["value"])


def summary(found):
    """Sentences on a result: where mmkern stands, and how far the machine could be trusted."""
    rows = [row for row in found["rows"] if row["kind"] != "overhead"]
    sentences = []
    for name, words in (("eager", "eager PyTorch"), ("compile", "torch.compile")):
        values = [r["ratios"][name]["value"] for r in rows if name in r["ratios"]]
        if values:
            ahead = sum(value >= 1 for value in values)
            mean = math.exp(sum(map(math.log, values)) / len(values))
            sentences.append(
                f"Against {words}, mmkern is ahead in {ahead} of {len(values)} rows; the geometric "
                f"mean of the ratios is {mean:.2f}."
            )
    if noise := found.get("noise"):
        sentences.append(
            f"Noise floor: two equal contestants differed by {100 * max(noise['differences']):.1f} "
            f"% at most in {len(noise['differences'])} tries, with intervals of "
            f"{100 * max(noise['half_widths']):.1f} % to either side."
        )
    reference = sum(row["backend"] == "reference" for row in rows)
    if reference:
        sentences.append(
            f"In {reference} rows mmkern had no kernel for the whole call here, so that its plain "
            "PyTorch reference ran somewhere."
        )
    return [*sentences, f"Inputs: {found['inputs']}."]


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
        peer = best_peer(row)
        flat |= {"best_peer": peer, "vs_best_peer": ratio(row, peer) if peer else None}
        flat |= {f"{n}_peak_bytes": peak_bytes(row, n) for n in ("eager", "mmkern")}
        flat |= {"mmkern_host_us": row.get("host_us", {}).get("mmkern")}
        writer.writerow(flat)
    return buffer.getvalue()
