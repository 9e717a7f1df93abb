"""A fake of AWS on this machine, at the level of the wire: what AWS's own SDK talks to, unchanged.

moto's server keeps instances, images, subnets and tags. In front of it stands a gate that adds what moto lacks: limits
of capacity, tokens that are honoured, capacity reservations and blocks, spot interruptions, lists that lag behind,
regions that fail, and machines that are processes of this machine. `python -m caudal.providers.aws_fake --help` runs
it; `launcher.start` does so from a program; `/_caudal/` is how a demonstration or a test drives it.

It is for demonstrations and tests, and what it does not know of AWS it refuses. Only this package imports moto.
"""
