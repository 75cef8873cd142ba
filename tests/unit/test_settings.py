# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import logging
import re
from dataclasses import fields
from pathlib import Path

import pytest

import ebpftrace
from ebpftrace.errors import ConfigError
from ebpftrace.settings import _PARSERS, Settings, resolve, variable

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_defaults():
    """Nothing given and nothing in the environment: the defaults."""
    assert Settings() == resolve({}, {})


def test_precedence():
    """A given value wins over the environment, the environment over the default."""
    environment = {"EBPFTRACE_RING_KIB": "64", "EBPFTRACE_SERVICE_NAME": "from the environment"}
    settings = resolve({"ring_kib": 128}, environment)

    assert (128, "from the environment") == (settings.ring_kib, settings.service_name)
    assert Settings().min_off_cpu_us == settings.min_off_cpu_us


def test_process_environment(monkeypatch):
    """The environment is the process's."""
    monkeypatch.setenv("EBPFTRACE_RING_KIB", "64")

    assert 64 == resolve({}).ring_kib


def test_every_setting_has_a_variable():
    """Every setting can be given in the environment."""
    assert {field.name for field in fields(Settings)} == set(_PARSERS)
    assert "EBPFTRACE_MIN_OFF_CPU_US" == variable("min_off_cpu_us")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("programs", "sched", ("sched",)),
        ("programs", " sched, exec ,", ("sched", "exec")),
        ("enable", "", ()),
        ("enable", "sampled", ("sampled",)),
        ("otel_context", "no", False),
        ("extras", "0", False),
        ("exec_roots", "/bin/sh,bash", ("/bin/sh", "bash")),
        ("breakdown", "false", False),
        ("breakdown", "NO", False),
        ("breakdown", "", False),
        ("disabled", "1", True),
        ("disabled", " On ", True),
        ("min_off_cpu_us", "0", 0),
        ("ring_kib", "4", 4),
        ("service_name", "my kernel", "my kernel"),
    ],
)
def test_parsing(name, text, value):
    """Each variable is read as its setting's kind of value."""
    assert value == getattr(resolve({}, {variable(name): text}), name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ring_kib", "3"),
        ("ring_kib", "2"),
        ("ring_kib", "2097152"),
        ("ring_kib", "x"),
        ("min_off_cpu_us", "-1"),
        ("min_off_cpu_us", "1.5"),
        ("min_off_cpu_us", "100000000000000000"),
        ("breakdown", "maybe"),
        ("service_name", ""),
        ("programs", "nothing"),
        ("programs", ""),
        ("programs", " , "),
        ("enable", "sched,nothing"),
        ("enable", "sched,sampled"),
        ("programs", "sampled"),
        ("exec_roots", "x" * 64),
    ],
)
def test_wrong_environment(caplog, name, text):
    """A wrong value in the environment is one warning that names the variable, and the default."""
    with caplog.at_level(logging.WARNING, "ebpftrace"):
        settings = resolve({}, {variable(name): text})

    assert Settings() == settings
    [record] = caplog.records
    assert f"{variable(name)}='{text}' is ignored: " in record.getMessage()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ring_kib", 3),
        ("ring_kib", "64"),
        ("min_off_cpu_us", -1),
        ("min_off_cpu_us", 10**17),
        ("service_name", ""),
        ("programs", ("nothing",)),
        ("programs", ()),
        ("enable", ("sched", "nothing")),
        ("enable", ("sampled", "sched")),
        ("programs", ("sampled",)),
        ("exec_roots", ("x" * 64,)),
    ],
)
def test_wrong_value(name, value):
    """A wrong value in a call is a ConfigError that names the setting and what it was."""
    with pytest.raises(ConfigError, match=name) as caught:
        resolve({name: value}, {})
    assert repr(value) in str(caught.value)


def test_unknown_setting():
    """A setting that does not exist is a ConfigError that has those that do."""
    with pytest.raises(ConfigError, match=r"no setting 'speed'.*min_off_cpu_us"):
        resolve({"speed": 1}, {})


def test_page():
    """The page of the settings has each with its variable and its default, in the order of the table."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+?) \|", PAGE.read_text(), re.MULTILINE)
    defaults = {name: None if text == "none" else text.strip("`") for name, _, text in rows}
    parsed = {name: Settings.__dataclass_fields__[name].default for name in defaults}
    for name, text in defaults.items():
        if text is not None:
            assert parsed[name] == _PARSERS[name](text), name
        else:
            assert not parsed[name], name

    assert [(field.name, variable(field.name)) for field in fields(Settings)] == [row[:2] for row in rows]


def test_arguments():
    """Every setting is an argument of start()."""
    assert [field.name for field in fields(Settings)] == list(inspect.signature(ebpftrace.start).parameters)
