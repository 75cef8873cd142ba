# SPDX-License-Identifier: Apache-2.0
"""Endpoints as people write them: URLs for HTTP; URLs and gRPC's own targets for gRPC.

What is raised here never quotes a user name, a password or a query: some put a key there.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit, urlunsplit

_SCHEMES = {"http": 80, "https": 443}
_TARGETS = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:")
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):(?P<port>[0-9]{1,5})")
_PATH = "v1/traces"


def http_url(text: str, *, append: bool) -> tuple[str, bool]:
    """Check an OTLP/HTTP endpoint.

    Args:
        text: the URL.
        append: it is the base for all signals, so /v1/traces comes behind it.

    Returns:
        The URL to post to, and whether that is TLS.

    Raises:
        ValueError: it is no http or https URL; the text says what to write.
    """
    parts = _split(text)
    if append:
        parts = parts._replace(path=parts.path.rstrip("/") + f"/{_PATH}")
    elif not parts.path:
        parts = parts._replace(path="/")
    return urlunsplit(parts), parts.scheme == "https"


def grpc_target(text: str, *, insecure: bool) -> tuple[str, bool]:
    """Check an OTLP/gRPC endpoint: an http or https URL, host:port, or a target with a name scheme of gRPC's.

    Args:
        text: the endpoint.
        insecure: no TLS where the endpoint does not say it.

    Returns:
        The target for grpcio, and whether to use TLS.

    Raises:
        ValueError: it is none of these; the text says what to write.
    """
    if text.startswith(_TARGETS):
        if any(char.isspace() for char in text) or not text.partition(":")[2].strip("/"):
            raise ValueError(f"{text!r} names nothing behind the scheme; write dns:///host:4317 or unix:///path")
        return text, not insecure
    if "://" not in text:
        found = _HOST_PORT.fullmatch(text)
        if found is None or not 0 < int(found["port"]) < 1 << 16:
            raise ValueError(f"{_shown(text)} is no endpoint; write http://host:4317, or host:4317 for TLS")
        return text, not insecure
    parts = _split(text)
    if parts.path.strip("/") or parts.query:
        raise ValueError(f"gRPC has no paths, and {parts.path!r} is one; write {parts.scheme}://{parts.netloc}")
    host = parts.netloc.rpartition(":")[0] if parts.port else parts.netloc.rstrip(":")
    return f"{host}:{parts.port or _SCHEMES[parts.scheme]}", parts.scheme == "https"


def _split(text: str) -> SplitResult:
    if not text.isascii() or any(char.isspace() or not char.isprintable() for char in text):
        raise ValueError(f"{_shown(text)} has a space or a character that URLs do not have")
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise ValueError(f"{_shown(text)} is no URL ({error}); write http://host:4318") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"{_shown(text)} does not begin with http:// or https://; write http://host:4318")
    if not host or port == 0:
        raise ValueError(f"{_shown(text)} has no {'port above 0' if host else 'host'}; write http://host:4318")
    if parts.username is not None:
        raise ValueError("the URL has a user name in it; put credentials into OTEL_EXPORTER_OTLP_HEADERS instead")
    return parts._replace(fragment="")


def _shown(text: str) -> str:
    return repr(re.sub(r"\?.*", "?…", re.sub(r"//.*@", "//…@", text), flags=re.DOTALL))
