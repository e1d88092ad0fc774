#!/usr/bin/env bash
# Training on a Cloud TPU VM: a single host or a multi-host slice.
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Train on a Cloud TPU VM: a single host, or a slice of several hosts.

  launch/tpu_vm.sh create --name=N --zone=Z --type=T     create the TPU and wait until it is READY
  launch/tpu_vm.sh setup  --name=N --zone=Z              copy the commit at HEAD to every worker, install it
  launch/tpu_vm.sh run    --name=N --zone=Z --type=T -- TRAINER FLAGS…    start; continues after the connection closes
  launch/tpu_vm.sh logs   --name=N --zone=Z [--worker=0] [--lines=50] [--no-follow]
  launch/tpu_vm.sh status --name=N --zone=Z              state of the TPU and of the run on every worker
  launch/tpu_vm.sh stop   --name=N --zone=Z [--grace=300]          SIGTERM, so that the run saves; later SIGKILL
  launch/tpu_vm.sh resume … (flags of create and run) -- TRAINER FLAGS…    whichever of create, setup and run are needed
  launch/tpu_vm.sh watch  … (flags of create and run) -- TRAINER FLAGS…    repeat resume until the run is finished
  launch/tpu_vm.sh delete --name=N --zone=Z              delete without saving: stop first. The TPU is billed until then

  --name, --zone, --project=P   as for gcloud; without --project, gcloud's own
  --type=T            accelerator type: v5litepod-64, v6e-8, v5p-32, v4-8, …
  --version=V         runtime version; by default the one that Google documents for JAX on that type
  --queued            create through queued resources; needs the same flag with delete, status, resume and watch
  --spot              cheaper, but may be preempted at any time: see watch
  --valid-until-duration=6h     cancel the request if it waits longer in the queue (with --queued)
  --env=NAME          pass this variable to the run (repeatable). Name only: the value is copied in a file that only
                      you can read, which the run deletes after reading, and appears in no command
  --extras=tpu        what setup installs: pip install -e '.[EXTRAS]'
  --python=PYTHON     interpreter on the workers for setup (3.11 or newer; default: found, or installed by uv)
  --module=M          instead of cotmi_jax.train
  --shared-workdir    the local --workdir is on a file system that all workers mount and that outlives the TPU
  --retries=0         watch: number of restarts after failures of the program itself; preemptions are not counted
  --poll=60           seconds between two queries of the state
  --create-flag=F, --ssh-flag=F   further flags for gcloud … create, and for gcloud … ssh and scp (repeatable)
  --dry-run           print the commands and run none

Arguments after -- are passed unchanged to python -m cotmi_jax.train on every worker. A run resumes from its --workdir,
which must be gs://… where the TPU has several hosts or may be preempted. Needs gcloud (gcloud auth login).
HELP
}

name='' zone='' project='' type='' version='' queued='' spot='' valid_until_duration='' extras=tpu worker=0 lines=50
no_follow='' grace=300 shared_workdir='' retries=0 poll=60
create_flag=() ssh_flag=()

# Paths on a worker: run_files is relative to the home directory, venv to the code in ~/cotmi_jax.
readonly run_files=cotmi_jax_run venv=../cotmi_jax_venv

default_version() {
  case $type in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# gcp GROUP VERB ARGUMENT…: prints a gcloud command.
gcp() {
  quote gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"} --quiet
}

# remote WORKERS COMMAND: prints the command that runs COMMAND there.
remote() {
  gcp tpu-vm ssh "$name" --worker="$1" --command="$2" "${ssh_flag[@]}"
}

# copy FILE DESTINATION: prints the command that copies a file of the scratch directory to every worker.
copy() {
  # shellcheck disable=SC2016
  printf 'gcloud compute tpus tpu-vm scp "$scratch/%s" %s' "$1" \
    "$(quote "$name:$2" --worker=all "${ssh_flag[@]}" --zone="$zone" ${project:+--project="$project"} --quiet)"
}

order() {
  if [[ $queued ]]; then
    run "$(gcp queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
      --runtime-version="$version" ${spot:+--spot} \
      ${valid_until_duration:+--valid-until-duration="$valid_until_duration"} "${create_flag[@]}")"
  else
    run "$(gcp tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot} \
      "${create_flag[@]}")"
  fi
}

delete() {
  if [[ $queued ]]; then
    run "$(gcp queued-resources delete "$name" --force)"
  else
    run "$(gcp tpu-vm delete "$name")"
  fi
}

