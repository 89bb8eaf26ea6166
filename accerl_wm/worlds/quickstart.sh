#!/bin/bash
# How worlds/quickstart was made: 3,940 episodes of scripted experts, failures among them, in ten minutes of two processor
# cores; then three and a half minutes on a GPU. On a processor, leave out the devices and give it an hour.
#
#     accerl_wm/worlds/quickstart.sh OUT [DEVICE]
set -euo pipefail
out=${1:?folder for data and world model} device=${2:-cuda}

record() { # name, episodes a task, seed, further options
  accerl demos --config quickstart --demos.draw-every 2 --out "$out/data/$1" --demos.episodes-per-task "$2" \
    --demos.seed "$3" "${@:4}"
}

failing="--demos.keep-failures"
accerl demos --config quickstart --out "$out/data/clone"
record quiet 80 2000 --demos.noise 0.15
record mid 60 3000 --demos.noise 0.3 --demos.speed 0.8
record noisy 60 4000 --demos.noise 0.6 $failing --demos.patience 1.5
record wild 60 5000 --demos.noise 1.0 --demos.speed 0.7 $failing --demos.patience 1.5
record late 40 6000 --demos.noise 0.3 --demos.speed 0.4 $failing --demos.patience 1
record quiet2 160 12000 --demos.noise 0.2
record mid2 120 13000 --demos.noise 0.4 --demos.speed 0.7 $failing --demos.patience 1.2
record late2 120 16000 --demos.noise 0.3 --demos.speed 0.45 $failing --demos.patience 1
record noisy2 130 14000 --demos.noise 0.6 $failing --demos.patience 1.2
record wild2 130 15000 --demos.noise 1.0 --demos.speed 0.7 $failing --demos.patience 1.2

sets=$(printf ",$out/data/%s" quiet mid noisy wild late clone quiet2 mid2 late2 noisy2 wild2)
accerl wm train --demos "${sets:1}" --held-out 0.04 --out "$out/world" --window 40 \
  --observation.device "$device" --observation.updates 100000 --observation.max-s 170 --observation.batch-size 256 \
  --observation.warmup-updates 100 \
  --reward.device "$device" --reward.updates 100000 --reward.max-s 35 --reward.batch-size 256
