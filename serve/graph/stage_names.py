"""The names of a request's stages, as events, records, metrics, the page, the command line and the dashboard use them.

Plain strings rather than an enumeration, because database drivers store an enumeration's member under its own name.
"""

PROMPT_UPSAMPLER = "prompt_upsampler"  # where one is configured, of a request that asks for it; a job is still queued
TOKENIZER = "tokenizer"
VIDEO_ENCODER = "video_encoder"  # beside the tokenizer; as a key of ``stage_durations``, its time after the tokenizer's
QUEUE = "queue"  # the wait for a denoiser
LOST = "lost"  # the work of a denoiser that died or failed, until the next one took over
DENOISER = "denoiser"
DECODERS = "decoders"  # both at once
MUX = "mux"
STORING = "storing"

TIMED = (PROMPT_UPSAMPLER, TOKENIZER, VIDEO_ENCODER, QUEUE, LOST, DENOISER, DECODERS, MUX, STORING)
"""The keys of ``stage_durations``."""

REPORTED = (PROMPT_UPSAMPLER, DENOISER, DECODERS, STORING)
"""What a job's ``stage`` can be, in order."""

AFTER_DENOISER = REPORTED[REPORTED.index(DENOISER) + 1 :]

VIDEO_DECODER = "video_decoder"
SOUND_DECODER = "sound_decoder"
MODEL_STAGES = (TOKENIZER, VIDEO_ENCODER, DENOISER, VIDEO_DECODER, SOUND_DECODER)
"""The deployments that compute, as errors name them."""

OPTIONAL_STAGES = (PROMPT_UPSAMPLER,)
"""Those that only some servers have: with the ones above, the fields of ``serve.graph.graph.Stages``."""
