# SPDX-License-Identifier: Apache-2.0
"""The page of contexts: made of results only."""

from __future__ import annotations

from collections import Counter

_HEAD = """\
# Contexts

Is the span that the kernel sees the one that is current? This page is written by `make context-matrix`, from what it
ran; nothing in it is written by hand. Each check is a system call in a place where the program knows its span from
OpenTelemetry; a BPF program reports which one it saw there. Servers are real ones, with concurrent requests.

A cell says *checks / wrong / unknown*. Wrong: another span than the current one, or any where there is none. Unknown:
no span, though there is one; a kernel span is then missing, never misplaced. *auto* is the default, *none* is without
hooks; the others are one hook alone, on the part of the scenarios that `make test` runs too.

"""
_FRAMEWORKS = (
    "anyio", "django", "eventlet", "fastapi", "flask", "gevent", "greenlet", "gunicorn", "opentelemetry-api",
    "opentelemetry-instrumentation-threading", "starlette", "trio", "uvicorn", "uvloop",
)  # fmt: skip
_NOTHING = "—"


def page(kernel, pythons, results):
    """The whole page.

    Args:
        kernel: what ran it, in words.
        pythons: `pythons.Python`s.
        results: dicts with "python", "mode", "family", "name", "excused" and what `runner.run` gives.
    """
    pythons = sorted(pythons, key=lambda python: (int(python.label.removesuffix("t").split(".")[1]), python.label))
    modes = list(dict.fromkeys(result["mode"] for result in results))
    parts = [_HEAD, _machines(kernel, pythons), _hooks(pythons, results), _summary(pythons, modes, results)]
    parts += [_mode(mode, pythons, results) for mode in modes]
    parts += [_unknown(results), _not_run(results), _failed(results)]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def table(head, rows):
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def _machines(kernel, pythons):
    rows = [[python.label, python.release, "on" if python.gil else "off"] for python in pythons]
    text = f"## What ran\n\nKernel {kernel}.\n\n" + table(["Python", "release", "GIL, once ebpftrace is in it"], rows)
    rows = [[name, *(_version(python, name) for python in pythons)] for name in _FRAMEWORKS]
    return text + "\n" + table(["package", *(python.label for python in pythons)], rows)


def _version(python, name):
    return python.versions.get(name, "not installed" if name in python.missing else _NOTHING)


def _counts(results):
    """Checks, wrong, unknown; and what is no result of a check."""
    total = Counter()
    for result in results:
        total[result["status"]] += 1
        for name in ("checks", "wrong", "spurious", "unknown", "lost"):
            total[name] += result.get(name, 0)
    return total


def _figures(results):
    total = _counts(results)
    text = f"{total['checks']} / {total['wrong'] + total['spurious']} / {total['unknown']}" if total["run"] else ""
    notes = [f"{total[name]} {name}" for name in ("not run", "failed", "lost") if total[name]]
    return ", ".join(filter(None, [text, *notes])) or _NOTHING


def _of(results, **wanted):
    return [result for result in results if all(result[name] == value for name, value in wanted.items())]


def _hooks(pythons, results):
    """Which hooks were in place by default, and why the others were not."""
    standing = {
        python.label: next(
            (each["hooks"] for each in _of(results, python=python.label, mode="auto") if "hooks" in each), {}
        )
        for python in pythons
    }
    names = dict.fromkeys(name for hooks in standing.values() for name in hooks)
    rows = [[name, *(standing[python.label].get(name, _NOTHING) for python in pythons)] for name in names]
    return "## Hooks by default\n\n" + table(["hook", *(python.label for python in pythons)], rows) if rows else ""


def _absent(mode, pythons, results):
    """Where a hook that was asked for was not in place, and why."""
    for python in pythons:
        for each in _of(results, python=python.label):
            state = each.get("hooks", {}).get(mode, "on")
            if state != "on":
                yield f"- {python.label} without it: {state}\n"
                break


def _summary(pythons, modes, results):
    rows = [[mode, *(_figures(_of(results, mode=mode, python=python.label)) for python in pythons)] for mode in modes]
    return "## Summary\n\n" + table(["hooks", *(python.label for python in pythons)], rows)


def _mode(mode, pythons, results):
    here = _of(results, mode=mode)
    families = dict.fromkeys(result["family"] for result in here)
    rows = [
        [family, *(_figures(_of(here, family=family, python=python.label)) for python in pythons)]
        for family in families
    ]
    absent = "".join(_absent(mode, pythons, here))
    return (
        f"## Hooks: {mode}\n\n" + (absent and f"{absent}\n") + table(["", *(python.label for python in pythons)], rows)
    )


def _places(results):
    """Scenarios by (python, mode), as words."""
    return ", ".join(dict.fromkeys(f"{result['python']} {result['mode']}" for result in results))


def _list(title, text, grouped):
    if not grouped:
        return ""
    rows = [[*key, _places(results)] for key, results in grouped.items()]
    return f"## {title}\n\n{text}\n\n" + table(["scenario", "reason", "where"], rows)


def _grouped(results, reason):
    found = {}
    for result in results:
        found.setdefault((f"{result['family']}, {result['name']}", reason(result)), []).append(result)
    return found


def _unknown(results):
    shown = [result for result in results if result["mode"] == "auto" and result.get("unknown")]
    text = "Scenarios with unknowns though all hooks were on, where that is known to be so, with the reason."
    return _list("Unknown with hooks", text, _grouped(shown, lambda result: result["excused"] or "not explained"))


def _not_run(results):
    shown = _of(results, status="not run")
    return _list("Not run", "Nothing is said about these.", _grouped(shown, lambda result: result["reason"]))


def _failed(results):
    shown = _of(results, status="failed")
    return _list(
        "Failed", "These ended in an error, so nothing is said about them.", _grouped(shown, lambda r: r["reason"])
    )
