"""Machines from EC2, through AWS's own SDK.

`provider` is the port; `launch` and `rows` turn our words into EC2's and back, purely; `errors` does so for what goes
wrong. Only this package imports boto3. Knows nothing about nodes, gangs, or why a machine is wanted.
"""
