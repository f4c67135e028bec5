"""Who may ask: a page of another site can make a browser send requests to this machine."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

ANY_ADDRESS = "/"  # that no name of a host contains


def names_of(host: str, full_name: str) -> set[str]:
    """The names of a server that listens on ``host``, and ANY_ADDRESS where it goes by any."""
    if host not in ("", "0.0.0.0", "::"):
        return {"localhost", host.lower()}
    machine = socket.gethostname().lower()
    return {ANY_ADDRESS, "localhost", machine, full_name.lower(), f"{machine.partition('.')[0]}.local"}


def is_served(header: str, names: set[str]) -> bool:
    """Tell a server's own names from those that another site has pointed at it (DNS rebinding).

    Args:
        header: the Host of a request, with a port or without.
        names: see `names_of`.
    """
    try:
        name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
        return name in names or ipaddress.ip_address(name).is_loopback or ANY_ADDRESS in names
    except ValueError:  # neither a name of ours nor an address
        return False


def is_same_site(origin: str | None, host: str) -> bool:
    """Tell requests of the server's own page, and of no page at all, from those of other sites.

    Args:
        origin: the Origin of a request, where it has one; ``null`` hides it.
        host: the Host of the same request.
    """
    return origin is None or origin.partition("://")[2].lower() == host.lower()
