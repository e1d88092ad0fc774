#!/usr/bin/env bash
# One machine's part of a run: sets the machine up, and starts, follows and ends the training there.
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
One machine's part of a run. The other launchers call it; on a single machine it also serves alone.

  launch/worker.sh setup  --venv=DIR [--extras=tpu] [--python=PYTHON]   make the virtual environment
  launch/worker.sh start  --dir=DIR [--env-file=FILE] -- COMMAND…        run COMMAND, which outlives this shell
  launch/worker.sh logs   --dir=DIR [--lines=N] [--no-follow]
  launch/worker.sh status --dir=DIR                      none, running, finished, stopped, interrupted or failed N
  launch/worker.sh stop   --dir=DIR [--grace=300]                        SIGTERM, so that the run saves; later SIGKILL
  launch/worker.sh foreground [--dir=DIR] [--lift] -- COMMAND…   run COMMAND, passing SIGTERM on; 143 where it was
                                                         interrupted

--dir       a directory of the run's own; holds log, pid, exit (the exit code) and lock (held while COMMAND runs).
--env-file  is read by bash, and deleted, before COMMAND is started.
--lift      for srun, which returns the highest exit code of all tasks: COMMAND's own, but 1 to 74 as 181 to 254, above
            the 75 of the tasks that end because another failed, and above 128 and the number of a signal
setup takes the first of python3.12, python3.11 and python3 that is at least 3.11; where there is none, uv brings one.
HELP
}

dir='' lift='' env_file='' lines=50 no_follow='' grace=300 venv='' extras=tpu

setup() {
  local found=''
  need venv
  for found in ${python:+"$python"} python3.12 python3.11 python3 ''; do
    [[ ! $found ]] || ! "$found" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || break
  done
  [[ ! $python || $found == "$python" ]] || die "--python=$python is not a CPython from 3.11 on with venv"
  rm -f "$venv/ready"
  if [[ -x $venv/bin/python ]]; then
    echo "$venv is kept"
  elif [[ $found ]]; then
    "$found" -m venv "$venv"
  else
    python3 -m pip install --user --quiet uv
    python3 -m uv venv --python=3.12 --seed "$venv"
  fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "${root}[$extras]"
  touch "$venv/ready" # which tpu_vm.sh asks for: without it, a failed installation would pass for one
  echo "$(hostname): $("$venv/bin/python" --version) in $venv is ready"
}

running() {
  [[ -e $dir/lock ]] && ! flock --nonblock "$dir/lock" true
}

start() {
  mkdir -p "$dir"
  exec 9>"$dir/lock" # open in the run too, so that the lock lasts as long as any of its processes
  flock --nonblock 9 || die "$(hostname): $dir has a run already: stop it first, or take another --dir"
  rm -f "$dir/exit" "$dir/stopped" "$dir/pid"
  if [[ $env_file ]]; then
    # shellcheck disable=SC1090
    source "$env_file"
    rm -f "$env_file"
  fi
  printf -- '--- %s %s\n' "$(date -u +%FT%TZ)" "$(quote "${arguments[@]}")" >>"$dir/log"
  nohup setsid bash "$0" foreground --dir="$dir" -- "${arguments[@]}" </dev/null >>"$dir/log" 2>&1 &
  while [[ ! -s $dir/pid ]]; do
    kill -0 $! 2>/dev/null || die "$(hostname): could not be started: see $dir/log"
    sleep 0.05
  done
  echo "$(hostname): started, pid $(<"$dir/pid")"
}

# Without --dir in a container, with it below `start`.
foreground() {
  local child code interrupted=''
  trap 'interrupted=1; kill -TERM "$child" 2>/dev/null' TERM
  "${arguments[@]}" &
  child=$!
  [[ ! $dir ]] || echo $$ >"$dir/pid"
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a trapped signal ends wait before the child
  code=0
  wait "$child" || code=$?
  # The trainer ends with 0 once it has saved, and with 75 where another host is gone. That is no finished run, and no
  # failed one either: 143, which is also among the codes from 127 on after which XPK restarts.
  if [[ $lift ]]; then
    ((code == 0 || code >= 75)) || code=$((code + 180))
  elif [[ $interrupted && $code == 0 || $code == 75 ]]; then
    code=143
  fi
  [[ ! $dir ]] || echo "$code" >"$dir/exit"
  exit "$code"
}

logs() {
  [[ -e $dir/log ]] || die "$(hostname): nothing has been started in $dir"
  if [[ $no_follow ]]; then
    tail -n "$lines" "$dir/log"
  else
    exec tail -n "$lines" -F "$dir/log"
  fi
}

status() {
  if [[ ! -e $dir/log ]]; then
    echo none
  elif running; then
    echo "running pid $(cat "$dir/pid"): $(tr '\r' '\n' <"$dir/log" | tail -n 1)"
  elif [[ ! -e $dir/exit ]]; then
    echo interrupted # together with what would have written the exit code, as by a reboot
  else
    case $(<"$dir/exit") in
      0) echo finished ;;
      143) [[ -e $dir/stopped ]] && echo stopped || echo interrupted ;;
      *) echo "failed $(<"$dir/exit")" ;;
    esac
  fi
}

stop() {
  if ! running; then
    echo "$(hostname): not running"
    return
  fi
  touch "$dir/stopped"
  local pid
  pid=$(<"$dir/pid")
  kill -TERM "$pid"
  flock --timeout "$grace" "$dir/lock" true || {
    kill -KILL -- "-$pid" # the process group that setsid made
    die "$(hostname): killed $grace s after SIGTERM: goes on from an earlier checkpoint; next time a longer --grace"
  }
  echo "$(hostname): stopped"
}

[[ ${1:-} != --help ]] || { usage && exit 0; }
command=${1:-}
shift || true
case $command in
  setup) flags "venv= extras= python=" "$@" ;;
  foreground) flags "dir= lift" "$@" ;;
  start | logs | status | stop)
    flags "dir= env-file= lines= no-follow grace=" "$@"
    need dir
    need_count lines grace
    ;;
  *) die "unknown command ${command@Q}: setup, start, logs, status, stop or foreground; see launch/$script --help" ;;
esac
[[ $command != start && $command != foreground ]] || ((${#arguments[@]})) ||
  die "nothing to run: -- COMMAND… is missing"
"$command"
