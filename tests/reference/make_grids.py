"""Write the codebooks of the IQ and MXFP4 tensor types as Rust data.

usage: python make_grids.py ../../worker/src/cpu/grids.rs

The figures are facts of the file format. They are read from the PyPI package `gguf` (ggml-org/llama.cpp, MIT) and packed
anew: a point of a grid is one number whose digits are the levels of its values, the first value's the lowest.
"""

import argparse
import pathlib

import numpy as np
from gguf import quants

WIDTH = 110
HEADER = """\
//! The codebooks of the IQ and MXFP4 types, as data.
//!
//! Written by `tests/reference/make_grids.py` from the figures in the PyPI package `gguf` 0.19.0 (ggml-org/llama.cpp, MIT
//! licence). A point of a grid is one number: its digits, of the base that the number of levels is, say which level each
//! of the point's values has, the first value's digit being the lowest.
"""


def array(comment, name, kind, numbers):
    lines, line = [], "   "
    for number in numbers:
        if len(line) + len(f" {number},") >= WIDTH:
            lines.append(line)
            line = "   "
        line += f" {number},"
    body = "\n".join([*lines, line])
    start = f"\n/// {comment}\npub(super) const {name}: [{kind}; {len(numbers)}] ="
    single = ", ".join(map(str, numbers))
    if len(f"pub(super) const {name}: [{kind}; {len(numbers)}] = [{single}];") <= WIDTH:
        return f"{start} [{single}];\n"
    if len(f"    [{single}];") <= WIDTH:
        return f"{start}\n    [{single}];\n"
    return f"{start} [\n{body}\n];\n"


def points(quant):
    """A grid's points as numbers."""
    quant.init_grid()
    levels = list(quant.grid_map)
    grid = quant.grid.reshape(quant.grid_shape)
    digits = np.vectorize({float(level): i for i, level in enumerate(levels)}.get)(grid)
    return [int(number) for number in digits @ (len(levels) ** np.arange(digits.shape[1]))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    output = parser.parse_args().output
    # The signs of eight values take seven bits in a file: the eighth makes their number even.
    assert all(byte == i | (i.bit_count() & 1) << 7 for i, byte in enumerate(quants.IQ2_XXS.ksigns))
    text = [
        HEADER,
        array("Values of the sixteen codes of IQ4_NL and IQ4_XS.", "IQ4_VALUES", "i8", quants.IQ4_NL.kvalues),
        array("Values of the sixteen codes of MXFP4, doubled.", "MXFP4_VALUES", "i8", quants.MXFP4.kvalues),
        array("Levels of the values of IQ1_S and IQ1_M.", "IQ1_LEVELS", "i8", quants.IQ1_S.grid_map),
        array("Levels of the values of IQ2_XXS, IQ2_XS and IQ2_S.", "IQ2_LEVELS", "i8", quants.IQ2_S.grid_map),
        array("Levels of the values of IQ3_XXS.", "IQ3_XXS_LEVELS", "i8", quants.IQ3_XXS.grid_map),
        array("Levels of the values of IQ3_S.", "IQ3_S_LEVELS", "i8", quants.IQ3_S.grid_map),
    ]
    assert quants.IQ2_XXS.grid_map == quants.IQ2_XS.grid_map == quants.IQ2_S.grid_map
    for name in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"):
        quant = getattr(quants, name)
        used = "IQ1_S and IQ1_M" if name == "IQ1_S" else name
        comment = f"Points of the grid of {used}, of {quant.grid_shape[1]} values each."
        text.append(array(comment, "IQ1_GRID" if name == "IQ1_S" else f"{name}_GRID", "u16", points(quant)))
    output.write_text("".join(text))


if __name__ == "__main__":
    main()
