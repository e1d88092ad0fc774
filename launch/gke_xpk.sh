#!/usr/bin/env bash
# Training on TPUs of a GKE cluster, as an XPK workload.
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Train on TPU slices of a GKE cluster that XPK made (xpk cluster create).

  launch/gke_xpk.sh run    --cluster=C --zone=Z --workload=W --tpu-type=T (--docker-image=I | --base-docker-image=I)
                           -- TRAINER FLAGS…
  launch/gke_xpk.sh resume … the same flags: deletes the workload if it exists, and creates it again
  launch/gke_xpk.sh list   --cluster=C --zone=Z
  launch/gke_xpk.sh logs   --cluster=C --zone=Z --workload=W [--slice=0] [--worker=0] [--lines=50] [--no-follow]
  launch/gke_xpk.sh delete --cluster=C --zone=Z --workload=W     SIGTERM to every worker, which saves, then deletes

  --cluster, --zone, --project=P   of the cluster; without --project, gcloud's own
  --workload=W        lower case letters, digits and -, at most 39 of them
  --tpu-type=T        v5litepod-16, v6e-64, …; --num-slices=1 of them
  --docker-image=I            an image with this repository as WORKDIR and pip install -e '.[tpu]' done in it
  --base-docker-image=I       any image with Python 3.11 or newer, such as python:3.12: XPK copies the commit at HEAD
                              into it with docker, pushes it to gcr.io/PROJECT; every worker pip installs it first
  --extras=tpu        what is then installed: pip install -e '.[EXTRAS]'
  --max-restarts=50   how often XPK starts the workload again after a lost host
  --grace=300         seconds between SIGTERM and SIGKILL, in which a worker saves
  --env=NAME          pass this variable to the run (repeatable). Name only: xpk reads the value from this
                      environment. Users of the cluster who may read the workload's specification can read it
  --priority=P        very-low, low, medium, high, very-high; --spot, --on-demand, --reservation=R as for xpk
  --python=python3    interpreter in the image; --module=M instead of cotmi_jax.train
  --xpk-flag=F        further flags for xpk workload create (repeatable)
  --dry-run           print the commands and run none

--workdir is gs://… or, with --shared-workdir, a volume that every worker mounts. Needs xpk, gcloud and, for logs,
kubectl; logs writes the cluster's credentials to a temporary file.
HELP
}

cluster='' zone='' project='' workload='' tpu_type='' num_slices=1 docker_image='' base_docker_image='' extras=tpu
max_restarts=50 grace=300 priority='' spot='' on_demand='' reservation='' shared_workdir='' slice=0 worker=0 lines=50
no_follow='' python=python3
xpk_flag=()

# workload VERB ARGUMENT…: prints an xpk command on the cluster.
workload() {
  quote xpk workload "$1" --cluster="$cluster" --zone="$zone" ${project:+--project="$project"} "${@:2}"
}

# Whether the workload has more than one VM. A VM has 4 chips in GKE, fewer than a host of Cloud TPU. A type names
# its topology, or the number of chips (v5litepod, v6e) or of cores, two per chip.
several_vms() {
  local chips=${tpu_type##*-}
  if [[ $chips =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]]; then
    chips=$((${chips//x/*}))
  elif [[ ! $chips =~ ^[1-9][0-9]*$ ]]; then
    die "--tpu-type=$tpu_type is not an XPK type, such as v6e-16 or tpu7x-2x2x1"
  elif [[ $tpu_type != v5litepod-* && $tpu_type != v6e-* ]]; then
    chips=$((chips / 2))
  fi
  ((chips > 4 || num_slices > 1))
}

start() {
  local command='' files=''
  # exec, so that worker.sh is the child to which XPK forwards SIGTERM.
  [[ ! $base_docker_image ]] || command="$(quote "$python" -m pip install --quiet -e ".[$extras]") && "
  ! several_vms || command+="export COTMI_COORDINATOR=auto && "
  command+="exec bash launch/worker.sh foreground -- $(trainer "$python")"
  open_scratch
  if [[ $base_docker_image ]]; then
    clone_code
    files=" --script-dir=\"\$scratch/code\""
  fi
  if ((${#env[@]})); then
    run "printf '%s\\n' $(quote "${env[@]}") >\"\$scratch/names\""
    files+=" --env-file=\"\$scratch/names\""
  fi
  run "$(workload create --workload="$workload" --tpu-type="$tpu_type" --num-slices="$num_slices" \
    ${docker_image:+--docker-image="$docker_image"} \
    ${base_docker_image:+--base-docker-image="$base_docker_image"} \
    --max-restarts="$max_restarts" --termination-grace-period-seconds="$grace" ${priority:+--priority="$priority"} \
    ${spot:+--spot} ${on_demand:+--on-demand} ${reservation:+--reservation="$reservation"} "${xpk_flag[@]}" \
    --command="$command")$files"
  close_scratch
}

delete() {
  run "$(workload delete --workload="$workload" --force)"
}

list() {
  run "$(workload list)"
}

resume() {
  local listed
  if [[ $dry_run ]]; then
    note "if it is still listed:"
    list
    delete
  else
    listed=$(eval "$(workload list --filter-by-job="$workload")") || die "xpk cannot list the workloads of $cluster"
    ! grep -Eq "^$workload([[:space:]]|\$)" <<<"$listed" || delete
  fi
  start
}

logs() {
  local follow=--follow jobset=jobset.sigs.k8s.io index=batch.kubernetes.io/job-completion-index
  [[ ! $no_follow ]] || follow=--follow=false
  open_scratch
  run "KUBECONFIG=\"\$scratch/kubeconfig\" $(quote gcloud container clusters get-credentials "$cluster" \
    --location="${zone%-?}" ${project:+--project="$project"})"
  run "KUBECONFIG=\"\$scratch/kubeconfig\" $(quote kubectl logs --tail="$lines" $follow --container=jax-tpu \
    --selector="$jobset/jobset-name=$workload,$jobset/job-index=$slice,$index=$worker")"
  close_scratch
}

[[ ${1:-} != --help ]] || { usage && exit 0; }
command=${1:-}
shift || true
case $command in
  run | resume)
    accepted="$training workload= tpu-type= num-slices= docker-image= base-docker-image= extras= max-restarts= grace="
    accepted+=" priority= spot on-demand reservation= shared-workdir xpk-flag+"
    ;;
  list) accepted='' ;;
  logs) accepted="workload= slice= worker= lines= no-follow" ;;
  delete) accepted="workload=" ;;
  *) die "unknown command ${command@Q}: run, resume, list, logs or delete; see launch/$script --help" ;;
esac
flags "dry-run cluster= zone= project= $accepted" "$@"
need cluster zone
[[ $command == list ]] || need workload
[[ ! $workload || $workload =~ ^[a-z]([a-z0-9-]{0,37}[a-z0-9])?$ ]] ||
  die "--workload=$workload is not a valid XPK name: use lower case letters, digits and -, at most 39"
need_count num-slices grace lines
if [[ $command == run || $command == resume ]]; then
  need tpu-type
  several_vms || true # exits on an invalid type, before any command is run
  [[ ${docker_image:+1} != "${base_docker_image:+1}" ]] ||
    die "give one of --docker-image and --base-docker-image: see launch/$script --help"
  trainer python >/dev/null
  workdir=$(workdir_of)
  [[ ! $workdir || $workdir == *://* || $shared_workdir ]] ||
    die "--workdir=$workdir is a directory in a container and is lost with it: use gs://…, or --shared-workdir"
fi
[[ $command == run ]] && command=start
"$command"
