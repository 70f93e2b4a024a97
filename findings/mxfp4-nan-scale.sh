#!/bin/sh
# Version:   gguf 0.19.0 (PyPI), numpy 2.4.6
# Behaviour: a block of MXFP4 whose scale byte is 255 is dequantised to finite numbers, though 255 is the NaN of that
#            scale's type (E8M0, OCP Microscaling Formats 1.0, section 5.4.1): who looks for NaN among dequantised
#            weights finds none.
# Output:    scale 254: [8.507059e+37]
#            scale 255: [1.7014118e+38]
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY' | tee "$work/seen"
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

for scale in (254, 255):
    block = np.zeros((1, 17), np.uint8)  # a scale, and 32 values of four bits
    block[0, 0] = scale
    block[0, 1] = 1  # the first value is a half
    print(f"scale {scale}: {dequantize(block, GGMLQuantizationType.MXFP4)[0][:1]}")
PY
printf '%s\n' 'scale 254: [8.507059e+37]' 'scale 255: [1.7014118e+38]' | diff - "$work/seen"
