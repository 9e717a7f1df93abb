"""Gangs on Ray: one Ray cluster per site, driven through its Jobs API.

    driver     ports.Driver, in the control process; speaks HTTP only, and never imports Ray
    jobs       the calls of the Jobs API, with bounded times
    records    what a job's list entry and its supervisor's records say of a gang
    package    the code that is sent to a site, so that both ends always agree
    commands   `ray start` for a head and for the nodes that join it; which Ray is new enough

and what runs on the site itself, from that package, with the site's own Ray:

    supervisor  one per gang, the job's entrypoint on the head: fences, places, watches, ends
    keeper      one per gang, an actor on the node: holds the shim's life in its hand
    shim        starts the gang's processes, and ends them when the keeper falls silent
    kv          the head's key-value store: fences, messages
    names       what both ends call things
"""
