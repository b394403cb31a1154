#!/usr/bin/env python3
"""Writes quantisations.json: blocks of every GGUF quantisation and the values that the
`gguf` package reads from them. Needs gguf (0.17 or newer) and numpy.

    python3 quantisations.py > quantisations.json
"""

import json
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Places of the f16 scales in a block; every other byte may be anything.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
# Usual, negative, subnormal, zero, large.
VALUES = [0.0123, -0.37, 3.1e-5, 0.0, 41.5]


def main() -> None:
    random = np.random.default_rng(7)
    vectors = []
    for name, places in SCALES.items():
        kind = GGMLQuantizationType[name]
        block_values, block_bytes = GGML_QUANT_SIZES[kind]
        blocks = 512 // block_values
        raw = bytearray(random.integers(0, 256, blocks * block_bytes, dtype=np.uint8).tobytes())
        for block in range(blocks):
            for i, place in enumerate(places):
                scale = struct.pack("<e", VALUES[(block + i) % len(VALUES)])
                raw[block * block_bytes + place : block * block_bytes + place + 2] = scale
        values = dequantize(np.frombuffer(raw, dtype=np.uint8), kind).astype("<f4")
        vectors.append({
            "name": name,
            "code": int(kind),
            "raw": raw.hex(),
            "values": values.tobytes().hex(),
        })
    print("[\n" + ",\n".join(json.dumps(vector) for vector in vectors) + "\n]")


main()
