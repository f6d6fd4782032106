"""Makes a target's corpus of what a fuzzer found: the few inputs that reach furthest.

    scripts/fuzz_corpus.py target/fuzz/HOST/release/TARGET

Inputs with a name of their own stay; those named by a hash are chosen anew, of them and of what lies in
target/fuzz/found/TARGET, one after another as each reaches most code that no other one does.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HASH = re.compile("[0-9a-f]{40}")
LARGEST = 2048


def reached(binary, inputs):
    """What each of `inputs` reaches, as libFuzzer numbers the edges."""
    with tempfile.TemporaryDirectory() as folder:
        taken, given, control = (Path(folder, name) for name in ("taken", "given", "control"))
        taken.mkdir()
        given.mkdir()
        for number, path in enumerate(inputs):
            shutil.copy(path, given / str(number))
        command = [
            binary,
            "-merge=1",
            "-use_counters=0",
            f"-merge_control_file={control}",
            taken,
            given,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = control.read_text().splitlines()
    count = int(lines[0])
    names = [int(Path(line).name) for line in lines[2 : 2 + count]]
    found = {}
    for line in lines[2 + count :]:
        kind, number, *edges = line.split()
        if kind == "FT":
            found[inputs[names[int(number)]]] = set(edges)
    return found


def choose(found, kept, most, room):
    """Inputs that with those `kept` reach furthest: at most `most`, of at most `room` bytes in all."""
    there = set().union(*(found.get(path, set()) for path in kept))
    left = {path: edges for path, edges in found.items() if path not in kept}
    chosen = []
    while left and len(chosen) < most:
        gain = {path: len(edges - there) for path, edges in left.items()}
        best = max(left, key=lambda path: (gain[path], -path.stat().st_size, path.name))
        edges = left.pop(best)
        if gain[best] == 0:
            break
        if best.stat().st_size <= room:
            room -= best.stat().st_size
            there |= edges
            chosen.append(best)
    return chosen, len(there)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path, help="the target, as `make fuzz` builds it")
    parser.add_argument("--most", type=int, default=90, help="inputs to choose, at most")
    parser.add_argument("--bytes", type=int, default=64 * 1024, help="bytes of them all, at most")
    options = parser.parse_args()
    target = options.binary.name
    corpus = ROOT / "fuzz/corpus" / target
    if not corpus.is_dir():
        sys.exit(f"no corpus of a target '{target}' in {corpus.parent}")
    there = sorted(corpus.iterdir())
    kept = [path for path in there if not HASH.fullmatch(path.name)]
    others = [
        path
        for path in (ROOT / "target/fuzz/found" / target).glob("*")
        if path.stat().st_size <= LARGEST
    ]
    found = reached(options.binary.resolve(), there + others)
    chosen, edges = choose(found, kept, options.most, options.bytes)
    contents = {path.name: path.read_bytes() for path in chosen}
    for path in set(there) - set(kept):
        path.unlink()
    for name, content in contents.items():
        (corpus / name).write_bytes(content)
    every = len(set().union(*found.values()))
    print(
        f"{target}: {len(kept)} kept, {len(contents)} chosen of {len(found)}; they reach {edges} of {every} edges"
    )


if __name__ == "__main__":
    main()
