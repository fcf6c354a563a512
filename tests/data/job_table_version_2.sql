-- A job table of version 2, as the release with that version created and filled it: a completed job, a cancelled one
-- and a queued one. SEQ is INTEGER PRIMARY KEY AUTOINCREMENT or BIGSERIAL PRIMARY KEY.

CREATE TABLE schema_version (
    version INTEGER NOT NULL,
    database_id VARCHAR(32)
);
CREATE TABLE jobs (
    seq SEQ,
    id VARCHAR(64) NOT NULL,
    status VARCHAR(16) NOT NULL,
    model VARCHAR(255) NOT NULL,
    params JSON NOT NULL,
    cost JSON,
    fingerprint VARCHAR(64),
    seconds VARCHAR(16),
    metadata JSON,
    idempotency_key VARCHAR(255),
    request_id VARCHAR(255),
    created_at FLOAT NOT NULL,
    started_at FLOAT,
    completed_at FLOAT,
    deadline_at FLOAT NOT NULL,
    expires_at FLOAT,
    owner VARCHAR(64),
    lease_until FLOAT NOT NULL,
    attempts INTEGER NOT NULL,
    cancel_requested BOOLEAN NOT NULL,
    stage VARCHAR(32),
    step INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    stage_durations JSON,
    error_code VARCHAR(64),
    error_message VARCHAR(1024),
    media VARCHAR(128),
    media_bytes BIGINT,
    UNIQUE (id),
    UNIQUE (idempotency_key)
);
CREATE INDEX jobs_in_order ON jobs (status, seq);
CREATE INDEX jobs_by_end ON jobs (status, completed_at);
CREATE INDEX ix_jobs_owner ON jobs (owner);
INSERT INTO jobs (
    id, status, model, params, cost, fingerprint, seconds, metadata, idempotency_key, request_id, created_at, started_at, completed_at, deadline_at, expires_at, lease_until, attempts, cancel_requested, step, steps, stage_durations, media, media_bytes
) VALUES (
    'video_00000000000156334d64e41330332238',
    'completed',
    'm',
    '{"fp8_linears": false, "fp8_attention": false, "step_cache": 0.0, "prompt": "a red ball", "negative_prompt": null, "num_frames": 5, "height": 32, "width": 32, "fps": 24.0, "num_inference_steps": 4, "guidance_scale": 6.0, "flow_shift": 10.0, "sigma_schedule": "flow", "seed": 42, "generate_sound": false, "append_metadata": true}',
    '{"model": "m on cpu", "mode": "exact", "passes": 2, "text": 10, "step": 100, "decode": 50}',
    'f',
    '1',
    '{"part": "1"}',
    'done',
    'r',
    1795817949.437003,
    1795817949.4440033,
    1795817949.4450092,
    11795817949.437002,
    11795817949.44501,
    1795817979.4440033,
    1,
    false,
    4,
    4,
    '{"tokenizer": 0.1, "denoiser": 2.0, "decoders": 1.0, "storing": 0.1}',
    'd8576eb2b9584abc99f57dad6786b550/059c486e83e42d11492a3e064e8d90da',
    6
);
INSERT INTO jobs (
    id, status, model, params, cost, fingerprint, seconds, metadata, created_at, completed_at, deadline_at, expires_at, lease_until, attempts, cancel_requested, step, steps, error_code, error_message
) VALUES (
    'video_00000000000219728832cde3fc447076',
    'failed',
    'm',
    '{"fp8_linears": false, "fp8_attention": false, "step_cache": 0.0, "prompt": "a red ball", "negative_prompt": null, "num_frames": 5, "height": 32, "width": 32, "fps": 24.0, "num_inference_steps": 4, "guidance_scale": 6.0, "flow_shift": 10.0, "sigma_schedule": "flow", "seed": 42, "generate_sound": false, "append_metadata": true}',
    '{"model": "m on cpu", "mode": "exact", "passes": 2, "text": 10, "step": 100, "decode": 50}',
    'f',
    '1',
    'null',
    1795817949.4460151,
    1795817949.4479866,
    11795817949.446014,
    11795817949.447987,
    0.0,
    0,
    false,
    0,
    4,
    'cancelled',
    'the job was cancelled'
);
INSERT INTO jobs (
    id, status, model, params, cost, fingerprint, seconds, metadata, created_at, deadline_at, lease_until, attempts, cancel_requested, step, steps
) VALUES (
    'video_0000000000032519ba2935e4bedcb007',
    'queued',
    'm',
    '{"fp8_linears": false, "fp8_attention": false, "step_cache": 0.0, "prompt": "a red ball", "negative_prompt": null, "num_frames": 5, "height": 32, "width": 32, "fps": 24.0, "num_inference_steps": 4, "guidance_scale": 6.0, "flow_shift": 10.0, "sigma_schedule": "flow", "seed": 42, "generate_sound": false, "append_metadata": true}',
    '{"model": "m on cpu", "mode": "exact", "passes": 2, "text": 10, "step": 100, "decode": 50}',
    'f',
    '1',
    '{"part": "1"}',
    1795817949.4489923,
    11795817949.448992,
    0.0,
    0,
    false,
    0,
    4
);
INSERT INTO schema_version VALUES (2, 'd8576eb2b9584abc99f57dad6786b550');
