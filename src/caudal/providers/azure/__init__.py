"""Azure as a provider: virtual machines on demand, spot, and from capacity reservation groups."""

from __future__ import annotations

from caudal.providers.azure.client import FakeCredential
from caudal.providers.azure.provider import AzureProvider
from caudal.providers.azure.quotas import Quota

__all__ = ["AzureProvider", "FakeCredential", "Quota"]
