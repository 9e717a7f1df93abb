"""The team's own machines, over SSH (asyncssh, here alone): one claim file on each says whose it is."""

from caudal.providers.hosts.provider import HostsProvider

__all__ = ["HostsProvider"]
