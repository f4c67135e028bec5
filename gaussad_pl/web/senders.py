"""Check where requests come from, as a page of another site can make a browser send requests to this machine."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

ANY_ADDRESS = "/"  # not a valid host name


def names_of(host: str, full_name: str) -> set[str]:
    """Return the names of a server that listens on ``host``, with `ANY_ADDRESS` if it listens on all addresses.

    >>> sorted(names_of("parts.example", "parts.example"))
    ['localhost', 'parts.example']
    """
    if host not in ("", "0.0.0.0", "::"):
        return {"localhost", host.lower()}
    machine = socket.gethostname().lower()
    return {ANY_ADDRESS, "localhost", machine, full_name.lower(), f"{machine.partition('.')[0]}.local"}


def is_served(header: str, names: set[str]) -> bool:
    """Check that a request is addressed to the server by one of its own names.

    Another site may have a name of its own resolve to this server (DNS rebinding).

    Args:
        header: Host header of the request, with or without a port.
        names: see `names_of`.

    >>> [is_served(host, {"localhost"}) for host in ("localhost:7860", "127.0.0.1:7860", "attacker.example")]
    [True, True, False]
    """
    try:
        name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
        return name in names or ipaddress.ip_address(name).is_loopback or ANY_ADDRESS in names
    except ValueError:  # neither a name of ours nor an address
        return False


def is_same_site(origin: str | None, host: str) -> bool:
    """Check that a request comes from the server's own page, or from no page at all.

    Args:
        origin: Origin header of the request, if any; ``null`` if the browser hides it.
        host: Host header of the same request.
    """
    return origin is None or origin.partition("://")[2].lower() == host.lower()
