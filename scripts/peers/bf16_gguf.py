#!/usr/bin/env python3
"""Writes a GGUF file anew with every matrix in bf16: bf16_gguf.py IN OUT.

For comparisons with engines that are faster on bf16 than on the quantised
file: the values are those of the file, rounded to bf16 once, as Baton keeps
them. Needs: pip install gguf==0.19.0 numpy
"""

import sys

import gguf
import numpy

BF16 = gguf.GGMLQuantizationType.BF16
FILE_TYPE = "general.file_type"


def main(source: str, target: str) -> None:
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        # The writer adds these itself.
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        value = int(gguf.LlamaFileType.MOSTLY_BF16) if field.name == FILE_TYPE else field.contents()
        kind = field.types[0]
        writer.add_key_value(field.name, value, kind, sub_type=field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if values.ndim > 1:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, BF16), raw_dtype=BF16)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
