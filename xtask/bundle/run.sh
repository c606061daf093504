#!/usr/bin/env bash
# What a machine with an NVIDIA GPU can tell: `./run.sh all`. Needs bash, coreutils, a driver of CUDA 12.8 or later and an
# NVRTC no newer than it; python3 with torch for the peers, compute-sanitizer for `sanitize`, each left out if it is absent.
set -uo pipefail

usage() {
    cat <<'TEXT'
usage: ./run.sh [--device cuda|cuda:N|emu] [--quick] STAGE...

  parity        every case of every kernel against the CPU, and the golden vectors
  train         a whole training run on the CPU, and on the device in f32 and in bf16, side by side as one page
  full          AS-DPO at FLUX.1-dev's full size, random weights, 512 pixels: what is planned, what the driver says is used,
                seconds per sample; one sample at a time and several, recomputing and keeping activations
  differential  instruction families on the GPU and on the emulator, compared bit for bit or within bounds
  bench         every kernel by CUDA events, and PyTorch on the same shapes in between
  sanitize      parity under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
  all           all of them

Each writes results/STAGE.json, its output results/STAGE-*.log. --device emu tries the bundle without a GPU and times
nothing; --quick runs each benchmark once. ASASR_NVRTC names NVRTC's folder where it is not found.
TEXT
}

cd "$(dirname "$(readlink -f "$0")")" || exit 1
device=cuda quick= stages=()
while [ $# -gt 0 ]; do
    case $1 in
    --device)
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        device=$2
        shift
        ;;
    --quick) quick=1 ;;
    parity | train | full | differential | bench | sanitize) stages+=("$1") ;;
    all) stages=(parity train full differential bench sanitize) ;;
    -h | --help) usage; exit 0 ;;
    *)
        echo "error: \`$1\` is no stage and no option" >&2
        usage >&2
        exit 2
        ;;
    esac
    shift
