"""`blockdrop serve` as a child process, on ports of its own choice."""

import functools
import json
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = "cifar10-resnet32"

# Guards against hanging; never a measure of speed.
PATIENCE = 60


def built(*parts):
    """A file that `cargo build` has made."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    path = (ROOT / target / "debug").joinpath(*parts)
    assert path.is_file(), f"{path} is not there; `make test-clients` builds it"
    return path


@functools.cache
def alone():
    """A directory of models with MODEL and no other, for as long as this process runs."""
    folder = tempfile.TemporaryDirectory(prefix="models-")
    (Path(folder.name) / MODEL).symlink_to(ROOT / "models" / MODEL)
    return folder


class Server:
    """A running server of MODEL, or of `models`; use it in a `with`, which stops it."""

    def __init__(self, *flags, models=None):
        binary = os.environ.get("BLOCKDROP_BINARY") or built("blockdrop")
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("BLOCKDROP_") and name != "RUST_LOG"
        }
        addresses = [f"--{listener}-addr=127.0.0.1:0" for listener in ("http", "grpc", "admin")]
        self.log = []
        self.http = self.grpc = self.admin = None
        self.process = subprocess.Popen(
            [
                *(binary, "serve", *addresses, "--log-format=json"),
                *("--models", models or alone().name, *flags),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        try:
            ready.wait(PATIENCE)
            assert self.grpc is not None, "the server did not become ready"
        except BaseException:
            self.kill()
            raise

    def _read(self, ready):
        for line in self.process.stderr:
            self.log.append(line)
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("message", "").startswith("admin listener"):
                self.admin = said["address"]
            if said.get("message") == "ready":
                self.http, self.grpc = said["address"], said["grpc"]
                ready.set()
        ready.set()

    def url(self, path):
        return f"http://{self.http}{path}"

    def stop(self):
        """Stops the server, which has to end well and to have logged no error."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._reader.join(PATIENCE)
        assert code == 0, f"the server ended with {code}:\n{self.tail()}"
        errors = [line for line in self.log if '"level":"ERROR"' in line]
        assert not errors, f"the server logged errors:\n{''.join(errors)}"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        print(f"the server's log ended with:\n{self.tail()}")

    def tail(self):
        return "".join(self.log[-40:])

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.stop()
        else:
            self.kill()
