"""`unified run --launch CONFIG`: the same command in the processes that an accelerate configuration file asks for.

accelerate reads the file and prepares the environment, torch's elastic launcher starts the processes and watches them.
Here is what lies between a person and these two: names of shipped files, mistakes in one message, signals, exit codes.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import yaml

from unified.errors import Problem, UserError, unknown_name

CONFIGS = Path(__file__).parent / "launch_configs"
#: environment variables by which one file serves every machine of several -> the key that they replace
OF_MACHINES = {
    "NNODES": "num_machines",
    "NODE_RANK": "machine_rank",
    "MASTER_ADDR": "main_process_ip",
    "MASTER_PORT": "main_process_port",
}
#: seconds that processes have, after Ctrl-C or SIGTERM, to finish what they do and to save: a rollout may take long
TIME_TO_SAVE_S = 24 * 3600
#: keys of earlier versions that accelerate still takes
_OLDER_KEYS = ("fp16", "dynamo_backend")
_SENT_BY = (signal.SIGINT, signal.SIGTERM)


def shipped() -> list[str]:
    """Names of the configurations that come with the project."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def launch(config: str, arguments: Sequence[str]) -> int:
    """Run `python -m unified ARGUMENTS` in the processes that a configuration asks for; gives the exit code.

    config: a shipped name or the path of an accelerate configuration file. The code is that of the process which ended
    badly first, 128 + the signal where one ended it or stopped the launcher, 0 where all went well.
    Raises UserError for a configuration that is not there, is broken, or asks for devices that this machine lacks.
    Does not return where one process without companions is asked for: that process takes this one's place.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--launch inside of a process that a launcher has started", "leave one of the two out")
    file = config_file(config)
    plan = Processes(file, read_config(file), os.environ)
    args = _accepted(file, plan, arguments)
    if plan.count == 1 and not (args.use_fsdp or args.use_deepspeed):
        _become(args)
    return _watched(args, plan)


def written(options: Mapping[str, Any]) -> list[str]:
    """Options of a command as a person would write them; those that were not given (None, False, empty) are left out.

    The value of an option that may be given again is a list.
    """
    out: list[str] = []
    for option, value in options.items():
        values = value if isinstance(value, list) else [value]
        out += [text for each in values if each for text in ([option] if each is True else [f"{option}={each}"])]
    return out


def config_file(config: str) -> Path:
    """The file behind a shipped name or a path; UserError where there is none."""
    if config in shipped():
        return CONFIGS / f"{config}.yaml"
    if Path(config).is_file():
        return Path(config)
    if Path(config).suffix or os.sep in config:
        raise UserError(f"--launch {config}: no such file", f"shipped: {', '.join(shipped())}")
    advice = "or give the path of an accelerate configuration file (`accelerate config` writes one)"
    raise UserError(f"--launch: {unknown_name('configuration', config, shipped(), advice=advice).text()}")


def read_config(file: Path) -> dict[str, Any]:
    """What a configuration file says; UserError with everything that accelerate would not understand."""
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.utils import DistributedType

    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML as well
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{file}: not a configuration file that can be read: {what}") from error
    if not isinstance(read, dict):
        raise UserError(f"{file}: an accelerate configuration file is a mapping, this is {type(read).__name__}")
    known = {*ClusterConfig.__dataclass_fields__, *_OLDER_KEYS}
    problems = [unknown_name("key", str(key), known) for key in read if key not in known]
    kinds = [kind.value for kind in DistributedType]
    kind = read.get("distributed_type")
    if kind is None:
        problems.append(Problem("it has no `distributed_type`", (), (f"known: {', '.join(kinds)}",)))
    elif kind not in kinds:
        hint = ['write "NO" in quotes: YAML reads it as false'] if kind is False else []
        found = unknown_name("distributed_type", str(kind), kinds)
        problems.append(Problem(found.message, (), (*hint, *found.hints)))
    if read.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        problems.append(Problem(f"compute_environment {read['compute_environment']} is not supported"))
    if problems:
        raise UserError("\n".join(problem.text(str(file)) for problem in problems))
    return read


class Processes:
    """How many processes of how many machines, from a configuration file and the environment.

    count: of all machines. machines, rank: how many, and which one this is. cpu: whether no device is used.
    """

    def __init__(self, file: Path, written: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        named = {key: environment[name] for name, key in OF_MACHINES.items() if environment.get(name)}
        self.cpu = bool(written.get("use_cpu"))
        self.machines = self._number(file, named, written, "num_machines", 1)
        several = self.machines > 1
        self.rank = self._number(file, named if several else {}, written, "machine_rank", 0)
        given = {**written, **(named if several else {})}
        here = _devices()
        self.count = self._number(file, {}, written, "num_processes", here * self.machines)
        self.options: list[str] = ["--num_processes", str(self.count), "--num_machines", str(self.machines)]
        if several:
            if "machine_rank" not in given or not given.get("main_process_ip"):
                raise UserError(
                    f"{file}: {self.machines} machines, but nothing tells which one this is, and where the first is",
                    "set NODE_RANK (0, 1, ...) and MASTER_ADDR in the environment, or `machine_rank` and "
                    "`main_process_ip` in the file",
                )
            self.options += ["--machine_rank", str(self.rank), "--main_process_ip", str(given["main_process_ip"])]
            self.options += ["--main_process_port", str(given.get("main_process_port") or 29500), "--same_network"]
        elif not written.get("main_process_port"):
            self.options += ["--main_process_port", "0"]  # a free one
        if not self.cpu and not here:
            raise UserError(
                f"{file}: its processes need a device each, and torch finds none on this machine",
                "take `--launch cpu`, or a file with `use_cpu: true`",
            )
        if self.count < 1 or self.count % self.machines:
            raise UserError(
                f"{file}: {self.count} processes on {self.machines} machines of {here} devices",
                "`num_processes` counts those of all machines, at least one on each and as many on each",
            )
        local = self.count // self.machines
        if not self.cpu and local > here:
            raise UserError(
                f"{file}: {local} processes need a device each, and torch finds {here} on this machine",
                f"set `num_processes: {here * self.machines}`",
            )

    @staticmethod
    def _number(file: Path, named: Mapping[str, str], written: Mapping[str, Any], key: str, without: int) -> int:
        value = named.get(key, written.get(key, without))
        try:
            return without if value is None else int(value)
        except (TypeError, ValueError):
            raise UserError(f"{file}: `{key}` is {value!r}, not a number") from None


def _devices() -> int:
    """Accelerators of this machine that torch can use; CUDA_VISIBLE_DEVICES hides others."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def _accepted(file: Path, plan: Processes, arguments: Sequence[str]) -> argparse.Namespace:
    """The file as accelerate's own launcher takes it, with the module to run; UserError for what it refuses."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    options = ["--config_file", str(file), *plan.options, "--module", "unified", *arguments]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise UserError(f"{file}: accelerate cannot use it: {error}") from error
    if args.tpu or args.use_megatron_lm:
        raise UserError(f"{file}: {defaults.distributed_type.value} is not supported")
    if args.use_deepspeed:
        _check_deepspeed(file, args, plan)
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return args


def _check_deepspeed(file: Path, args: argparse.Namespace, plan: Processes) -> None:
    from accelerate.utils import is_deepspeed_available

    if not is_deepspeed_available():
        raise UserError(f"{file}: DeepSpeed is not installed", "pip install deepspeed")
    if plan.machines > 1 and args.deepspeed_multinode_launcher != "standard":
        raise UserError(
            f"{file}: several machines are started by this command on each of them",
            "write `deepspeed_multinode_launcher: standard` under `deepspeed_config`",
        )


def _become(args: argparse.Namespace) -> NoReturn:
    """One process: it takes the place of this one, and has its terminal, signals and exit code."""
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(args)
    if "OMP_NUM_THREADS" not in os.environ:
        environment.pop("OMP_NUM_THREADS", None)  # one process has all cores
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, environment)


def _watched(args: argparse.Namespace, plan: Processes) -> int:
    """Start the processes through torch's elastic launcher and wait for their end; the exit code."""
    from accelerate.commands import launch as accelerates
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if plan.cpu:
        # on a CPU accelerate starts one process, and DeepSpeed asks for no CPU flag but its own
        os.environ.update({"DS_ACCELERATOR": "cpu"} if args.use_deepspeed else {"ACCELERATE_USE_CPU": "true"})
    os.environ["OMP_NUM_THREADS"] = str(args.num_cpu_threads_per_process)
    args.shutdown_timeout = TIME_TO_SAVE_S
    args.signals_to_handle = "SIGHUP,SIGQUIT"  # the others are taken once, see _signals_once
    if not args.debug:
        logging.disable(logging.ERROR)  # of the launchers: what matters of it is said below, in a line
    start = accelerates.deepspeed_launcher if args.use_deepspeed else accelerates.multi_gpu_launcher
    args.debug = False  # accelerate would print its traceback, and take the failure for none
    try:
        with _signals_once(SignalException):
            start(args)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        # seen at one look: a process that was killed, and others that failed because they lost it
        killed = {rank: failure for rank, failure in failed.failures.items() if failure.exitcode < 0}
        rank, first = next(iter(killed.items()), failed.get_first_failure())
        if first.exitcode >= 0:
            return int(first.exitcode)  # it has said why
        name = signal.Signals(-first.exitcode).name
        print(
            f"process {rank} was ended by {name}; run the same command again to go on"
            + ("\n    the system ends processes so where memory is short" if name == "SIGKILL" else ""),
            file=sys.stderr,
        )
        return 128 - int(first.exitcode)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"the processes cannot be started: {error}") from error
    return 0


@contextmanager
def _signals_once(raised: type[Exception]) -> Iterator[None]:
    """The first SIGINT or SIGTERM raises what the elastic launcher understands: it hands the signal to all processes.

    Later ones change nothing: raised while it waits for the processes, they would leave these behind alone.
    """
    asked: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1:
            name = signal.Signals(number).name
            raise raised(f"got {name}", signal.Signals(number))

    before = {number: signal.signal(number, take) for number in _SENT_BY}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