done
case $device in
emu | cuda) ordinal=0 ;;
cuda:*[!0-9]* | cuda:) echo "error: --device $device" >&2; exit 2 ;;
cuda:*) ordinal=${device#cuda:} ;;
*) echo "error: --device $device: cuda, cuda:N or emu" >&2; exit 2 ;;
esac
[ ${#stages[@]} -gt 0 ] || { usage >&2; exit 2; }

mkdir -p results
# Compiled kernels stay with the bundle: nothing is left elsewhere.
export ASASR_CACHE="${ASASR_CACHE:-$PWD/cache}" ASASR_CUDA_EMU="$PWD/bin" CI=true
export CRITERION_HOME="$PWD/results/criterion"
# Tests take the first device; the driver counts from the one that is meant.
if [ "$device" != emu ]; then
    export CUDA_DEVICE_ORDER=PCI_BUS_ID
    [ "$ordinal" = 0 ] || export CUDA_VISIBLE_DEVICES=$ordinal
    on=cuda
else
    on=emu
    export CUDA_EMU_QUIET=1
fi
export ASASR_TEST_DEVICE=$on

bin/asasr-engine --version || { echo "error: these binaries do not run here: x86-64 and glibc are wanted" >&2; exit 1; }

# A JSON string.
quote() {
    local s=$1
    s=${s//\\/\\\\} s=${s//\"/\\\"} s=${s//$'\t'/ } s=${s//$'\r'/ } s=${s//$'\n'/\\n}
    printf '"%s"' "$s"
}

# What nvidia-smi says of one property, or nothing.
smi() {
    [ $on = cuda ] && command -v nvidia-smi >/dev/null || return 0
    nvidia-smi -i "$ordinal" --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1
}

# The machine as it is now.
machine() {
    printf '{"gpu": %s, "driver": %s, "sm_clock": %s, "memory_clock": %s, "max_sm_clock": %s, ' \
        "$(quote "$(smi name)")" "$(quote "$(smi driver_version)")" "$(quote "$(smi clocks.sm)")" \
        "$(quote "$(smi clocks.mem)")" "$(quote "$(smi clocks.max.sm)")"
    printf '"temperature": %s, "power_limit": %s, "kernel": %s, "cpus": %s}' "$(quote "$(smi temperature.gpu)")" \
        "$(quote "$(smi power.limit)")" "$(quote "$(uname -sr)")" "$(nproc)"
}

rows= failed=0
# step NAME COMMAND...: runs it, its output into results/STAGE-NAME.log and here, and notes how it ended.
step() {
    local name=$1 log="results/$stage-$1.log" begun=$EPOCHREALTIME code
    shift
    echo "--- $stage: $name"
    "$@" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    row "$name" "$code" "$begun" "$log"
    return "$code"
}
row() {
    local micros=$((${EPOCHREALTIME/[.,]/} - ${3/[.,]/}))
    [ "$2" = 0 ] || failed=1
    rows+="${rows:+, }{\"step\": $(quote "$1"), \"exit_code\": $2, \"seconds\": $((micros / 1000000)).$(printf %06d $((micros % 1000000))), \"log\": $(quote "$4")}"
}
skip() {
    echo "--- $stage: $1 skipped: $2"
    rows+="${rows:+, }{\"step\": $(quote "$1"), \"skipped\": $(quote "$2")}"
}
# json FILE: its content, or null.
json() { if [ -s "$1" ]; then cat "$1"; else printf null; fi; }

parity() {
    step kernels bin/parity --nocapture --test-threads=1
    step golden bin/asasr-engine verify --fixtures tests/golden --device "$on"
    step golden-bf16 bin/asasr-engine verify --fixtures tests/golden --device "$on" --precision bf16
}

train() {
    local preset=tiny run
    [ $on = emu ] && preset=nano
    rm -rf results/train
    for run in "cpu cpu f32" "f32 $on f32" "bf16 $on bf16"; do
        set -- $run
        step "$1" bin/asasr-engine train --preset $preset --device "$2" --set "run.precision=$3" --out "results/train/$1" || return
    done
    for run in f32 bf16; do
        step "report-$run" bin/asasr-engine report results/train/cpu "results/train/$run" --out "results/train/$run.html"
    done
}

# Adapters of the paper's ranks are trained in a few steps each, so that AS-DPO stands on real ones.
full() {
    local how batch recompute name set args watch last
    local sets=(data.source=dead-leaves data.images=4 data.held_out=1 data.degradation=light data.codec=tests/golden/tiny_flux/vae
        run.stages=sft,adversary,asdpo run.eval_crops=1 run.eval_steps=1 run.validation_crops=1 sft.rank=128 sft.alpha=128)
    if [ $on = cuda ]; then
        sets+=(model.base=random:flux-dev data.image_size=512)
    else
        sets+=(model.base=random:tests/golden/tiny_flux/transformer data.image_size=64 data.crop=64)
    fi
    for name in sft adversary asdpo; do
        sets+=($name.steps=6 $name.warmup=1 $name.accumulation=1 $name.validate_every=0 $name.batch=1 $name.recompute=true)
    done
    for how in "1 true" "4 true" "1 false" "2 false"; do
        read -r batch recompute <<<"$how"
        name=batch-$batch-recompute-$recompute args=()
        for set in "${sets[@]}" asdpo.batch=$batch asdpo.recompute=$recompute; do args+=(--set "$set"); done
        rm -rf "results/full-$name"
        step "plan-$name" bin/asasr-engine train --preset paper-asdpo --device "$on" "${args[@]}" --dry-run || continue
        (while sleep 0.1; do smi memory.used; done) >"results/full-$name.memory" &
        watch=$!
        step "train-$name" bin/asasr-engine train --preset paper-asdpo --device "$on" "${args[@]}" --out "results/full-$name"
        kill $watch
        last=$(tail -n 1 "results/full-$name/log.jsonl" 2>/dev/null)
        rows+=", {\"step\": $(quote "used-$name"), \"driver_used\": $(quote "$(sort -n "results/full-$name.memory" | tail -n 1)"), "
        rows+="\"last_update\": ${last:-null}}"
    done
}

differential() {
    rm -rf results/differential-a results/differential-b
    # Without a GPU both sides are the emulator: that shows the suite, not the hardware.
    step dump bin/differential --device "$on" --out results/differential-a
    step emulator bin/differential --device emu --out results/differential-b
    step compare bin/differential --compare results/differential-a results/differential-b --json results/differential-rows.json
}

bench() {
    local rounds=3 options=() peer=() i
    [ -z "$quick" ] && [ $on = cuda ] || { rounds=1 options=(--test) peer=(--quick); }
    rm -f results/bench-engine-*.json results/bench-torch-*.json
    local arch
    arch=$(smi compute_cap)
    step resources bin/kernel_report ${arch:+"sm_${arch/./}"} --json results/bench-resources.json
    local torch=
    [ $on = cuda ] && python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null && torch=1
    # In turns, so that a change of clocks or temperature meets both.
    for i in $(seq $rounds); do
        step "engine-$i" bin/kernels --bench --device "$on" --json "results/bench-engine-$i.json" "${options[@]}"
        if [ -n "$torch" ]; then
            step "torch-$i" python3 peers/torch_kernels.py --json "results/bench-torch-$i.json" "${peer[@]}"
        fi
    done
    [ -n "$torch" ] || skip torch "no python3 with torch and CUDA"
    if command -v python3 >/dev/null; then
        step table python3 peers/torch_kernels.py --merge results/bench-engine-*.json $(ls results/bench-torch-*.json 2>/dev/null)
    fi
}

sanitize() {
    local tool sanitizer
    if [ $on = emu ]; then
        # The emulator makes these checks at every launch.
        step emulator bin/parity --nocapture --test-threads=1
        return
    fi
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    if [ -z "$sanitizer" ]; then
        skip compute-sanitizer "not installed"
        return
    fi
    for tool in memcheck racecheck initcheck synccheck; do
        step $tool "$sanitizer" --tool $tool --error-exitcode 86 bin/parity --nocapture --test-threads=1
    done
}

status=0
for stage in "${stages[@]}"; do
    rows= failed=0
    echo "=== $stage"
    begun=$EPOCHREALTIME date=$(date -u +%Y-%m-%dT%H:%M:%SZ) before=$(machine)
    "$stage"
    micros=$((${EPOCHREALTIME/[.,]/} - ${begun/[.,]/}))
    {
        printf '{"stage": %s, "device": %s, "gpu_timing": %s, "version": %s, "date": %s, "seconds": %d.%06d, "passed": %s,\n' \
            "$(quote "$stage")" "$(quote "$device")" "$([ $on = cuda ] && [[ $stage = bench || $stage = full ]] && [ -z "$quick" ] && echo true || echo false)" \
            "$(quote "$(cat VERSION)")" "$(quote "$date")" $((micros / 1000000)) $((micros % 1000000)) \
            "$([ $failed = 0 ] && echo true || echo false)"
        printf ' "machine_before": %s,\n "machine_after": %s,\n "steps": [%s]' "$before" "$(machine)" "$rows"
        if [ "$stage" = differential ]; then printf ',\n "result": %s' "$(json results/differential-rows.json)"; fi
        if [ "$stage" = bench ]; then
            printf ',\n "resources": %s,\n "results": [' "$(json results/bench-resources.json)"
            first=1
            for file in results/bench-engine-*.json results/bench-torch-*.json; do
                [ -s "$file" ] || continue
                [ $first = 1 ] || printf ',\n'
                first=0
                cat "$file"
            done
            printf ']'
        fi
        printf '}\n'
    } >"results/$stage.json"
    [ $failed = 0 ] && echo "=== $stage passed: results/$stage.json" || { echo "=== $stage FAILED: results/$stage.json"; status=1; }
done
exit $status
