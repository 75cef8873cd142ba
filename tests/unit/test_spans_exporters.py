# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import sys

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from ebpftrace.errors import ConfigError, UnsupportedError
from ebpftrace.spans import exporters
from ebpftrace.spans.exporters import exporter_names, find_exporter, load_exporter, load_exporters


@pytest.fixture(autouse=True)
def _no_otel_variables(monkeypatch):
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Install a distribution whose metadata declares an entry point."""

    def install(group, name, target):
        info = tmp_path / f"fake_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        (None, ["otlp"]),
        ("", ["otlp"]),
        ("none", []),
        ("None", []),
        ("otlp, console", ["otlp", "console"]),
        ("console,,", ["console"]),
    ],
)
def test_names_are_those_of_the_variable(monkeypatch, variable, names):
    """Unset or empty means otlp, none means none, and commas separate."""
    if variable is not None:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", variable)

    assert exporter_names() == names


def test_default_can_be_nothing():
    """A command with an output of its own needs no exporter unless the variable asks for one."""
    assert exporter_names("none") == []


def test_otlp_is_http_by_default():
    """Without a protocol it is http/protobuf."""
    exporter = load_exporter("otlp")

    assert isinstance(exporter, OTLPSpanExporter)
    exporter.shutdown()


def test_console_is_the_sdks():
    """Names are entry points of the SDK's own group."""
    assert isinstance(load_exporter("console"), ConsoleSpanExporter)


def test_protocol_of_the_signal_beats_the_general_one(monkeypatch):
    """OTEL_EXPORTER_OTLP_TRACES_PROTOCOL comes first."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")

    assert find_exporter("otlp").name == "otlp_proto_http"


def test_grpc_is_found_when_asked_for(monkeypatch, distribution):
    """The protocol grpc is the exporter with the SDK's name for it."""
    distribution("opentelemetry_traces_exporter", "otlp_proto_grpc", "somewhere:Exporter")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")

    assert find_exporter("otlp").name == "otlp_proto_grpc"


def test_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    """Without any OTLP exporter the message is the pip command."""
    monkeypatch.setattr(exporters, "entry_points", lambda **_: ())

    with pytest.raises(UnsupportedError, match=r"pip install 'ebpftrace\[otlp\]'"):
        load_exporter("otlp")


def test_package_that_does_not_import_is_missing_too(monkeypatch, distribution):
    """An exporter whose own dependency is gone is reported like one that is not there."""
    distribution("opentelemetry_traces_exporter", "broken", "ebpftrace_nonexistent_module:Exporter")

    with pytest.raises(UnsupportedError, match="ebpftrace_nonexistent_module"):
        load_exporter("broken")


def test_exporter_that_refuses_its_settings(monkeypatch, tmp_path, distribution):
    """An exporter that raises at construction is a matter of its variables."""
    (tmp_path / "fussy_exporter.py").write_text("def Exporter():\n    raise ValueError('no endpoint')\n")
    distribution("opentelemetry_traces_exporter", "fussy", "fussy_exporter:Exporter")

    with pytest.raises(ConfigError, match=r"fussy refused its settings: no endpoint; check the OTEL_EXPORTER_"):
        load_exporter("fussy")
    sys.modules.pop("fussy_exporter", None)


def test_unknown_name_lists_the_known_ones():
    """A typing error is answered with what is installed."""
    with pytest.raises(ConfigError, match=r"'oltp', which is not installed; known here: console, none, otlp"):
        load_exporter("oltp")


def test_unknown_protocol_says_which_variable(monkeypatch):
    """The variable to mend is in the message."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")

    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'.*http/protobuf and grpc"):
        load_exporter("otlp")


def test_list_loads_what_it_can_and_warns_once_about_the_rest(monkeypatch, caplog):
    """One wrong name of several is one warning without a traceback; the others export."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "oltp,console")

    with caplog.at_level(logging.WARNING):
        loaded = load_exporters()

    assert [type(exporter) for exporter in loaded] == [ConsoleSpanExporter]
    assert [record.exc_info for record in caplog.records] == [None]
