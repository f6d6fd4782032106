"""What the server's command line takes."""

import os
import re
import subprocess

from server import built


def binary():
    return os.environ.get("BLOCKDROP_BINARY") or built("blockdrop")


def call(*arguments, environment=None):
    known = {name: value for name, value in os.environ.items() if not name.startswith("BLOCKDROP_")}
    return subprocess.run(
        [binary(), *arguments],
        env=known | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def options():
    """The options of `serve`: flag to (variable, default or None)."""
    found = {}
    for part in re.split(r"\n\s+(?=--)", call("serve", "--help").stdout):
        part = re.sub(r"\s+", " ", part)
        flag = re.match(r"--[\w-]+", part)
        variable = re.search(r"\[env: (\w+)=", part)
        if flag and variable:
            default = re.search(r"\[default: ([^\]]+)\]", part.split("[env:")[1])
            found[flag.group()] = (variable[1], default and default[1])
    return found


def refused(arguments, environment):
    """What `serve` finds wrong with these options, all of it; an option that is wrong on purpose ends it at once."""
    done = call("serve", *arguments, "--max-batch=0", environment=environment)
    assert done.returncode == 2, done.stderr
    wrong = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert any("--max-batch" in line for line in wrong), done.stderr
    return [line for line in wrong if "--max-batch" not in line]
