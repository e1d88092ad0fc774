#!/usr/bin/env bash
# Training on the GPUs of this machine.
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Train on the GPUs of this machine. One process uses all of them, which is JAX's default, and the mesh spans them
(--config.mesh.fsdp=8 and so on after --).

  launch/gpus.sh run    --dir=DIR [--gpus=0,1,2,3] -- TRAINER FLAGS…     start; continues after this shell exits
  launch/gpus.sh logs   --dir=DIR [--lines=50] [--no-follow]
  launch/gpus.sh status --dir=DIR
  launch/gpus.sh stop   --dir=DIR [--grace=300]                          SIGTERM, so that the run saves; later SIGKILL

  --dir=DIR           holds log, process id and exit code; a different directory for each run
  --gpus=LIST         which GPUs, as CUDA_VISIBLE_DEVICES; all without it
  --xla-flags=FLAGS   sets XLA_FLAGS, overriding the environment. None are needed. NVIDIA's JAX images set
                      --xla_gpu_enable_latency_hiding_scheduler=true, which overlaps communication with computation
                      (docs.nvidia.com/jax-toolbox/environment-variables); measure before keeping any
  --python=python3    interpreter with pip install -e '.[cuda]'; --module=M instead of cotmi_jax.train
  --dry-run           print the command and run none

The run inherits this shell's environment: export HF_TOKEN and the like. The same command again resumes from --workdir.
HELP
}

dir='' gpus='' xla_flags='' lines=50 no_follow='' grace=300 python=python3

worker() {
  printf 'bash %s %s' "$(quote "$root/launch/worker.sh")" "$(quote "$@" --dir="$dir")"
}

start() {
  local variables=''
  [[ ! $gpus ]] || variables+="CUDA_VISIBLE_DEVICES=$gpus "
  [[ ! $xla_flags ]] || variables+="XLA_FLAGS=$(quote "$xla_flags") "
  run "$variables$(worker start) -- $(trainer "$python")"
}

logs() {
  run "$(worker logs --lines="$lines" ${no_follow:+--no-follow})"
}

status() {
  run "$(worker status)"
}

stop() {
  run "$(worker stop --grace="$grace")"
}

[[ ${1:-} != --help ]] || { usage && exit 0; }
command=${1:-}
shift || true
case $command in
  run) accepted="gpus= xla-flags= python= module=" ;;
  logs) accepted="lines= no-follow" ;;
  status) accepted='' ;;
  stop) accepted="grace=" ;;
  *) die "unknown command ${command@Q}: run, logs, status or stop; see launch/$script --help" ;;
esac
flags "dry-run dir= $accepted" "$@"
need dir
need_count lines grace
[[ ! $gpus || $gpus =~ ^[0-9]+(,[0-9]+)*$ ]] || die "--gpus=$gpus is not a list of numbers, such as 0,1,2,3"
if [[ $command == run ]]; then
  trainer python >/dev/null
  workdir_of >/dev/null
  command=start
fi
"$command"
