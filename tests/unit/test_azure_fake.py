"""providers/azure_fake as a product: it starts, runs machines as processes, says no as ARM does, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from caudal.domain.errors import Failed, NotAllowed
from caudal.domain.fleet import Offer, ProviderSpec
from caudal.providers.azure import AzureProvider, FakeCredential
from caudal.providers.azure_fake import SUBSCRIPTION, FakeAzure, start
from caudal.simulate.kernel import Kernel
from tests.support.azure import GROUP, IMAGE, LOCATION, SCOPE, SITE, SIZE, SUBNET, azure_provider, fake_azure

VERSION = {"api-version": "2024-07-01"}
TOKEN = {"Authorization": "Bearer anything"}
VM = f"{SCOPE}/Microsoft.Compute/virtualMachines/one"
NIC = f"{SCOPE}/Microsoft.Network/networkInterfaces/one-nic"

SCRIPT = """#!/bin/sh
echo "$CAUDAL_INSTANCE_ID" > id
setsid sh -c 'echo $$ > far; exec sleep 600' &
sh -c 'trap "" TERM; echo $$ > deaf; while :; do sleep 1; done' &
echo $$ > near
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b"Z" not in Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1]


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 15
    while not (found := holds()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)
    return found


@pytest.fixture
def own(tmp_path: Path) -> Iterator[FakeAzure]:
    fake = start(processes=True, work_dir=tmp_path, arguments=["--boot-s", "0.05", "--delete-s", "0.05"])
    yield fake
    fake.stop()


def with_script(fake: FakeAzure, script: str) -> AzureProvider:
    spec = ProviderSpec("az", "azure", endpoint=fake.url, account=SUBSCRIPTION, resource_group=GROUP)

    def user_data(lease_id: str, offer: Offer) -> str:
        return script

    credential = FakeCredential(fake.token)
    return AzureProvider(spec, [SITE], [], "f", user_data, Kernel(), credential=credential)


def pids(folder: Path) -> list[int]:
    names = ("far", "deaf")
    until(lambda: all((folder / n).is_file() and (folder / n).read_text().strip() for n in names))
    return [int((folder / n).read_text()) for n in names]


def test_a_machine_is_a_process_that_ends_with_all_it_started(own: FakeAzure, tmp_path: Path) -> None:
    provider = with_script(own, SCRIPT)
    provider.acquire("lease-1", provider.offers()[0], "t")
    name = provider.machines()[0].id
    started = pids(tmp_path / name)
    assert (tmp_path / name / "id").read_text().strip() == name
    shim = own.admin("state")["machines"][0]["pid"]
    assert all(alive(pid) for pid in [*started, shim])
    provider.release(name)
    until(lambda: not any(alive(pid) for pid in [*started, shim]))
    until(lambda: not provider.machines())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_fake(own: FakeAzure, tmp_path: Path, number: signal.Signals) -> None:
    provider = with_script(own, SCRIPT)
    provider.acquire("lease-1", provider.offers()[0], "t")
    started = pids(tmp_path / provider.machines()[0].id)
    own.process.send_signal(number)
    own.process.wait(15)
    until(lambda: not any(alive(pid) for pid in started))


def test_who_has_not_its_token_runs_nothing(own: FakeAzure) -> None:
    spec = ProviderSpec("az", "azure", endpoint=own.url, account=SUBSCRIPTION, resource_group=GROUP)
    stranger = AzureProvider(
        spec, [SITE], [], "f", lambda *_: SCRIPT, Kernel(), credential=FakeCredential("guessed")
    )
    with pytest.raises(NotAllowed):
        stranger.machines()
    assert httpx.get(f"{own.url}/_caudal/state").status_code == 401
    assert own.token and own.token not in repr(own)
    assert own.token not in Path(f"/proc/{own.process.pid}/cmdline").read_text()


def test_no_web_page_steers_it(fake: FakeAzure) -> None:
    answer = httpx.post(f"{fake.url}/_caudal/reset", headers={"Origin": "https://evil.test"}, content="{}")
    assert answer.status_code == 403


