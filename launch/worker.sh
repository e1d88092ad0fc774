#!/usr/bin/env bash
# A run on one machine: sets the machine up, and starts, follows and stops the training there.
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
A run on one machine. The other launchers, except local.sh, call this script; it also works by itself.

  launch/worker.sh setup  --venv=DIR [--extras=tpu] [--python=PYTHON]   make the virtual environment
  launch/worker.sh start  --dir=DIR [--env-file=FILE] -- COMMAND…        run COMMAND; continues after this shell exits
  launch/worker.sh logs   --dir=DIR [--lines=N] [--no-follow]
  launch/worker.sh status --dir=DIR                      none, running, finished, stopped, interrupted or failed N
  launch/worker.sh stop   --dir=DIR [--grace=300]                        SIGTERM, so that the run saves; later SIGKILL
  launch/worker.sh foreground [--dir=DIR] [--lift] -- COMMAND…   run COMMAND, forwarding SIGTERM; exits with 143 if
                                                         interrupted

--dir       a different directory for each run; holds log, pid, exit (the exit code) and lock (held while COMMAND runs).
--env-file  is sourced, and deleted, before COMMAND starts.
--lift      exit with COMMAND's code, but with 181 to 254 in place of 1 to 74. srun returns the highest code of all
            tasks, which then is that of the failed task: the others end with 75, or with 128 plus a signal's number
setup uses the first of python3.12, python3.11 and python3 that is at least 3.11, or else installs 3.12 with uv.
HELP
}

dir='' lift='' env_file='' lines=50 no_follow='' grace=300 venv='' extras=tpu

setup() {
  local found=''
  need venv
  for found in ${python:+"$python"} python3.12 python3.11 python3 ''; do
    [[ ! $found ]] || ! "$found" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || break
  done
  [[ ! $python || $found == "$python" ]] || die "--python=$python is not a CPython 3.11 or newer with venv"
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
  touch "$venv/ready" # tpu_vm.sh checks it, so that a failed installation does not count as set up
  echo "$(hostname): $("$venv/bin/python" --version) in $venv is ready"
}

running() {
  [[ -e $dir/lock ]] && ! flock --nonblock "$dir/lock" true
}

start() {
  mkdir -p "$dir"
  exec 9>"$dir/lock" # the run inherits it, so that the lock is held as long as any of its processes lives
  flock --nonblock 9 || {
    [[ ! $env_file ]] || rm -f "$env_file"
    die "$(hostname): $dir has a run already: stop it first, or use another --dir"
  }
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

# Called without --dir in a container, with --dir by `start`.
foreground() {
  local child code interrupted=''
  trap 'interrupted=1; kill -TERM "$child" 2>/dev/null' TERM
  "${arguments[@]}" &
  child=$!
  [[ ! $dir ]] || echo $$ >"$dir/pid"
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a trapped signal interrupts wait
  code=0
  wait "$child" || code=$?
  # The trainer exits with 0 once it has saved on SIGTERM, and with 75 where another host was lost. Neither run is
  # finished or failed, so the code is 143, which is also one of the codes from 127 on after which XPK restarts.
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
    echo interrupted # `foreground` ended without writing an exit code, for example at a reboot
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
    die "$(hostname): killed $grace s after SIGTERM: it resumes from an earlier checkpoint; use a longer --grace"
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
