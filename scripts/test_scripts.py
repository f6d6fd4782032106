"""Tests of the scripts that set a checkout up. They need no network."""

import hashlib
import importlib.machinery
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

SCRIPTS = Path(__file__).resolve().parent
TAG = "manylinux_2_28_x86_64"
LIBRARY = "libonnxruntime.so.1.32.0"


def load(name):
    """A script without a suffix, as a module."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


class FetchOnnxRuntime(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.wheels = self.folder / "wheels"
        self.wheels.mkdir()
        self.cache = self.folder / "cache"
        self.home = self.cache / "blockdrop" / f"onnxruntime-1.32.0-{TAG}"
        self.script = load("fetch-onnxruntime")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "XDG_CACHE_HOME": str(self.cache),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
        }
        self.patch(mock.patch.dict(os.environ, environment, clear=True))
        self.patch(mock.patch.object(self.script, "this_platform", lambda: ("Linux", "x86_64")))
        self.pin(self.offer_wheel())

    def patch(self, patcher):
        patcher.start()
        self.addCleanup(patcher.stop)

    def offer_wheel(self, package="onnxruntime", version="1.32.0", libraries=(LIBRARY,)):
        """Puts a small wheel where pip looks, and returns its sha256."""
        name = package.replace("-", "_")
        path = self.wheels / f"{name}-{version}-cp312-cp312-{TAG}.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for library in libraries:
                wheel.writestr(f"onnxruntime/capi/{library}", "the library")
            wheel.writestr("onnxruntime/LICENSE", "the licence")
            wheel.writestr("onnxruntime/ThirdPartyNotices.txt", "the notices")
            info = f"{name}-{version}.dist-info"
            wheel.writestr(
                f"{info}/METADATA",
                f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
            )
            wheel.writestr(
                f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nTag: cp312-cp312-{TAG}\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def pin(self, sha256):
        pinned = {("Linux", "x86_64"): (TAG, sha256, LIBRARY)}
        self.patch(mock.patch.object(self.script, "WHEELS", pinned))

    def run_main(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        # What pip says goes past Python's sys.stderr.
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            mock.patch.object(self.script.subprocess, "run", quiet_run),
        ):
            status = self.script.main(arguments)
        return status, out.getvalue(), err.getvalue()

    def cached(self):
        return sorted(path.name for path in (self.cache / "blockdrop").iterdir())

    def test_unpacks_the_library_beside_its_notices_and_prints_only_its_path(self):
        status, out, _ = self.run_main()
        self.assertEqual((status, out), (0, f"{self.home / LIBRARY}\n"))
        self.assertEqual((self.home / LIBRARY).read_text(), "the library")
        self.assertEqual((self.home / "LICENSE").read_text(), "the licence")
        self.assertEqual((self.home / "ThirdPartyNotices.txt").read_text(), "the notices")
        self.assertEqual(self.cached(), [self.home.name, f"{self.home.name}.lock"])

    def test_a_cached_library_is_not_fetched_again(self):
        self.run_main()
        with mock.patch.object(self.script, "download", side_effect=AssertionError):
            status, out, err = self.run_main()
        self.assertEqual((status, out, err), (0, f"{self.home / LIBRARY}\n", ""))

    def test_the_build_for_gpus_comes_with_its_providers_and_by_its_own_pin(self):
        libraries = ("libonnxruntime.so.1.2.3", *self.script.PROVIDERS)
        sha256 = self.offer_wheel("onnxruntime-gpu", "1.2.3", libraries)
        pins = self.folder / "onnxruntime-cuda.txt"
        pins.write_text(f"# A comment.\nonnxruntime-gpu==1.2.3 \\\n    --hash=sha256:{sha256}\n")
        self.patch(mock.patch.object(self.script, "CUDA", pins))
        home = self.cache / "blockdrop" / f"onnxruntime-gpu-1.2.3-{TAG}"
        status, out, _ = self.run_main("cuda")
        self.assertEqual((status, out), (0, f"{home / libraries[0]}\n"))
        found = sorted(path.name for path in home.iterdir())
        self.assertEqual(found, sorted(["LICENSE", "ThirdPartyNotices.txt", *libraries]))
        self.patch(mock.patch.object(self.script, "this_platform", lambda: ("Linux", "aarch64")))
        status, out, err = self.run_main("cuda")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("only for Linux on x86-64", err)

    def test_a_provider_that_is_none_is_refused(self):
        status, out, err = self.run_main("rocm")
        self.assertEqual((status, out), (2, ""))
        self.assertIn("found 'rocm', expected cpu or cuda", err)

    def test_the_pin_of_the_build_for_gpus_is_read(self):
        wheel = self.script.wheel_for("cuda")
        self.assertEqual(wheel.package, "onnxruntime-gpu")
        self.assertRegex(wheel.version, r"^1\.\d+\.\d+$")
        self.assertRegex(wheel.sha256, r"^[0-9a-f]{64}$")

    def test_a_wheel_of_another_hash_is_refused_and_leaves_nothing(self):
        self.pin("0" * 64)
        status, out, err = self.run_main()
        self.assertEqual((status, out), (1, ""))
        self.assertIn("ORT_DYLIB_PATH", err)
        self.assertEqual(self.cached(), [f"{self.home.name}.lock"])

    def test_what_a_killed_run_left_is_removed(self):
        left = self.cache / "blockdrop" / f".{self.home.name}.abc" / "whole"
        left.mkdir(parents=True)
        self.home.mkdir()
        (self.home / "LICENSE").touch()
        status, _, _ = self.run_main()
        self.assertEqual(status, 0)
        self.assertEqual(self.cached(), [self.home.name, f"{self.home.name}.lock"])
        self.assertEqual((self.home / LIBRARY).read_text(), "the library")

    def test_a_library_of_ones_own_is_used_and_nothing_is_fetched(self):
        own = self.folder / "own.so"
        own.touch()
        os.environ["ORT_DYLIB_PATH"] = str(own)
        self.assertEqual(self.run_main(), (0, f"{own}\n", ""))
        self.assertFalse(self.cache.exists())

    def test_a_library_of_ones_own_has_to_exist(self):
        os.environ["ORT_DYLIB_PATH"] = str(self.folder / "absent.so")
        status, out, err = self.run_main()
        self.assertEqual((status, out), (1, ""))
        self.assertIn("absent.so, which is not a file", err)

    def test_another_platform_is_told_what_is_supported(self):
        with mock.patch.object(self.script, "this_platform", lambda: ("FreeBSD", "amd64")):
            status, out, err = self.run_main()
        self.assertEqual((status, out), (1, ""))
        for words in ("FreeBSD amd64", "Linux on x86-64", "Linux on arm64", "macOS", "ORT_DYLIB"):
            self.assertIn(words, err)

    def test_without_pip_it_makes_a_venv_or_names_the_package(self):
        def run(command, **options):
            if command[0] == sys.executable and command[1:3] in (["-m", "pip"], ["-m", "venv"]):
                return subprocess.CompletedProcess(command, 1)
            raise AssertionError(command)

        with (
            mock.patch.object(self.script.subprocess, "run", run),
            self.assertRaisesRegex(self.script.Problem, "apt-get install python3-pip"),
        ):
            self.script.pip_command(self.folder)


class Venv(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.requirements = self.folder / "requirements.txt"
        self.requirements.write_text("# nothing\n")

    def venv(self, *arguments):
        return subprocess.run(
            [sys.executable, str(SCRIPTS / "venv"), *arguments],
            env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_is_made_once_for_one_content_of_the_file(self):
        arguments = ("some", str(self.requirements))
        self.assertEqual(self.venv("--find", *arguments).returncode, 1)
        made = self.venv(*arguments)
        self.assertEqual(made.returncode, 0, made.stderr)
        home = Path(made.stdout.removesuffix("\n"))
        self.assertTrue((home / "bin" / "python").exists())

        (home / "mark").touch()
        for again in (self.venv(*arguments), self.venv("--find", *arguments)):
            self.assertEqual((again.returncode, again.stdout), (0, made.stdout))
        self.assertTrue((home / "mark").exists())

        self.requirements.write_text("# something else\n")
        self.assertEqual(self.venv("--find", *arguments).returncode, 1)

    def test_a_half_made_one_is_not_taken_for_whole(self):
        arguments = ("some", str(self.requirements))
        self.requirements.write_text("no-hash==1.0\n")
        failed = self.venv(*arguments)
        self.assertEqual((failed.returncode, failed.stdout), (1, ""))
        self.assertEqual(self.venv("--find", *arguments).returncode, 1)


QUIET = subprocess.run


def quiet_run(command, **options):
    options.pop("stdout", None)
    options["capture_output"] = True
    return QUIET(command, **options)


class Need(unittest.TestCase):
    def need(self, *tools, path):
        return subprocess.run(
            ["/bin/sh", str(SCRIPTS / "need"), *tools],
            env={"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_says_nothing_where_all_is_there(self):
        done = self.need("python3", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_names_all_that_is_missing_at_once(self):
        done = self.need(
            "cargo",
            "cc",
            "curl",
            "python3",
            "pip",
            "venv",
            "chromium",
            "prometheus",
            path="/nowhere",
        )
        self.assertEqual(done.returncode, 1)
        for line in (
            "missing on this machine: cargo (Rust), cc (a C compiler), curl, python3 (3.9 or newer), pip for python3, venv",
            "chromium (a browser; CHROMIUM names one that is not on the path)",
            "prometheus (the server and promtool)",
            "apt-get install build-essential curl python3 python3-pip python3-venv chromium prometheus\n",
            "dnf install gcc curl python3 python3-pip chromium golang-github-prometheus\n",
            "xcode-select --install\n",
            "brew install python\n",
            "brew install --cask chromium\n",
            "brew install prometheus\n",
            "rustup",
        ):
            self.assertIn(line, done.stderr)

    def test_names_what_a_fuzzer_is_built_with(self):
        done = self.need("c++", "nightly", path="/nowhere")
        self.assertEqual(done.returncode, 1)
        for line in (
            "c++ (a C++ compiler), Rust's nightly toolchain (for sanitizers; SANITIZER=none does without).\n",
            "apt-get install build-essential\n",
            "dnf install gcc-c++\n",
            "rustup toolchain install nightly --profile minimal\n",
        ):
            self.assertIn(line, done.stderr)

    def test_an_older_python_than_is_asked_for_is_missing(self):
        here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.assertEqual(self.need("python3:3.9", path=here).returncode, 0)
        done = self.need("python3:3.999", path=here)
        self.assertEqual(done.returncode, 1)
        self.assertIn("python3 (3.999 or newer)", done.stderr)

    def test_a_tool_it_does_not_know_is_a_mistake_of_the_caller(self):
        self.assertEqual(self.need("gcc", path=os.environ["PATH"]).returncode, 2)


if __name__ == "__main__":
    unittest.main()
