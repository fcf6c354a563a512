#!/usr/bin/env bash
# Trains every part and writes the checkpoint, on one GPU:  training/all.sh OUT CHECKPOINT
# MINUTES_VIDEO, MINUTES_SOUND, MINUTES_LATENTS and MINUTES_TRANSFORMER set the lengths of the schedules.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 checkpoint=$2
mkdir -p "$out"

python3 -m training.tokenizer --out "$out"
python3 -m training.sound_autoencoder --out "$out" --minutes "${MINUTES_SOUND:-4}" >"$out/sound.log" 2>&1 &
sound=$!
python3 -m training.video_vae --out "$out" --minutes "${MINUTES_VIDEO:-6}" 2>&1 | tee "$out/video.log"
wait "$sound"
python3 -m training.latents --out "$out" --minutes "${MINUTES_LATENTS:-2}" 2>&1 | tee "$out/latents.log"
python3 -m training.transformer --out "$out" --minutes "${MINUTES_TRANSFORMER:-9}" 2>&1 | tee "$out/transformer.log"
python3 -m training.export --out "$out" --to "$checkpoint"
