"""report.md: what a reviewer wants to see of a result, to paste where Markdown is read."""

from mmkern.bench import readme, results, tables


def write(found, path):
    """Write the summary of a result, whole or not at all."""
    results.write_text(path, render(found))


def render(found):
    """The Markdown of a result."""
    parts = ["# mmkern benchmark", " ".join(results.summary(found)), "## Where mmkern loses"]
    parts.append(_list(tables.loss_lines(found["rows"])) or "Nowhere in this run.")
    failed = [f"{results.label(r)} {r['dtype']}: {r['message']}"
              for r in results.failures(found["rows"])]  # fmt: skip
    parts += ["## Failed", _list(failed)] if failed else []
    return "\n\n".join([*parts, "## Every row", readme.bench_table(found)]) + "\n"


def _list(texts):
    return "\n".join(f"- {text}" for text in texts)
