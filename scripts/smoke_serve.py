"""Start the server as `make serve` does, classify a sample, stop it.

Uses the build of the tests (PROFILE=dev), so that it costs no second one. Exits with 1
and the server's log when anything is not as the README says.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT / "models" / "default"
SAMPLE = ROOT / "samples" / "ship.webp"


def main() -> int:
    environment = dict(os.environ, BLOCKDROP_HTTP_ADDR="127.0.0.1:0", BLOCKDROP_WORKERS="1")
    arguments = "--grpc-addr 127.0.0.1:0 --admin-addr 127.0.0.1:0 --log-format json"
    command = ["make", "--no-print-directory", "serve", "PROFILE=dev", f"ARGS={arguments}"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        log = []
        try:
            address = wait_until_ready(server, log)
            request = urllib.request.Request(
                f"http://{address}/v1/classify?top_k=1", data=SAMPLE.read_bytes(), method="POST"
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
            label = answer["results"][0]["predictions"][0]["label"]
            assert label == "ship", f"found {label}, expected ship: {answer}"
            assert answer["model"] == DEFAULT.read_text().strip(), answer
            os.killpg(server.pid, signal.SIGTERM)
            code = server.wait(timeout=60)
            assert code in (0, -signal.SIGTERM), f"make serve ended with {code} after SIGTERM"
        except BaseException:
            print("".join(log), file=sys.stderr)
            raise
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
    print(f"make serve: {SAMPLE.name} is a {label}, {answer['results'][0]['path']}")
    return 0


def wait_until_ready(server: subprocess.Popen, log: list[str]) -> str:
    """The address of the public listener, from the server's log."""
    for line in server.stderr:
        log.append(line)
        if line.startswith("{") and json.loads(line).get("message") == "ready":
            return json.loads(line)["address"]
    raise AssertionError(f"make serve ended with {server.wait()} before it was ready")


if __name__ == "__main__":
    sys.exit(main())