@pytest.mark.parametrize("name", ["../up", "", "a" * 80, "a/b"])
def test_names_are_names(fake: FakeAzure, name: str) -> None:
    with pytest.raises(Failed, match="no name"):
        fake.admin("plant", {"kind": "vm", "group": GROUP, "name": name, "body": vm_body()})


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    fake = start()
    assert fake.process.stdin is not None
    fake.process.stdin.close()
    assert fake.process.wait(15) == 0
    fake.stop()


def test_a_cloud_config_gives_an_idle_machine(own: FakeAzure) -> None:
    provider = with_script(own, "#cloud-config\nruncmd: []\n")
    provider.acquire("lease-1", provider.offers()[0], "t")
    pid = until(lambda: own.admin("state")["machines"][0]["pid"])
    time.sleep(0.1)
    assert alive(pid)


def test_custom_data_that_cannot_run_leaves_the_machine_up(own: FakeAzure, tmp_path: Path) -> None:
    provider = with_script(own, "#!/no/such/interpreter\n")
    provider.acquire("lease-1", provider.offers()[0], "t")
    console = tmp_path / provider.machines()[0].id / "console.log"
    until(lambda: console.is_file() and "cannot be run" in console.read_text())
    assert own.admin("state")["machines"][0]["pid"]


def test_a_port_that_is_taken() -> None:
    fake = fake_azure()
    with pytest.raises(Failed, match="did not start"):
        start(port=int(fake.url.rpartition(":")[2]))


def ask(method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    url = fake_url() + path
    content = None if body is None else json.dumps(body)
    return httpx.request(
        method, url, params=VERSION, headers={**TOKEN, **headers}, content=content, timeout=10
    )


def fake_url() -> str:
    return _fake[0].url


_fake: list[FakeAzure] = []


@pytest.fixture
def fake() -> FakeAzure:
    _fake[:] = [fake_azure()]
    return _fake[0]


def vm_body(**changes: Any) -> dict[str, Any]:
    publisher, offer, sku, version = IMAGE.split(":")
    image = {"publisher": publisher, "offer": offer, "sku": sku, "version": version}
    properties = {
        "hardwareProfile": {"vmSize": SIZE},
        "storageProfile": {
            "imageReference": image,
            "osDisk": {"name": "one-os", "createOption": "FromImage"},
        },
        "osProfile": {"computerName": "one", "adminUsername": "me", "adminPassword": "x", "customData": ""},
        "networkProfile": {"networkInterfaces": [{"id": NIC}]},
    }
    return {"location": LOCATION, "properties": {**properties, **changes}}


def put_nic() -> None:
    inner = {"ipConfigurations": [{"name": "a", "properties": {"subnet": {"id": SUBNET}}}]}
    assert ask("PUT", NIC, {"location": LOCATION, "properties": inner}).status_code == 201


def test_create_answers_201_with_an_operation_that_ends(fake: FakeAzure) -> None:
    fake.admin("times", {"boot_s": 1.0})
    put_nic()
    answer = ask("PUT", VM, vm_body())
    assert answer.status_code == 201
    assert answer.json()["properties"]["provisioningState"] == "Creating"
    operation = answer.headers["Azure-AsyncOperation"].removeprefix(fake.url)
    assert ask("GET", operation).json()["status"] == "InProgress"
    until(lambda: ask("GET", operation).json()["status"] == "Succeeded")
    assert ask("GET", VM).json()["properties"]["provisioningState"] == "Succeeded"
    assert "customData" not in ask("GET", VM).text
    assert ask("DELETE", VM).status_code == 202
    until(lambda: ask("GET", VM).status_code == 404)
    assert ask("DELETE", VM).status_code == 204
    assert fake.admin("state")["nics"] == ["one-nic"]  # it was not asked to go with the machine


def test_a_second_put(fake: FakeAzure) -> None:
    put_nic()
    ask("PUT", VM, vm_body())
    assert ask("PUT", VM, vm_body()).status_code == 200
    assert ask("PUT", VM, vm_body(), **{"If-None-Match": "*"}).status_code == 412
    linux = {"disablePasswordAuthentication": True, "ssh": {"publicKeys": [{"keyData": "another"}]}}
    changed = {**vm_body()["properties"]["osProfile"], "linuxConfiguration": linux}
    answer = ask("PUT", VM, vm_body(osProfile=changed))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "PropertyChangeNotAllowed")
    assert fake.admin("state")["made"] == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"hardwareProfile": {"vmSize": "Standard_Huge"}}, "InvalidParameter"),
        ({"storageProfile": {}}, "InvalidParameter"),
        ({"osProfile": {}}, "InvalidParameter"),
        ({"osProfile": {"computerName": "a", "adminUsername": "b"}}, "InvalidParameter"),
        ({"networkProfile": {"networkInterfaces": [{"id": f"{NIC}-2"}]}}, "InvalidResourceReference"),
        ({"capacityReservation": {"capacityReservationGroup": {"id": "/none"}}}, "ResourceNotFound"),
    ],
)
def test_what_arm_would_not_take(fake: FakeAzure, change: dict[str, Any], code: str) -> None:
    put_nic()
    answer = ask("PUT", VM, vm_body(**change))
    assert answer.json()["error"]["code"] == code
    assert fake.admin("state")["machines"] == []