# Whether the TPU has more than one host. A host has 8 chips of v5e and v6e, or 4 chips, which count as 8 cores, of v2
# to v5p.
several_hosts() { ((${type##*-} > 8)); }

describe_queued() { gcp queued-resources describe "$name" --format='value(state.state)'; }
describe_node() { gcp tpu-vm describe "$name" --format='value(state)'; }

# describe COMMAND: its output, GONE where the resource does not exist, UNKNOWN where the query failed.
describe() {
  local answer
  if answer=$(eval "$1" 2>&1); then
    printf '%s' "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* || $answer == *"was not found"* ]]; then
    printf GONE
  else
    note "${answer##*$'\n'}"
    printf UNKNOWN
  fi
}

# READY, GONE, UNKNOWN, or what Cloud TPU calls the state of the queued resource or, once that is active, of the node.
state() {
  local found=ACTIVE
  [[ ! $queued ]] || found=$(describe "$(describe_queued)")
  if [[ $found == ACTIVE ]]; then
    found=$(describe "$(describe_node)")
    [[ ! $queued || $found != GONE ]] || found=PREEMPTED # the queued resource still exists and has to be deleted too
  fi
  printf '%s' "$found"
}

# A STOPPED TPU was stopped by a user, and only a user starts it again.
die_stopped() {
  die "$name is STOPPED: start it ($(gcp tpu-vm start "$name")) or delete it, then give the same command again"
}

# Creates the TPU where there is none, deletes it where it was preempted or failed, and returns once it is READY.
bring_up() {
  local now
  if [[ $dry_run ]]; then
    note "if the TPU was preempted or has failed:"
    delete
    note "if there is none:"
    order
    wait_until_ready
    return
  fi
  while true; do
    now=$(state)
    [[ $now != READY ]] || break
    note "$name is $now"
    case $now in
      GONE) (order) || note "could not be created, retrying in $poll s" ;;
      PREEMPTED | TERMINATED | SUSPENDED | FAILED) (delete) || note "could not be deleted, retrying in $poll s" ;;
      STOPPED) die_stopped ;;
    esac
    sleep "$poll"
  done
}

wait_until_ready() {
  local now=''
  if [[ $dry_run ]]; then
    note "every $poll s until READY:"
    [[ ! $queued ]] || run "$(describe_queued)"
    run "$(describe_node)"
    return
  fi
  while now=$(state) && [[ $now != READY ]]; do
    case $now in
      PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        die "$name is $now: delete it, then create it again (resume does both)"
        ;;
      STOPPED) die_stopped ;;
    esac
    note "$name is $now"
    sleep "$poll"
  done
}

create() {
  order
  wait_until_ready
}

setup() {
  open_scratch
  clone_code
  # shellcheck disable=SC2016
  run 'tar -C "$scratch/code" -czf "$scratch/cotmi_jax.tgz" .'
  run "$(copy cotmi_jax.tgz cotmi_jax.tgz)"
  run "$(remote all "rm -rf cotmi_jax && mkdir -p cotmi_jax $run_files && tar -C cotmi_jax -xzf cotmi_jax.tgz &&\
 cd cotmi_jax && bash launch/worker.sh setup --venv=$venv $(quote --extras="$extras" ${python:+--python="$python"})")"
  close_scratch
}

start() {
  local command="cd cotmi_jax && " file=''
  if ((${#env[@]})); then
    file=" --env-file=../$run_files/env"
    open_scratch
    # printf is a bash builtin, so the values appear in no process list.
    run "(umask 077; for name in $(quote "${env[@]}"); do\
 printf 'export %s=%q\n' \"\$name\" \"\${!name}\"; done >\"\$scratch/env\")"
    run "$(copy env "$run_files/env")"
  fi
  ! several_hosts || command+="COTMI_COORDINATOR=auto "
  command+="bash launch/worker.sh start --dir=../$run_files$file -- $(trainer "$venv/bin/python")"
  run "$(remote all "$command")"
  [[ ! $file ]] || close_scratch
}

readonly ask_workers="[ ! -e cotmi_jax_venv/ready ] || [ ! -e cotmi_jax ] && echo missing ||\
 bash cotmi_jax/launch/worker.sh status --dir=$run_files"

# State of the run over all workers: missing (setup is needed), running, failed, again (to be restarted), stopped,
# finished or unknown.
progress() {
  local answers
  answers=$(eval "$(remote all "$ask_workers")") || { echo unknown && return; }
  case $'\n'$answers in
    *$'\n'missing*) echo missing ;;
    *$'\n'running*) echo running ;;
    *$'\n'failed*) echo failed ;;
    *$'\n'interrupted* | *$'\n'none*) echo again ;;
    *$'\n'stopped*) echo stopped ;;
    *$'\n'finished*) echo finished ;;
    *) echo unknown ;;
  esac
}

