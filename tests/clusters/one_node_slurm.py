"""A real Slurm of one node, started with a key, ports and folders of its own, and stopped afterwards.

`python tests/clusters/one_node_slurm.py COMMAND …` runs a command within one. Debian: `apt-get install slurm-wlm munge`.
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

# Requeued jobs wait until their old credential has expired, which is 120 s by default.
CONFIGURATION = """
ClusterName=one_node
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
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
NodeName={host} NodeAddr={address} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
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
def one_node_slurm(folder):
    """Start the three daemons, wait until the node is idle, and end them when done.

    Args:
        folder: For their state and logs; new.

    Yields:
        Environment for the commands of Slurm.
    """
    for name in ("state", "spool"):
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
            controller_port=_free_port(),
            node_port=_free_port(),
            cpus=os.cpu_count(),
        )
    )
    environment = os.environ | {"SLURM_CONF": str(configuration), "PATH": _path()}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    commands = (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D"])
    with contextlib.ExitStack() as running:
        for command in commands:
            log = running.enter_context((folder / f"{command[0]}.out").open("wb"))
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            running.callback(_end, process)
            if command is munged:
                _wait(folder, lambda: (folder / "munge.socket").exists(), "munged opens its socket")
        _wait(folder, lambda: "idle" in _node_state(environment), "the node is idle")
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user=root"], env=environment, check=False)
            _wait(folder, lambda: "idle" in _node_state(environment), "all jobs have ended")


def _node_state(environment):
    found = subprocess.run(
        ["sinfo", "--noheader", "--format=%t"], env=environment, capture_output=True, text=True, check=False
    )
    return found.stdout


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


def _free_port():
    with socket.socket() as made:
        made.bind(("", 0))
        return made.getsockname()[1]


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
    with tempfile.TemporaryDirectory() as folder, one_node_slurm(Path(folder) / "slurm") as environment:
        sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)