def test_an_interface_or_a_disk_in_use_stays(fake: FakeAzure) -> None:
    put_nic()
    ask("PUT", VM, vm_body())
    assert ask("DELETE", NIC).json()["error"]["code"] == "NicInUse"
    disk = f"{SCOPE}/Microsoft.Compute/disks/one-os"
    assert ask("DELETE", disk).status_code == 409
    assert ask("GET", disk).json()["managedBy"].lower() == VM.lower()


def test_who_does_not_say_who_they_are_gets_nothing(fake: FakeAzure) -> None:
    assert httpx.get(f"{fake.url}{VM}", params=VERSION).status_code == 401
    assert httpx.get(f"{fake.url}{VM}", headers=TOKEN).json()["error"]["code"] == "MissingApiVersionParameter"


@pytest.mark.parametrize(("body", "status"), [("[]", 400), ("{", 400), ("x" * (5 << 20), 413)])
def test_bodies_that_are_none(fake: FakeAzure, body: str, status: int) -> None:
    answer = httpx.put(f"{fake.url}{VM}", params=VERSION, headers=TOKEN, content=body)
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("verb", "body"),
    [("fault", {"kind": "odd"}), ("capacity", {}), ("evict", {}), ("unknown", {}), ("page", {"size": "x"})],
)
def test_the_admins_door_says_what_is_wrong(fake: FakeAzure, verb: str, body: dict[str, Any]) -> None:
    with pytest.raises(Failed, match="refused"):
        fake.admin(verb, body)


def test_regions_and_operations_that_are_not_there(fake: FakeAzure) -> None:
    names = [r["name"] for r in ask("GET", f"/subscriptions/{SUBSCRIPTION}/locations").json()["value"]]
    assert LOCATION in names
    scope = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/locations/{LOCATION}"
    assert ask("GET", f"{scope}/operations/none").status_code == 404
    assert ask("GET", "/subscriptions/s/providers/Microsoft.Web/sites").status_code == 404


def test_a_machine_over_the_reservations_count_is_let_in_as_azure_does(fake: FakeAzure) -> None:
    group = f"{SCOPE}/Microsoft.Compute/capacityReservationGroups/g"
    rows = [{"name": "one", "size": SIZE, "capacity": 0}]
    fake.admin("reserve", {"group_id": group, "location": LOCATION, "reservations": rows})
    put_nic()
    inside = {"capacityReservation": {"capacityReservationGroup": {"id": group}}}
    assert ask("PUT", VM, vm_body(**inside)).status_code == 201
    view = ask("GET", f"{group}/capacityReservations/one?$expand=instanceView&api-version=2024-07-01").json()
    assert view["properties"]["virtualMachinesAssociated"]
    assert azure_provider(fake, Kernel(), markets=("on_demand",)).machines() == []
