# SPDX-License-Identifier: Apache-2.0
"""The page of kernels: made of results only."""

from __future__ import annotations

from vmtest import selection

_HEAD = """\
# Kernels

What runs on which kernel: the kernel tests, those with BCC and the demos, each in a virtual machine that boots Debian's
own kernel package. This page is written by `make kernel-matrix`, from what these runs reported; nothing in it is
written by hand. [CONTRIBUTING.md](../../CONTRIBUTING.md) says how to make it again. The tests are those of
`tests/kernel` that another kernel can make come out differently, and those of `tests/bpfcc`; the others run on the
kernel of whoever works on ebpftrace, and are not counted.

"""
_WITH, _WITHOUT = "with extras", "without"
_OUTCOMES = ("passed", "failed", "skipped")
_YES, _NO, _OFF = "yes", "no", "—"


def page(results):
    """The whole page."""
    results = sorted(results, key=lambda result: tuple(map(int, result.series.split("."))))
    names = sorted({name for result in results for name in result.programs})
    parts = [_HEAD, _kernels(results), _programs(results, names)]
    parts += [_hooks(results, name) for name in names]
    parts.append(_bcc(results))
    parts.append(_troubles(results))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def table(head, rows):
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def _kernels(results):
    features = list(dict.fromkeys(name for result in results for name in _features(result)))
    head = ["kernel", "release", "tests passed", "failed", "skipped", *features]
    rows = []
    for result in results:
        counts = [result.count(outcome) for outcome in _OUTCOMES]
        seen = _features(result)
        rows.append([result.series, f"`{result.release}`", *counts, *(seen.get(name, "?") for name in features)])
    return "## What is there\n\n" + table(head, rows)


_SHOWN = ("fentry", "kprobe", "uprobe", "system call of a blocked thread", "CPU quota")


def _features(result):
    """Those of `ebpftrace doctor` that differ between kernels."""
    found = {feature["name"]: feature for feature in result.doctor.get("features", [])}
    return {
        name: (f"`{found[name]['detail']}`" if name == "CPU quota" else _YES) if found[name]["available"] else _NO
        for name in _SHOWN
        if name in found
    }


def _programs(results, names):
    rows = []
    for result in results:
        for name in names:
            facts = result.programs.get(name, {}).get(_WITH)
            if facts is None:
                continue
            chosen = [hook for hook, reason in facts["hooks"].items() if not reason]
            extras = [hook for hook in chosen if hook in facts["extras"]]
            missing = [hook for hook, reason in facts["hooks"].items() if reason and hook not in facts["extras"]]
            state = f"{len(chosen) - len(extras)}" if not facts["error"] else "not loaded"
            lacks = "" if chosen else "all: " + "; ".join(dict.fromkeys(facts["hooks"].values()))
            demo = result.demos.get(name)
            counts = [result.count(outcome, name) or _OFF for outcome in _OUTCOMES]
            rows.append([
                result.series, name, state, len(extras) or _OFF,
                lacks or ", ".join(f"`{hook}`" for hook in missing) or _OFF, *counts, _demo(demo),
            ])  # fmt: skip
    head = ["kernel", "program", "hooks", "extras", "hooks it has not", "tests passed", "failed", "skipped", "demo"]
    return "## Programs\n\n" + table(head, rows)


def _demo(demo):
    if demo is None or demo.get("skipped"):
        return _OFF
    return f"exit code {demo['code']}" if demo["code"] else "passed"


def _hooks(results, name):
    """A program's hooks against kernels, and why one was left out."""
    shown = [result for result in results if result.programs.get(name)]
    hooks = list(dict.fromkeys(hook for result in shown for hook in result.programs[name][_WITH]["hooks"]))
    reasons = {}
    rows = []
    for hook in hooks:
        row = [f"`{hook}`" + (" (extra)" if hook in shown[0].programs[name][_WITH]["extras"] else "")]
        for result in shown:
            facts = result.programs[name][_WITH]
            reason = facts["hooks"].get(hook, "not known")
            if reason:
                row.append(f"{_NO} ({reasons.setdefault(reason, len(reasons) + 1)})")
            else:
                row.append(_YES if not facts["error"] else "not loaded")
        rows.append(row)
    text = f"### {name}\n\n" + table(["hook", *(result.series for result in shown)], rows)
    return text + "".join(f"\n{number}. {reason}" for reason, number in reasons.items()) + ("\n" if reasons else "")


def _bcc(results):
    """Each test with BCC against kernels."""
    found = {}
    for result in results:
        for test in result.tests:
            if test.about == selection.BCC:
                found.setdefault(f"`{test.module}.py::{test.name}`", {})[result.series] = test.outcome
    text = "## BCC\n\n"
    if not found:
        return text + "No tests with BCC were run.\n"
    text += "Debian's tools as they are and programs with our header, compiled with the headers of each kernel.\n\n"
    kernels = [result.series for result in results]
    rows = [[name, *(outcomes.get(series, _OFF) for series in kernels)] for name, outcomes in found.items()]
    return text + table(["test", *kernels], rows)


def _troubles(results):
    failed = [problem for result in results for problem in result.problems()]
    text = "## What did not pass\n\n"
    text += "".join(f"- {problem.partition(chr(10))[0]}\n" for problem in failed) or "Nothing.\n"
    skipped = {}
    for result in results:
        for test in result.tests:
            if test.outcome == "skipped":
                skipped.setdefault((test.about, test.module, test.name, test.reason), []).append(result.series)
    text += "\n## What was skipped\n\n"
    text += "".join(
        f"- {', '.join(kernels)}: {about}: `{module}.py::{name}`: {reason}\n"
        for (about, module, name, reason), kernels in skipped.items()
    )
    return text if skipped else text + "Nothing.\n"
