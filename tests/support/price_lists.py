"""Small price lists in the shapes of the clouds' and others' own, written for these tests."""

from __future__ import annotations

import json
from typing import Any


def aws_product(sku: str, instance: str, **attributes: Any) -> dict[str, Any]:
    """One product of AWS's list: Linux, shared, in us-east-1."""
    told = {
        "servicecode": "AmazonEC2",
        "location": "US East (N. Virginia)",
        "locationType": "AWS Region",
        "instanceType": instance,
        "vcpu": "192",
        "memory": "2,048 GiB",
        "networkPerformance": "3200 Gigabit",
        "tenancy": "Shared",
        "operatingSystem": "Linux",
        "capacitystatus": "Used",
        "preInstalledSw": "NA",
        "marketoption": "OnDemand",
        "regionCode": "us-east-1",
    }
    return {"sku": sku, "productFamily": "Compute Instance", "attributes": told | attributes}


def aws_term(sku: str, code: str, hourly: str, up_front: str = "", **attributes: str) -> dict[str, Any]:
    """One term of a SKU, as AWS nests it."""
    name = f"{sku}.{code}"
    prices = {f"{name}.HRS": {"unit": "Hrs", "pricePerUnit": {"USD": hourly}, "appliesTo": []}}
    if up_front:
        prices[f"{name}.FEE"] = {"unit": "Quantity", "pricePerUnit": {"USD": up_front}, "appliesTo": []}
    return {
        name: {"offerTermCode": code, "sku": sku, "priceDimensions": prices, "termAttributes": attributes}
    }


def aws_list(products: list[dict[str, Any]], on_demand: dict[str, Any], reserved: dict[str, Any]) -> str:
    """A whole file, indented as AWS indents."""
    told = {
        "formatVersion": "v1.0",
        "disclaimer": "prices change",
        "offerCode": "AmazonEC2",
        "version": "20261120195643",
        "publicationDate": "2026-11-20T19:56:43Z",
        "products": {p["sku"]: p for p in products},
        "terms": {"OnDemand": on_demand, "Reserved": reserved, "Other": {"X": [1, {"y": None}]}},
        "attributesList": {},
    }
    return json.dumps(told, indent=2, separators=(",", " : "))


def usual_aws() -> str:
    """Two machines with chips, one without, a Windows one and a capacity block."""
    years = {"LeaseContractLength": "3yr", "OfferingClass": "standard", "PurchaseOption": "Partial Upfront"}
    products = [
        aws_product("AAA", "p5.48xlarge", gpu="8"),
        aws_product("BBB", "trn1.32xlarge", vcpu="128", memory="512 GiB"),
        aws_product("CCC", "m7i.large", vcpu="2", memory="8 GiB", networkPerformance="Up to 12.5 Gigabit"),
        aws_product("DDD", "p5.48xlarge", operatingSystem="Windows"),
        aws_product("EEE", "p5.48xlarge", marketoption="CapacityBlock"),
        {"sku": "FFF", "productFamily": "Storage", "attributes": {"volumeType": "gp3"}},
    ]
    on_demand = {
        "AAA": aws_term("AAA", "JRT", "55.0400000000"),
        "BBB": aws_term("BBB", "JRT", "21.5000000000"),
        "CCC": aws_term("CCC", "JRT", "0.1008000000"),
        "DDD": aws_term("DDD", "JRT", "60.0000000000"),
        "EEE": aws_term("EEE", "JRT", "0.0000000000"),
    }
    reserved = {
        "AAA": aws_term("AAA", "PART", "10.0000000000", "262800", **years)
        | aws_term("AAA", "CONV", "12.0", "", **(years | {"OfferingClass": "convertible"})),
    }
    return aws_list(products, on_demand, reserved)


def azure_item(sku: str = "Standard_ND96isr_H100_v5", price: Any = 98.32, **changes: Any) -> dict[str, Any]:
    """One item of Azure's list: an H100 machine by the hour in East US."""
    told = {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": price,
        "unitPrice": price,
        "armRegionName": "eastus",
        "location": "US East",
        "effectiveStartDate": "2026-02-01T00:00:00Z",
        "meterName": "ND96isrH100v5",
        "productName": "Virtual Machines NDsrH100v5 Series",
        "skuName": "ND96isrH100v5",
        "serviceName": "Virtual Machines",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": sku,
    }
    return told | changes


def azure_page(items: list[dict[str, Any]], following: str | None = None) -> str:
    """One page."""
    told = {"BillingCurrency": "USD", "CustomerEntityId": "Default", "Items": items, "Count": len(items)}
    return json.dumps(told | {"NextPageLink": following})


SKYPILOT = """\
InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone
p5.48xlarge,H100,8.0,192.0,2048.0,"{'Gpus': [{'Name': 'H100', 'Count': 8}]}",55.04,21.5,us-east-1,use1-az1
p5.48xlarge,H100,8.0,192.0,2048.0,"{'Gpus': [{'Name': 'H100', 'Count': 8}]}",55.04,20.78,us-east-1,use1-az2
p4d.24xlarge,A100,8.0,96.0,1152.0,,21.95764,,us-east-1,use1-az1
trn1.32xlarge,Trainium,16.0,128.0,512.0,,21.5,6.9,us-west-2,usw2-az4
m7i.large,,,2.0,8.0,,0.1008,0.04,us-east-1,use1-az1
,tpu-v5e-8,1,,,tpu-v5e-8,9.6,3.0,us-east5,us-east5-b
"""

GPUHUNT = """\
instance_name,location,price,cpu,memory,gpu_vendor,gpu_count,gpu_name,gpu_memory,spot,disk_size
BM.GPU.H100.8,us-ashburn-1,80.0,112,2048.0,nvidia,8,H100,80.0,False,
gpu-8x-a100,eu-north1,15.2,96,880.0,nvidia,8,A100,40.0,False,
gpu-8x-a100-80,eu-north1,19.2,96,1760.0,nvidia,8,A100,80.0,True,
cpu-only,eu-north1,0.2,4,16.0,,0,,,False,
"""
