"""Commands in a pod, as people run them there."""

from __future__ import annotations

import os
import shutil
import subprocess

from bench.programs import BenchError, Skipped
from pyztun.testing import Pod


def tool(name: str) -> str:
    """The path of a command that may lie where only root's PATH leads. Skipped if it is missing."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    if found := shutil.which(name, path=path):
        return found
    raise Skipped(f"{name} is not installed")


def inside(pod: Pod, *argv: str) -> list[str]:
    """The command that runs ARGV in the pod and becomes it, with the same pid."""
    netns = f"--net=/proc/{os.getpid()}/fd/{pod.netns.fileno()}"
    return [tool("nsenter"), netns, "--", *argv]


def run(pod: Pod, *argv: str, text: str = "") -> None:
    """Runs a command in the pod to its end, with a text on stdin."""
    done = subprocess.run(
        inside(pod, *argv), input=text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or "no reason given"
        raise BenchError(f"{argv[0]} in a pod ended with {done.returncode}: {said}")


def set_sysctls(pod: Pod, values: dict[str, str]) -> None:
    """Writes files below /proc/sys, which shows each reader the netns of its own."""
    script = "\n".join(f"echo '{value}' > /proc/sys/{name}" for name, value in values.items())
    run(pod, "sh", "-euc", script)
