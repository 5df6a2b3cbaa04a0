"""Several processes that act as one program, each with the devices of its machine (`jax.distributed`).

    with joined(ProcessesConfig(coordinator="10.0.0.1:8476", count=2, index=0)):
        sft.run(config)                       # the same call in every process

Processes start and end together. One that fails says so to the others; one that is killed is missed by them; in both cases all
stop within a known time, each with a message, so that the same command can be started again and go on from the last checkpoint.
"""

import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import jax
from jax.experimental import multihost_utils

from rlhf.errors import OrderlyStop, UserError, require_positive
from rlhf.parallel.process_watch import ProcessWatch

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
DETECT = "RLHF_DISTRIBUTED"
FAILED = 1
WRONG_SETTING = 2
GRACE = 30  # seconds that JAX's own watch, which ends a process with a stack trace, leaves to ours


@dataclass(frozen=True)
class ProcessesConfig:
    """How this process finds the others of its run. With nothing set and nothing found it is alone.

    Attributes:
        coordinator: host:port of process 0, at which the others find it; null for JAX_COORDINATOR_ADDRESS.
        count: number of processes; null for JAX_NUM_PROCESSES.
        index: number of this process, from 0; null for JAX_PROCESS_ID.
        detect: without a coordinator, ask the cluster (TPU, Slurm, Open MPI, Kubernetes) for all three; null where its environment
            variables name several processes, or RLHF_DISTRIBUTED is 1 (0 for never).
        start_timeout: seconds in which all processes have to have come.
        silence_timeout: seconds without a sign of life after which a process counts as dead and the others stop.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    detect: bool | None = None
    start_timeout: int = 300
    silence_timeout: int = 60

    def __post_init__(self):
        require_positive(self, "count", "start_timeout", "silence_timeout", section="processes.")


@dataclass(frozen=True)
class Launch:
    """Keys of a command that are about this process and not about what is computed: no file and no checkpoint has them.

    Attributes:
        processes: the other processes of the run, if there are any.
    """

    processes: ProcessesConfig = field(default_factory=ProcessesConfig)


def is_primary_process() -> bool:
    """Whether this process speaks and writes for the run; true without `jax.distributed`, and then no device is started."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when all processes are here; `what` is the place, the same for all of them."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def print_traceback(error: BaseException) -> int:
    """Shows an error as Python does; returns the exit status."""
    traceback.print_exception(error)
    return FAILED


@contextmanager
def joined(config: ProcessesConfig, explain: Callable[[BaseException], int] = print_traceback) -> Iterator[None]:
    """Runs the body as one of several processes, if there are several; otherwise does nothing.

    To be entered before any device is used. When the body fails here, or another process fails or is missed, this process ends
    at once, without returning: the others are waiting for what it would have computed.

    Args:
        config: how to find the others.
        explain: shows an error of the body to the user and returns the exit status.

    Raises:
        UserError: the processes do not find each other.
    """
    if not start(config) or jax.process_count() == 1:
        yield
        return
    if not is_primary_process():
        logging.getLogger("rlhf").setLevel(logging.ERROR)  # warnings are the same everywhere
    watch = ProcessWatch(config.silence_timeout)
    watch.begin()
    try:
        yield
    except OrderlyStop:
        watch.leave()
        raise
    except BaseException as error:
        watch.give_up(error, explain(error))
    watch.leave()


def start(config: ProcessesConfig, environment: Mapping[str, str] = os.environ) -> bool:
    """Connects with the other processes, without watching them; see `joined`.

    When the others do not come in time, this process ends with a message.

    Returns:
        Whether there is anything to connect with.

    Raises:
        UserError: a setting is missing or wrong, or JAX could not connect.
    """
    config = completed(config, environment)
    if config.coordinator is None and not config.detect:
        return False
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's service would take SIGTERM for itself; training saves and stops at it, see `rlhf.training.signals`.
    jax.config.update("jax_enable_preemption_service", False)
    found = {"coordinator_address": config.coordinator, "num_processes": config.count, "process_id": config.index}
    # JAX aborts the process when the time is over, with a stack trace; this comes before.
    overdue = threading.Timer(config.start_timeout, _end_overdue, [config])
    overdue.daemon = True
    overdue.start()
    try:
        jax.distributed.initialize(
            **found,
            cluster_detection_method=None if config.detect else "deactivate",
            initialization_timeout=config.start_timeout + GRACE,
            heartbeat_timeout_seconds=config.silence_timeout + GRACE,
            shutdown_timeout_seconds=config.silence_timeout + GRACE,
        )
    except (RuntimeError, ValueError) as error:
        raise _not_joined(config, (str(error).strip() or type(error).__name__).splitlines()[0]) from error
    finally:
        overdue.cancel()
    return True


def completed(config: ProcessesConfig, environment: Mapping[str, str]) -> ProcessesConfig:
    """The configuration with what is unset taken from the environment.

    Raises:
        UserError: the coordinator is named without port, or without number and count of the processes.
    """
    coordinator = config.coordinator or environment.get(ADDRESS)
    if coordinator is None:
        detect = config.detect if config.detect is not None else names_several_processes(environment)
        return replace(config, detect=detect)
    count = _number(environment, COUNT) if config.count is None else config.count
    index = _number(environment, INDEX) if config.index is None else config.index
    if count is None and index is None and config.detect is not False:
        return replace(config, detect=True)  # the address of a cluster that knows the rest
    if count is None or index is None or not 0 <= index < count:
        raise UserError(
            f"processes.coordinator is {coordinator}, processes.count {count}, processes.index {index}",
            fix=f"set count (or {COUNT}) to the number of processes, and index (or {INDEX}) to 0, 1, … below it.",
        )
    if not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(
            f"processes.coordinator is {coordinator!r}, which has no port",
            fix="write host:port, for example host:8476.",
        )
    return replace(config, coordinator=coordinator, count=count, index=index, detect=False)


def names_several_processes(environment: Mapping[str, str]) -> bool:
    """Whether the environment of a cluster that JAX knows says that this is one of several processes."""
    if environment.get(DETECT) in ("0", "1"):
        return environment[DETECT] == "1"
    slurm = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
    open_mpi = int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    return slurm or open_mpi or "," in hosts or slices > 1


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is not None and not text.isdecimal():
        raise UserError(f"the environment variable {name} is {text!r}", fix="set it to a number.")
    return None if text is None else int(text)


def _end_overdue(config: ProcessesConfig) -> None:
    reason = f"they did not all come within {config.start_timeout} s (processes.start_timeout)"
    os.write(2, f"{_not_joined(config, reason)}\n".encode())
    os._exit(WRONG_SETTING)


def _not_joined(config: ProcessesConfig, reason: str) -> UserError:
    if config.detect:
        return UserError(
            f"the other processes of this run were not found by what the cluster says of them: {reason}",
            fix=f"set processes.coordinator, processes.count and processes.index, or {DETECT}=0 for a process that is alone.",
        )
    who = f"process {config.index} of {config.count} did not come together with the others at {config.coordinator}"
    return UserError(
        f"{who}: {reason}",
        fix="see that all processes run, with the same coordinator and count and an index each; that the address is one of"
        " process 0's machine that the others reach (firewall?); and that its port is free.",
    )
