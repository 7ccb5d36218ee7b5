"""report.md: what a reviewer wants to see of a result, to paste where Markdown is read."""

from mmkern.bench import compare, readme, results, tables


def write(found, path, before=None):
    """Write the summary of a result, whole or not at all; ``before``: a result to compare with."""
    results.write_text(path, render(found, before))


def render(found, before=None):
    """The Markdown of a result, with what changed since ``before``."""
    parts = ["# mmkern benchmark", " ".join(results.summary(found)), "## Where mmkern loses"]
    parts.append(_list(tables.loss_lines(found["rows"])) or "In time, nowhere in this run.")
    if memory := tables.memory_loss_lines(found):
        parts.append(f"In memory:\n\n{_list(memory)}")
    failed = [f"{results.label(r)} {r['dtype']}: {r['message']}"
              for r in results.failures(found["rows"])]  # fmt: skip
    parts += ["## Failed", _list(failed)] if failed else []
    if before is not None:
        parts += [f"## Changes since {before['environment']['date']}", _changes(before, found)]
    return "\n\n".join([*parts, "## Every row", readme.bench_table(found)]) + "\n"


def _changes(before, found):
    lines = [compare.HEAD, ["---"] * 2 + ["---:"] * (len(compare.HEAD) - 2)]
    lines += compare.changes(before, found)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _list(texts):
    return "\n".join(f"- {text}" for text in texts)
