"""ColorFLUX without ComfyUI: photos, the model, bundles, S3Diff, evaluation and the commands."""

import logging

# peft imports bitsandbytes if it is installed. On CPUs with AVX-512 that warns, before any command
# can run, that an optional kernel is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

VERSION = "0.1.0"
