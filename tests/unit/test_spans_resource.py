# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket

import pytest
from opentelemetry.sdk.resources import Resource

from ebpftrace.spans import resource as resource_module
from ebpftrace.spans.resource import SharedResource, kernel_resource


@pytest.fixture(autouse=True)
def _no_otel_variables(monkeypatch):
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)


def test_resource_is_this_hosts_kernel():
    """Host, architecture and kernel release are those of uname, in the semantic conventions' words."""
    attributes = kernel_resource().attributes

    assert attributes["service.name"] == "kernel"
    assert attributes["host.name"] == socket.gethostname()
    assert attributes["os.type"] == "linux"
    assert attributes["os.version"] == os.uname().release
    assert os.uname().version in attributes["os.description"]


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")])
def test_architecture_is_named_by_the_conventions(monkeypatch, machine, arch):
    """host.arch is amd64 and not x86_64; what the conventions do not know keeps its name."""
    uname = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*uname[:4], machine)))

    assert kernel_resource().attributes["host.arch"] == arch


def test_environment_describes_the_deployment_but_not_the_service(monkeypatch):
    """OTEL_RESOURCE_ATTRIBUTES wins over detection, except for service.*, which is the application's."""
    monkeypatch.setenv(
        "OTEL_RESOURCE_ATTRIBUTES", "host.name=node7,k8s.cluster.name=c,service.name=a,service.version=2"
    )
    monkeypatch.setenv("OTEL_SERVICE_NAME", "checkout")

    attributes = kernel_resource("my-kernel").attributes

    assert attributes["host.name"] == "node7"
    assert attributes["k8s.cluster.name"] == "c"
    assert attributes["service.name"] == "my-kernel"
    assert "service.version" not in attributes


def test_host_id_is_the_machine_id(tmp_path, monkeypatch):
    """host.id comes from /etc/machine-id, without its newline."""
    path = tmp_path / "machine-id"
    path.write_text("0123456789abcdef\n")
    monkeypatch.setattr(resource_module, "_MACHINE_ID", path)

    assert kernel_resource().attributes["host.id"] == "0123456789abcdef"


def test_missing_machine_id_is_no_attribute(tmp_path, monkeypatch):
    """Containers have no machine id, and then no host.id."""
    monkeypatch.setattr(resource_module, "_MACHINE_ID", tmp_path / "none")

    assert "host.id" not in kernel_resource().attributes


def test_shared_resource_is_interchangeable_with_the_sdks():
    """Equal resources hash alike, so that the exporter puts their spans into one group."""
    plain, shared = Resource({"a": 1}), SharedResource({"a": 1})

    assert shared == plain
    assert plain == shared
    assert hash(shared) == hash(plain)
    assert shared != SharedResource({"a": 2})
