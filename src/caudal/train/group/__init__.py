"""Inside a site: one copy of the model over several processes, with torch's DDP or FSDP2, on CPUs or CUDA."""
