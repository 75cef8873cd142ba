# SPDX-License-Identifier: Apache-2.0
"""The files that operators copy out of docs/deploy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ebpftrace.agent.metrics import DEFAULT_LISTEN, parse_listen
from ebpftrace.agent.privileges import AUTO
from ebpftrace.cli.main import build_parser
from ebpftrace.programs import find

DEPLOY = Path(__file__).parents[2] / "docs/deploy"
UNIT = DEPLOY / "ebpftrace-agent.service"


@pytest.fixture(scope="module")
def objects():
    """The manifest's objects by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text())}


@pytest.fixture(scope="module")
def pod(objects):
    return objects["DaemonSet"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    return pod["containers"][0]


def settings(name):
    """All values of a setting of the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def parsed(arguments):
    """What the agent's command line makes of them; ends the test when it is wrong usage."""
    return build_parser().parse_args(arguments)


def test_unit_is_understood(tmp_path):
    """Every setting of the unit is known to systemd, which finds nothing wrong with it."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/ebpftrace/bin/ebpftrace", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60, check=False
    )

    assert [] == [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert 0 == done.returncode


def test_unit_runs_the_agent():
    """The unit's command is one that the agent understands, with programs that there are."""
    (start,) = settings("ExecStart")
    options = settings("Environment")[0].strip('"').removeprefix("AGENT_OPTIONS=")
    arguments = start.replace("$AGENT_OPTIONS", options).split()
    args = parsed(arguments[1:])

    assert "agent" == args.command.name
    for name in args.config_names.split(","):
        assert find(name.removesuffix("-trace"))


def test_unit_capabilities():
    """The service has the capabilities that the agent keeps, and no others."""
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert [AUTO] == [set(value.split()) for value in settings(name)]
    # these two take away what the agent needs
    assert [] == settings("ProtectKernelLogs") + settings("ProtectProc")


def test_unit_lets_it_finish():
    """The service manager waits longer than the agent takes to send what it has."""
    (seconds,) = settings("TimeoutStopSec")

    assert int(seconds) > parsed(["agent", "x.yaml"]).shutdown_timeout


def test_manifest_kinds(objects):
    """The manifest has what it takes, all in one name space, and the selector finds the pods."""
    daemonset = objects["DaemonSet"]

    assert {"Namespace", "ServiceAccount", "ConfigMap", "DaemonSet"} == set(objects)
    assert {"apps/v1"} == {daemonset["apiVersion"]}
    assert {"ebpftrace"} == {each["metadata"].get("namespace", each["metadata"]["name"]) for each in objects.values()}
    wanted = daemonset["spec"]["selector"]["matchLabels"].items()
    assert wanted <= daemonset["spec"]["template"]["metadata"]["labels"].items()


def test_manifest_references(objects, pod, container):
    """Every name that the pod refers to exists in the manifest."""
    volumes = {volume["name"] for volume in pod["volumes"]}
    ports = {port["name"] for port in container["ports"]}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("liveness", "readiness", "startup")]

    assert objects["ServiceAccount"]["metadata"]["name"] == pod["serviceAccountName"]
    assert [objects["ConfigMap"]["metadata"]["name"]] == [each["configMapRef"]["name"] for each in container["envFrom"]]
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert {"metrics"} == ports == {probe["port"] for probe in probes}
    assert ["/livez", "/healthz", "/livez"] == [probe["path"] for probe in probes]


def test_manifest_privileges(pod, container):
    """The container has the capabilities that the agent keeps, drops all others, and can write nowhere."""
    security = container["securityContext"]

    assert {"drop": ["ALL"], "add": sorted(name.removeprefix("CAP_") for name in AUTO)} == {
        **security["capabilities"],
        "add": sorted(security["capabilities"]["add"]),
    }
    assert (False, False, True) == (
        security["privileged"],
        security["allowPrivilegeEscalation"],
        security["readOnlyRootFilesystem"],
    )
    assert ["run"] == [mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert pod["hostPID"]


def test_manifest_runs_the_agent(objects, pod, container):
    """The container's command is one that the agent understands, listens where the probes ask, and ends in time."""
    names = objects["ConfigMap"]["data"]["PROGRAMS"]
    args = parsed([each.replace("$(PROGRAMS)", names) for each in container["args"]])
    listen = parse_listen(args.listen)

    assert "agent" == args.command.name
    assert ("", container["ports"][0]["containerPort"]) == (listen.host, listen.port)
    assert parse_listen(DEFAULT_LISTEN).port == listen.port
    assert pod["terminationGracePeriodSeconds"] > args.shutdown_timeout
    for name in names.split(","):
        assert find(name.removesuffix("-trace"))


def test_variables(container):
    """A variable used in another's value is defined before it, as Kubernetes wants it."""
    defined = {"PROGRAMS"}
    for variable in container["env"]:
        used = set(re.findall(r"\$\((\w+)\)", variable.get("value", "")))
        assert used <= defined
        defined.add(variable["name"])


@pytest.mark.parametrize("page", ["systemd.md", "kubernetes.md"])
def test_pages(page):
    """The YAML and links of a page are good."""
    text = (DEPLOY / page).read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert yaml.safe_load(block)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DEPLOY / link).exists(), link
