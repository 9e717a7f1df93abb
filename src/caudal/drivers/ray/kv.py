"""The head's key-value store, as the code on a site uses it: the one place that touches Ray's internal calls.

Keys are written once or deleted, never changed in place, so that who came first is decided by the head alone; but for
a gang's beats, which only it writes.
A message is what the driver uploaded through the Jobs API as a package: it lies in the same store, in memory.
Calls block until the head answers; without contact that may take Ray a minute. Knows nothing about gangs.
"""

from __future__ import annotations

from ray.experimental import internal_kv

NAMESPACE = "caudal"


def put_once(key: str, value: str) -> bool:
    """Write it unless it is there; whether it was this call that wrote it."""
    return not internal_kv._internal_kv_put(key, value, overwrite=False, namespace=NAMESPACE)


def put(key: str, value: str) -> None:
    """Write it, whatever is there."""
    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=NAMESPACE)


def delete(key: str) -> None:
    """Forget it; one that is not there is fine."""
    internal_kv._internal_kv_del(key, namespace=NAMESPACE)


def get(key: str) -> str | None:
    """What is written there; None where nothing is."""
    found = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
    return None if found is None else bytes(found).decode()


def keys(prefix: str) -> list[str]:
    """The keys below a prefix, sorted."""
    return sorted(bytes(k).decode() for k in internal_kv._internal_kv_list(prefix, namespace=NAMESPACE))


def message(name: str) -> bytes | None:
    """What the driver sent under that name; None where it sent nothing, or it was dropped."""
    found = internal_kv._internal_kv_get(f"gcs://{name}")
    return None if found is None else bytes(found)


def drop_message(name: str) -> None:
    """Forget a message."""
    internal_kv._internal_kv_del(f"gcs://{name}")


def messages(prefix: str) -> list[str]:
    """The names of the messages that begin so, sorted."""
    found = internal_kv._internal_kv_list(f"gcs://{prefix}")
    return sorted(bytes(key).decode().removeprefix("gcs://") for key in found)
