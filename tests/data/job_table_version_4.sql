-- A job table of version 4, as the release with that version created and filled it: a completed job with an input, a
-- cancelled one and a queued one. SEQ is INTEGER PRIMARY KEY AUTOINCREMENT or BIGSERIAL PRIMARY KEY.

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
    input_reference JSON,
    input_sha256 VARCHAR(64),
    remixed_from_video_id VARCHAR(64),
    UNIQUE (id),
    UNIQUE (idempotency_key)
);
CREATE INDEX ix_jobs_owner ON jobs (owner);
CREATE INDEX jobs_by_end ON jobs (status, completed_at);
CREATE INDEX jobs_by_input ON jobs (input_sha256);
CREATE INDEX jobs_in_order ON jobs (status, seq);
INSERT INTO jobs (
    id, status, model, params, cost, fingerprint, seconds, metadata, idempotency_key, request_id, created_at, started_at, completed_at, deadline_at, expires_at, lease_until, attempts, cancel_requested, step, steps, stage_durations, artifacts, input_reference, input_sha256
) VALUES (
    'video_0000000000014eb5290b0f4714ee883d',
    'completed',
    'm',
    '{"fp8_linears": false, "fp8_attention": false, "velocity_reuse": 0, "guidance_reuse": 0, "profile": null, "prompt": "a red ball", "negative_prompt": null, "num_frames": 5, "height": 32, "width": 32, "fps": 24.0, "num_inference_steps": 4, "guidance_scale": 6.0, "flow_shift": 10.0, "sigma_schedule": "flow", "seed": 42, "generate_sound": false, "append_metadata": true, "condition_frame_indexes_vision": null, "condition_video_keep": "first", "previews": 0}',
    '{"model": "m on cpu", "mode": "exact", "passes": 2, "text": 10, "step": 100, "decode": 50, "encode": 0, "velocity_reuse": 0, "guidance_reuse": 0}',
    'f',
    '1',
    '{"part": "1"}',
    'done',
    'r',
    1795875793.49501,
    1795875793.5080051,
    1795875793.510017,
    11795875793.49501,
    11795875793.510017,
    1795875823.5080051,
    1,
    false,
    4,
    4,
    '{"tokenizer": 0.1, "denoiser": 2.0, "decoders": 1.0, "storing": 0.1}',
    '[{"name": "video", "media_type": "video/mp4", "size": 3, "file": "95c9aea30b9542f78c3b84ca1759684d/979a27121f8e9e2476eeec7b7a5d937e.mp4"}, {"name": "thumbnail", "media_type": "image/jpeg", "size": 3, "file": "95c9aea30b9542f78c3b84ca1759684d/979a27121f8e9e2476eeec7b7a5d937e.thumbnail.jpg"}, {"name": "spritesheet", "media_type": "image/jpeg", "size": 3, "file": "95c9aea30b9542f78c3b84ca1759684d/979a27121f8e9e2476eeec7b7a5d937e.spritesheet.jpg"}]',
    '{"kind": "image", "file": "95c9aea30b9542f78c3b84ca1759684d/inputs/f.0", "size": 5, "width": 64, "height": 48, "frames": 1, "file_id": null, "continued": false}',
    'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff'
);
INSERT INTO jobs (
    id, status, model, params, cost, fingerprint, seconds, metadata, created_at, completed_at, deadline_at, expires_at, lease_until, attempts, cancel_requested, step, steps, error_code, error_message
) VALUES (
    'video_000000000002bee7c7e011effd0bd6b9',
    'failed',
    'm',
    '{"fp8_linears": false, "fp8_attention": false, "velocity_reuse": 0, "guidance_reuse": 0, "profile": null, "prompt": "a red ball", "negative_prompt": null, "num_frames": 5, "height": 32, "width": 32, "fps": 24.0, "num_inference_steps": 4, "guidance_scale": 6.0, "flow_shift": 10.0, "sigma_schedule": "flow", "seed": 42, "generate_sound": false, "append_metadata": true, "condition_frame_indexes_vision": null, "condition_video_keep": "first", "previews": 0}',
    '{"model": "m on cpu", "mode": "exact", "passes": 2, "text": 10, "step": 100, "decode": 50, "encode": 0, "velocity_reuse": 0, "guidance_reuse": 0}',
    'f',
    '1',
    'null',
    1795875793.5109825,
    1795875793.514,
    11795875793.510983,
    11795875793.514,
    0.0,
    0,
    false,
    0,
    4,
    'cancelled',
    'the job was cancelled'
);
INSERT INTO jobs (
    id, status, model, params, cost, fingerprint, metadata, created_at, deadline_at, lease_until, attempts, cancel_requested, step, steps, remixed_from_video_id
) VALUES (
    'video_000000000003a05474d1346223bd992e',
    'queued',
    'm',
    '{"fp8_linears": false, "fp8_attention": false, "velocity_reuse": 0, "guidance_reuse": 0, "profile": null, "prompt": "a red ball", "negative_prompt": null, "num_frames": 5, "height": 32, "width": 32, "fps": 24.0, "num_inference_steps": 4, "guidance_scale": 6.0, "flow_shift": 10.0, "sigma_schedule": "flow", "seed": 42, "generate_sound": false, "append_metadata": true, "condition_frame_indexes_vision": null, "condition_video_keep": "first", "previews": 0}',
    '{"model": "m on cpu", "mode": "exact", "passes": 2, "text": 10, "step": 100, "decode": 50, "encode": 0, "velocity_reuse": 0, "guidance_reuse": 0}',
    'f',
    'null',
    1795875793.5160115,
    11795875793.516012,
    0.0,
    0,
    false,
    0,
    4,
    'video_0000000000014eb5290b0f4714ee883d'
);
INSERT INTO schema_version VALUES (4, '95c9aea30b9542f78c3b84ca1759684d');
