#!/usr/bin/env bash
# Training on GPUs of a SLURM cluster, on one node or several.
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Train on GPUs of a SLURM cluster. Checkout, virtual environment and --workdir are on a shared file system.

  launch/slurm.sh run    --name=N --nodes=2 --gpus-per-node=8 --time=24:00:00 --venv=DIR -- TRAINER FLAGS…     submit
  launch/slurm.sh logs   --name=N --job=ID [--log-dir=.] [--lines=50] [--no-follow]
  launch/slurm.sh status --job=ID
  launch/slurm.sh stop   --job=ID        SIGTERM to every process: the run saves, and the job ends
  launch/slurm.sh delete --job=ID        scancel: SIGKILL follows after the cluster's KillWait, 30 s by default

  --nodes=1, --gpus-per-node=1   resources; --time, --partition, --account, --cpus-per-task, --mem as for sbatch
  --processes-per-node=P   one per GPU (default; what JAX expects under SLURM), or 1, for all GPUs of a node
  --venv=DIR          virtual environment with pip install -e '.[cuda]'; or --python=PYTHON; or
  --container=FILE    an image for apptainer exec --nv, whose python3 (--python) has the packages
  --setup=LINE        a line of shell for the job, before training, such as 'module load cuda' (repeatable)
  --grace=120         seconds before the time limit at which the run gets SIGTERM and saves; it is then requeued
  --env=NAME          pass this variable to the job (repeatable). Name only: sbatch reads it from this environment
  --log-dir=DIR       the log is DIR/NAME-JOB.log; a restarted job appends to it
  --module=M          instead of cotmi_jax.train
  --sbatch-flag=F, --srun-flag=F   further flags (repeatable)
  --dry-run           print the job script and the commands, and run none

A job that is preempted, loses a node or reaches its time limit is requeued and resumes from --workdir. Only HOME,
PATH, USER and the variables of --env are taken from the submitting shell.
HELP
}

name='' nodes=1 gpus_per_node=1 processes_per_node='' time='' partition='' account='' cpus_per_task='' mem='' venv=''
container='' grace=120 log_dir=. job='' lines=50 no_follow=''
setup=() sbatch_flag=() srun_flag=()

# Prints the job script.
job_script() {
  local interpreter=${python:-python3} line wrapper=()
  [[ ! $venv ]] || interpreter=$venv/bin/python
  [[ ! $container ]] || wrapper=(apptainer exec --nv "$container")
  cat <<'JOB'
#!/bin/bash -l
set -eo pipefail
JOB
  for line in "${setup[@]}"; do printf '%s\n' "$line"; done
  echo "set -u # not earlier: 'module load' and 'conda activate' read unset variables"
  quote cd "$root" && echo
  if ((nodes * processes_per_node > 1)); then echo "export COTMI_COORDINATOR=auto"; fi
  if ((processes_per_node < gpus_per_node)); then
    echo "export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus_per_node - 1))) # default under SLURM: one GPU per process"
  fi
  cat <<'JOB'
again=
# Signals the training, not this shell. srun does not forward SIGTERM: it kills the training.
time_is_up() { again=1; scancel --signal=TERM "$SLURM_JOB_ID" || true; }
trap time_is_up USR1
trap : TERM # preemption: SLURM also signals the training, which saves while this shell waits
JOB
  # Without --export=ALL, srun would inherit sbatch's --export, and the job's variables would not reach the tasks.
  quote srun --export=ALL --kill-on-bad-exit=0 ${cpus_per_task:+--cpus-per-task="$cpus_per_task"} "${srun_flag[@]}" \
    bash launch/worker.sh foreground --lift -- "${wrapper[@]}"
  echo " $(trainer "$interpreter") &"
  cat <<'JOB'
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done # a trapped signal interrupts wait before the step ends
code=0
wait "$step" || code=$?
# 75: another node was lost, and nothing failed. 143: SIGTERM before the first training step.
if [[ $code == 75 || $again && ($code == 0 || $code == 143) ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
((code <= 180 || code == 255)) || code=$((code - 180)) # see launch/worker.sh --help
exit "$code"
JOB
}

submit() {
  run "$(quote sbatch --job-name="$name" --nodes="$nodes" --gpus-per-node="$gpus_per_node" \
    --ntasks-per-node="$processes_per_node" ${cpus_per_task:+--cpus-per-task="$cpus_per_task"} ${mem:+--mem="$mem"} \
    --time="$time" ${partition:+--partition="$partition"} ${account:+--account="$account"} --requeue \
    --signal="B:USR1@$grace" --open-mode=append --output="$log_dir/%x-%j.log" \
    --export="$(IFS=, && echo "HOME,PATH,USER${env[*]:+,${env[*]}}")" "${sbatch_flag[@]}") <<'END_OF_JOB'
$(job_script)
END_OF_JOB"
}

logs() {
  local follow=(-F)
  [[ ! $no_follow ]] || follow=()
  run "$(quote tail -n "$lines" "${follow[@]}" "$log_dir/$name-$job.log")"
}

status() {
  run "$(quote squeue --jobs="$job" --format='%i %j %T %M/%l %R')"
}

stop() {
  run "$(quote scancel --signal=TERM "$job")"
}

delete() {
  run "$(quote scancel "$job")"
}

[[ ${1:-} != --help ]] || { usage && exit 0; }
command=${1:-}
shift || true
case $command in
  run)
    accepted="$training name= nodes= gpus-per-node= processes-per-node= time= partition= account= cpus-per-task= mem="
    accepted+=" venv= container= setup+ grace= log-dir= sbatch-flag+ srun-flag+"
    ;;
  logs) accepted="name= job= log-dir= lines= no-follow" ;;
  status | stop | delete) accepted="job=" ;;
  *) die "unknown command ${command@Q}: run, logs, status, stop or delete; see launch/$script --help" ;;
esac
flags "dry-run $accepted" "$@"
if [[ $command == run ]]; then
  need name time
  processes_per_node=${processes_per_node:-$gpus_per_node}
  need_count nodes gpus-per-node processes-per-node grace
  ((processes_per_node == gpus_per_node || processes_per_node == 1)) ||
    die "--processes-per-node=$processes_per_node is neither 1 nor --gpus-per-node=$gpus_per_node"
  [[ ! ($venv && $container) && ! ($venv && $python) ]] ||
    die "--venv has its own interpreter: remove --container and --python"
  trainer python >/dev/null
  workdir_of >/dev/null
  command=submit
else
  need job
  [[ $job =~ ^[0-9]+$ ]] || die "--job=$job is not the number that run printed"
  [[ $command != logs ]] || need name
  need_count lines
fi
"$command"
