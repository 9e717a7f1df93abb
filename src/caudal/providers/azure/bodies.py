"""What we send: names, tags, and the bodies of a network interface and a virtual machine, as ARM wants them.

Pure. A machine's name comes from its lease, so that asking twice is asking once. Knows nothing of HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from caudal.domain.errors import NotOffered, UsageError
from caudal.domain.fleet import Market, Offer, SiteSpec

FLEET, LEASE, SITE, OFFER = "caudal-fleet", "caudal-lease", "caudal-site", "caudal-offer"
"""The tags of everything that we make."""

USER = "caudal"
MAX_CUSTOM_DATA_BYTES = 65_535  # Azure's limit on custom data, 64 KB before encoding; from memory 2026-11
DIGEST_CHARACTERS = 20


def vm_name(fleet: str, lease_id: str) -> str:
    """At most 64 characters, letters, digits and dashes: the bounds of a Linux machine's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", fleet.lower()).strip("-")[:24] or "fleet"
    digest = hashlib.sha256(f"{fleet}\n{lease_id}".encode()).hexdigest()
    return f"caudal-{slug}-{digest[:DIGEST_CHARACTERS]}"


def nic_name(vm: str) -> str:
    """The machine's only network interface."""
    return f"{vm}-nic"


def disk_name(vm: str) -> str:
    """The machine's only disk."""
    return f"{vm}-os"


def owner_of(name: str) -> str:
    """The machine that an interface or a disk of ours was made for; empty where it is no name of ours."""
    for suffix in ("-nic", "-os"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return ""


def tags(fleet: str, lease_id: str, offer: Offer) -> dict[str, str]:
    """Whose it is and what it was made for."""
    return {FLEET: fleet, LEASE: lease_id, SITE: offer.site, OFFER: offer.id}


@cache
def throwaway_key() -> str:
    """A public SSH key whose private part nobody has: ARM wants one where passwords are off, and nobody is to log in.
    One for this process, since making one takes a while."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def nic_body(site: SiteSpec, marks: dict[str, str], *, accelerated: bool) -> dict[str, Any]:
    """An interface in the site's subnet, with no public address. Raises UsageError where the site has no subnet."""
    if not site.network:
        raise UsageError(
            f"site {site.name} has no network",
            remedy="`network:` is the subnet's ARM id: /subscriptions/.../virtualNetworks/NAME/subnets/NAME",
        )
    inner = {"subnet": {"id": site.network}, "privateIPAllocationMethod": "Dynamic"}
    return {
        "location": site.region,
        "tags": marks,
        "properties": {
            "enableAcceleratedNetworking": accelerated,
            "ipConfigurations": [{"name": "primary", "properties": inner}],
        },
    }


def vm_body(
    site: SiteSpec, offer: Offer, name: str, marks: dict[str, str], *, nic_id: str, script: str, key: str
) -> dict[str, Any]:
    """A machine that takes its interface and its disk with it when it goes. `script` becomes its custom data.
    Raises UsageError, NotOffered where the site's image is no image."""
    data = script.encode()
    if len(data) > MAX_CUSTOM_DATA_BYTES:
        raise UsageError(f"the start script has {len(data)} bytes, Azure takes {MAX_CUSTOM_DATA_BYTES}")
    properties: dict[str, Any] = {
        "hardwareProfile": {"vmSize": offer.machine_type.name},
        "storageProfile": {
            "imageReference": image(site),
            "osDisk": {"name": disk_name(name), "createOption": "FromImage", "deleteOption": "Delete"},
        },
        "osProfile": {
            "computerName": name,
            "adminUsername": USER,
            "customData": base64.b64encode(data).decode(),
            "linuxConfiguration": {
                "disablePasswordAuthentication": True,
                "ssh": {"publicKeys": [{"path": f"/home/{USER}/.ssh/authorized_keys", "keyData": key}]},
            },
        },
        "networkProfile": {
            "networkInterfaces": [{"id": nic_id, "properties": {"primary": True, "deleteOption": "Delete"}}]
        },
    }
    if offer.market is Market.SPOT:
        properties |= {"priority": "Spot", "evictionPolicy": "Delete", "billingProfile": {"maxPrice": -1}}
    body: dict[str, Any] = {"location": site.region, "tags": marks, "properties": properties}
    if site.zone:
        body["zones"] = [site.zone]
    return body


def image(site: SiteSpec) -> dict[str, str]:
    """The site's image as ARM names it: PUBLISHER:OFFER:SKU:VERSION, or an id of an image or a gallery's."""
    text = site.image
    lower = text.lower()
    if lower.startswith("/communitygalleries/"):
        return {"communityGalleryImageId": text}
    if lower.startswith("/sharedgalleries/"):
        return {"sharedGalleryImageId": text}
    if text.startswith("/"):
        return {"id": text}
    parts = text.split(":")
    if len(parts) == 4 and all(parts):
        return dict(zip(("publisher", "offer", "sku", "version"), parts, strict=True))
    raise NotOffered(
        f"{text!r} is no image" if text else f"site {site.name} has no image",
        where=f"site {site.name}",
        remedy="`image:` is PUBLISHER:OFFER:SKU:VERSION (`az vm image list`) or an image's ARM id",
    )
