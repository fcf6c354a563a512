-- A job table of version 3, as the release with that version created and filled it: a completed job, a cancelled one
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
    artifacts JSON,
    UNIQUE (id),
    UNIQUE (idempotency_key)
);
CREATE INDEX jobs_in_order ON jobs (status, seq);
CREATE INDEX jobs_by_end ON jobs (status, completed_at);
CREATE INDEX ix_jobs_owner ON jobs (owner);
INSERT INTO jobs (
    id, status, model, params, cost, fingerprint, seconds, metadata, idempotency_key, request_id, created_at, started_at, completed_at, deadline_at, expires_at, lease_until, attempts, cancel_requested, step, steps, stage_durations, artifacts
) VALUES (
    'video_0000000000011b6bee752a46523b21a0',
    'completed',
    'm',
    '{"fp8_linears": false, "fp8_attention": false, "step_cache": 0.0, "prompt": "a red ball", "negative_prompt": null, "num_frames": 5, "height": 32, "width": 32, "fps": 24.0, "num_inference_steps": 4, "guidance_scale": 6.0, "flow_shift": 10.0, "sigma_schedule": "flow", "seed": 42, "generate_sound": false, "append_metadata": true}',
    '{"model": "m on cpu", "mode": "exact", "passes": 2, "text": 10, "step": 100, "decode": 50}',
    'f',
    '1',
    '{"part": "1"}',
    'done',
    'r',
    1795831193.2760105,
    1795831193.3650062,
    1795831193.3880196,
    11795831193.27601,
    11795831193.38802,
    1795831223.3650062,
    1,
    false,
    4,
    4,
    '{"tokenizer": 0.1, "denoiser": 2.0, "decoders": 1.0, "storing": 0.1}',
    '[{"name": "video", "media_type": "video/mp4", "size": 3, "file": "d0845ac2930a4df1a21339e8feadbf60/1f9b48502ede9a06fe9d0b48114cf3da.mp4"}, {"name": "thumbnail", "media_type": "image/jpeg", "size": 2, "file": "d0845ac2930a4df1a21339e8feadbf60/1f9b48502ede9a06fe9d0b48114cf3da.thumbnail.jpg"}, {"name": "spritesheet", "media_type": "image/jpeg", "size": 1, "file": "d0845ac2930a4df1a21339e8feadbf60/1f9b48502ede9a06fe9d0b48114cf3da.spritesheet.jpg"}]'
);
INSERT INTO jobs (
    id, status, model, params, cost, fingerprint, seconds, metadata, created_at, completed_at, deadline_at, expires_at, lease_until, attempts, cancel_requested, step, steps, error_code, error_message
) VALUES (
    'video_0000000000022a4872dde861f354b492',
    'failed',
    'm',
    '{"fp8_linears": false, "fp8_attention": false, "step_cache": 0.0, "prompt": "a red ball", "negative_prompt": null, "num_frames": 5, "height": 32, "width": 32, "fps": 24.0, "num_inference_steps": 4, "guidance_scale": 6.0, "flow_shift": 10.0, "sigma_schedule": "flow", "seed": 42, "generate_sound": false, "append_metadata": true}',
    '{"model": "m on cpu", "mode": "exact", "passes": 2, "text": 10, "step": 100, "decode": 50}',
    'f',
    '1',
    'null',
    1795831193.39502,
    1795831193.4449897,
    11795831193.39502,
    11795831193.44499,
    0.0,
    0,
    false,
    0,
    4,
    'cancelled',
    'the job was cancelled'
);
INSERT INTO jobs (
    id, status, model, params, cost, fingerprint, metadata, created_at, deadline_at, lease_until, attempts, cancel_requested, step, steps
) VALUES (
    'video_000000000003e5d119d0b3a35cc6f108',
    'queued',
    'm',
    '{"fp8_linears": false, "fp8_attention": false, "step_cache": 0.0, "prompt": "a red ball", "negative_prompt": null, "num_frames": 5, "height": 32, "width": 32, "fps": 24.0, "num_inference_steps": 4, "guidance_scale": 6.0, "flow_shift": 10.0, "sigma_schedule": "flow", "seed": 42, "generate_sound": false, "append_metadata": true}',
    '{"model": "m on cpu", "mode": "exact", "passes": 2, "text": 10, "step": 100, "decode": 50}',
    'f',
    'null',
    1795831193.4550076,
    11795831193.455008,
    0.0,
    0,
    false,
    0,
    4
);
INSERT INTO schema_version VALUES (3, 'd0845ac2930a4df1a21339e8feadbf60');
