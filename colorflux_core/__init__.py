"""ColorFLUX without ComfyUI: photos, the model, bundles, S3Diff, evaluation and the commands."""

import logging

# peft imports bitsandbytes if it is installed, and on CPUs with AVX-512 bitsandbytes then warns that
# an optional kernel is missing, before any command can run.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
