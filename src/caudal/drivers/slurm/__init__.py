"""Gangs as Slurm jobs: sbatch, squeue and scancel, called here or on a login host over SSH.

driver.py    the port: what is asked of a site
hosts.py     the seam: a question goes to the desk, in this process or over ssh
desk.py      where Slurm's commands and the shared folder are: starts, looks, ends, under locks
status.py    what is true of a gang, from its folder and its job
queue.py     squeue's rows, and what a job's state says
submit.py    what sbatch is told
commands.py  calling Slurm's commands, with time-outs; their errors as ours
keeper.py    what the job runs: fences, then the same shim as the local driver's
check.py     versions and settings, for `caudal doctor`
"""
