"""Kills, hangs and full disks by the dozen, against the promise that the same command goes on and nothing is lost.

    python -m tests.soak kills --kills 40 --minutes 60      random signals at random moments, on evaluation, annotation, training
    python -m tests.soak kills --kills 20 --only evaluation --processes 2 --signals SIGTERM
    python -m tests.soak disk                               a full disk, on a tmpfs; needs root
    python -m tests.soak slurm --folder DIR --preempting P  the batch files under SLURM; DIR is seen by two nodes

Not part of the suite, which runs a few rounds of it (tests/test_soak.py). It takes hours where it is let, and stops at the
number of kills or the minutes given. Every round starts a command in a new folder, sends it signals one run after the other,
lets the same command go on to its end, and compares the folder with that of a run that nobody disturbed: records and metrics
but for the throughput, annotations, the bytes of trained models. An evaluation goes on with another number of processes. A
process that is there `workload.END_WITHIN` seconds after a signal counts as hanging, one that outlives its starter by that as
left behind. A line a kill, a summary at the end, exit code 1 where anything was lost. `--folder` keeps what was made.
"""
