#!/usr/bin/env python3
"""What zstd's parameters do to PostgreSQL's bytes: `bench/codec.py heap=FILE 'btree=FILE' ...`
prints a table, for each kind of file its size in MB and the seconds of one processor.

A file is cut into frames of 1 MiB as a backup does it (`zstd -b -B`), and the first 160 MiB
count. One file's name may be given several times: `heap=FILE,FILE`.
"""

import re
import subprocess
import sys
import tempfile

FRAME = 1 << 20
SAMPLE = 160 << 20
PARAMETERS = [
    ("level 1", ["-b1"]),
    ("level 1, minimum match 4", ["-b1", "--zstd=mml=4"]),
    ("**level 1, minimum match 5**", ["-b1", "--zstd=mml=5"]),
    ("level 1, minimum match 6", ["-b1", "--zstd=mml=6"]),
    ("level 1, minimum match 5, hashes of 2^16", ["-b1", "--zstd=mml=5,hlog=16"]),
    ("level 2", ["-b2"]),
    ("level 2, minimum match 5", ["-b2", "--zstd=mml=5"]),
    ("level 3", ["-b3"]),
    ("level 4", ["-b4"]),
]
RESULT = re.compile(r": +(\d+) -> +(\d+) \(x[\d.]+\), +([\d.]+) MB/s, +([\d.]+) MB/s")


def sample(files):
    """The first bytes of the files, one after the other."""
    copy = tempfile.NamedTemporaryFile(prefix="codec-")
    left = SAMPLE
    for file in files:
        with open(file, "rb") as opened:
            while left > 0 and (piece := opened.read(min(left, FRAME))):
                copy.write(piece)
                left -= len(piece)
    copy.flush()
    return copy


def compress(parameters, path):
    """Stored bytes, and seconds to compress and to open again, the best of several rounds."""
    output = subprocess.run(["zstd", *parameters, f"-B{FRAME}", "-i3", path], check=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    found = RESULT.findall(output.replace("\r", "\n"))
    if not found:
        sys.exit(f"zstd said: {output}")
    plain, stored, there, back = found[-1]
    return int(stored), int(plain) / 1e6 / float(there), int(plain) / 1e6 / float(back)


def main():
    kinds = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if not kinds:
        sys.exit(__doc__)
    samples = {kind: sample(files.split(",")) for kind, files in kinds.items()}
    print("| parameters |", " | ".join(samples), "| all, and to open again |")
    print("|---" * (len(samples) + 2) + "|")
    for name, parameters in PARAMETERS:
        results = [compress(parameters, copy.name) for copy in samples.values()]
        stored, there, back = (sum(column) for column in zip(*results))
        cells = [f"{size / 1e6:.1f}, {seconds:.2f}" for size, seconds, _ in results]
        print(f"| {name} | {' | '.join(cells)} | {stored / 1e6:.1f}, {there:.2f}; {back:.2f} |", flush=True)


if __name__ == "__main__":
    main()
