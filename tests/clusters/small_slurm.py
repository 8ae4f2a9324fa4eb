"""A real Slurm of two nodes on this machine, with a key, ports and folders of its own, stopped afterwards.

`python tests/clusters/small_slurm.py COMMAND …` runs a command within one. Debian: `apt-get install slurm-wlm munge`.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")

# Requeued jobs wait until their old credential has expired, which is 120 s by default. The nodes claim more CPUs than
# there are, so that jobs fit which ask for eight.
CONFIGURATION = """
ClusterName=small
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
JobRequeue=1
ReturnToService=2
KillWait=15
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
NodeName=node1 NodeHostname={host} NodeAddr={address} Port={ports[1]} CPUs=16 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr={address} Port={ports[2]} CPUs=16 State=UNKNOWN
PartitionName=all Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing():
    """Why no Slurm can be started here, or None."""
    absent = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "slurmd and munged are started as root only"
    if _address() is None:
        return "Slurm needs an address other than the loopback's"
    return None


@contextlib.contextmanager
def small_slurm(folder):
    """Start the daemons, wait until the nodes are idle, and end them when done.

    Args:
        folder: For their state and logs; new.

    Yields:
        Environment for the commands of Slurm.
    """
    for name in ("state", "spool_node1", "spool_node2"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(256))
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=folder,
            host=socket.gethostname(),
            address=_address(),
            ports=_free_ports(3),
        )
    )
    environment = os.environ | {"SLURM_CONF": str(configuration), "PATH": _path()}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    commands = (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "node1"], ["slurmd", "-D", "-N", "node2"])
    with contextlib.ExitStack() as running:
        for command in commands:
            log = running.enter_context((folder / f"{command[0]}.out").open("ab"))
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            running.callback(_end, process)
            if command is munged:
                _wait(folder, (folder / "munge.socket").exists, "munged opens its socket")
        _wait(folder, lambda: _num_idle(environment) == 2, "both nodes are idle")
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user=root"], env=environment, check=False)
            _wait(folder, lambda: _num_idle(environment) == 2, "all jobs have ended")


def _num_idle(environment):
    command = ["sinfo", "--noheader", "--Node", "--format=%t"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return found.stdout.split().count("idle")


def _wait(folder, is_so, what):
    end = time.monotonic() + 60
    while not is_so():
        if time.monotonic() > end:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.out"))
            raise TimeoutError(f"not so within 60 s: {what}\n{logs}")
        time.sleep(0.1)


def _end(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _path():
    return os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"


def _free_ports(number):
    with contextlib.ExitStack() as held:
        made = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in made:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in made]


def _address():
    """The address that packets to elsewhere would leave from; none are sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        try:
            made.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = made.getsockname()[0]
    return None if address.startswith("127.") else address


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder, small_slurm(Path(folder) / "slurm") as environment:
        sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)
