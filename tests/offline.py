"""No network: what a test, or a child of one, does with sockets beyond this machine fails at once."""

import ipaddress
import socket
import sys

OWN_NAMES = {"", "localhost", socket.gethostname()}


def block_network():
    """Let this process reach loopback and Unix sockets alone, from now on and for ever.

    The hook sees what Python does with sockets, not what a library does in C.
    """
    sys.addaudithook(_check)


def _check(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host or ""
    if host not in OWN_NAMES and not _is_own(host):
        raise PermissionError(f"tests have no network: {event} {host}")


def _is_own(host):
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