# Runs whichever of create, setup and run are needed.
resume() {
  local now=unknown
  bring_up
  if [[ $dry_run ]]; then
    note "state of the run on the workers:"
    run "$(remote all "$ask_workers")"
    note "if they are not set up:"
    setup
    note "if the run is not running:"
    start
    return
  fi
  now=$(progress)
  note "the run is ${now/again/to be started}"
  case $now in
    missing) setup && start ;;
    again | stopped | failed) start ;;
    unknown) die "the workers of $name do not answer: try again, or see launch/$script status" ;;
  esac
}

watch() {
  local now before=''
  if [[ $dry_run ]]; then
    note "every $poll s until the run is finished:"
    resume
    return
  fi
  while true; do
    bring_up
    now=$(progress)
    [[ $now == "$before" ]] || note "the run is ${now/again/to be started}"
    before=$now
    case $now in
      missing) (setup && start) || note "could not be started, retrying in $poll s" ;;
      again) (start) || note "could not be started, retrying in $poll s" ;;
      failed)
        ((retries-- > 0)) ||
          die "the run on $name failed: see launch/$script logs; the TPU still exists and is billed"
        (start) || note "could not be started, retrying in $poll s"
        ;;
      stopped | finished)
        note "the TPU still exists and is billed: launch/$script delete"
        return
        ;;
      unknown)
        note "the workers do not answer, retrying in $poll s; the TPU is billed meanwhile: launch/$script delete"
        ;;
    esac
    sleep "$poll"
  done
}

logs() {
  run "$(remote "$worker" \
    "bash cotmi_jax/launch/worker.sh logs --dir=$run_files --lines=$lines${no_follow:+ --no-follow}")"
}

status() {
  [[ ! $queued ]] || run "$(describe_queued)"
  run "$(describe_node)"
  [[ ! $dry_run && $(state) != READY ]] || run "$(remote all "bash cotmi_jax/launch/worker.sh status --dir=$run_files")"
}

stop() {
  run "$(remote all "bash cotmi_jax/launch/worker.sh stop --dir=$run_files --grace=$grace")"
}

[[ ${1:-} != --help ]] || { usage && exit 0; }
command=${1:-}
shift || true
ordering="type= version= spot valid-until-duration= create-flag+ poll="
case $command in
  create) accepted=$ordering ;;
  setup) accepted="extras= python=" ;;
  run) accepted="module= env+ type= shared-workdir" ;; # uses the interpreter that setup chose
  logs) accepted="worker= lines= no-follow" ;;
  stop) accepted="grace=" ;;
  status | delete) accepted='' ;;
  resume) accepted="$training $ordering extras= shared-workdir" ;;
  watch) accepted="$training $ordering extras= shared-workdir retries=" ;;
  *)
    die "unknown command ${command@Q}: create, setup, run, logs, status, stop, resume, watch, delete;" \
      "see launch/$script --help"
    ;;
esac
flags "dry-run name= zone= project= queued ssh-flag+ $accepted" "$@"
need name zone
need_count lines grace poll
[[ $retries =~ ^[0-9]+$ ]] || die "--retries=$retries is not a whole number"

if [[ $accepted == *type=* ]]; then
  need type
  [[ $type =~ ^v[0-9a-z]+-[0-9]+$ ]] || die "--type=$type is not an accelerator type, such as v5litepod-64 or v6e-8"
  version=${version:-$(default_version)}
  [[ ! $valid_until_duration || $queued ]] || die "--valid-until-duration is for queued resources: add --queued"
fi
if [[ $accepted == *shared-workdir* ]]; then
  trainer python >/dev/null
  workdir=$(workdir_of)
  if [[ $workdir && $workdir != *://* && ! $shared_workdir ]]; then
    ! several_hosts ||
      die "--workdir=$workdir is local, and the hosts of a $type share no file system: use gs://…, or --shared-workdir"
    [[ $command == run ]] ||
      die "--workdir=$workdir is lost with the TPU when that is preempted: use gs://…, or --shared-workdir"
  fi
fi
[[ $command == run ]] && command=start
"$command"
