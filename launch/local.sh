#!/usr/bin/env bash
# Training on the CPU of this machine, in one process, or in several that communicate over loopback as hosts do.
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Train on this machine's CPU, in the foreground. Several processes simulate several hosts.

  launch/local.sh [--devices=1] [--processes=1] -- TRAINER FLAGS…

  --devices=D         fake devices of each process
  --processes=P       processes, which connect at 127.0.0.1; output lines of all but the first are prefixed [process]
  --port=12355        TCP port of the first process, if there are several
  --python=python3    interpreter with pip install -e .; --module=M instead of cotmi_jax.train
  --dry-run           print the commands and run none

Ctrl-C and SIGTERM are sent to every process, which saves. If one fails, the others get SIGTERM. The exit code is that
of the first process that failed by itself. The same command again resumes from --workdir.
HELP
}

devices=1 processes=1 port=12355 python=python3
children=()

# Sends SIGTERM to every process, which then saves and exits.
end_all() {
  local child
  for child in "${children[@]}"; do kill -TERM "$child" 2>/dev/null || true; done
}

# Prints the command of a process, or of the only one.
process() {
  printf 'JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=%s ' "$devices"
  (($# == 0)) ||
    printf 'COTMI_COORDINATOR=127.0.0.1:%s COTMI_PROCESSES=%s COTMI_PROCESS_ID=%s ' "$port" "$processes" "$1"
  trainer "$python"
}

# Starts a line of shell in the background, or prints it.
start() {
  run "$1 &"
  [[ $dry_run ]] || children+=("$!")
}

# by_itself CODE: whether the process itself failed, not a peer (75), and it got no SIGTERM (143).
by_itself() {
  (($1 && $1 != 75 && $1 != 143))
}

# Waits for every process; returns the exit code of the first that failed by itself, which exits after
# the others, since it notifies them first.
wait_for_all() {
  local child code result=0
  local -a left=("${children[@]}") running
  while ((${#left[@]})); do
    sleep 0.2 || true # Ctrl-C ends it too
    running=()
    for child in "${left[@]}"; do
      if kill -0 "$child" 2>/dev/null; then
        running+=("$child")
        continue
      fi
      code=0
      wait "$child" || code=$?
      ((!code || result)) || end_all
      if ((!result)) || { by_itself "$code" && ! by_itself "$result"; }; then result=$code; fi
    done
    left=("${running[@]}")
  done
  return "$result"
}

flags "dry-run python= module= devices= processes= port=" "$@"
need_count devices processes port
trainer python >/dev/null
workdir_of >/dev/null
trap end_all TERM INT
if ((processes == 1)); then
  start "$(process)"
else
  start "$(process 0)"
  # Ctrl-C must not end what prints the output of processes that are still saving.
  for ((index = 1; index < processes; index++)); do
    start "$(process "$index") > >(trap '' INT; sed -u 's/^/[$index] /') 2> >(trap '' INT; sed -u 's/^/[$index] /' >&2)"
  done
fi
if [[ $dry_run ]]; then
  echo wait
else
  wait_for_all
fi
