# shellcheck shell=bash disable=SC2034
# Functions of all launchers: flags, quoting, and a dry run that prints exactly the commands that would be run.
set -euo pipefail

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  die "bash $BASH_VERSION is too old, 4.4 is needed (macOS: brew install bash)"

script=${0##*/}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly script root

# Flags of every command that starts the trainer.
readonly training="python= module= env+"
dry_run='' python='' module=cotmi_jax.train
env=()
arguments=()

# Prints its arguments quoted, so that the shell parses them back into the same arguments.
quote() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s' "${line# }"
}

# Runs a line of shell, or prints that line in a dry run. Exits where the line fails, since `set -e` is not in effect
# inside the left side of ||.
run() {
  if [[ $dry_run ]]; then
    printf '%s\n' "$1"
  else
    eval "$1" || exit
  fi
}

note() {
  if [[ $dry_run ]]; then
    printf '# %s\n' "$*"
  else
    printf '%s: %s\n' "$script" "$*" >&2
  fi
}

# flags "NAME= LIST+ SWITCH …" ARGUMENT…: sets each --flag's variable (- becomes _), and `arguments` to those after --.
# NAME= takes a value, LIST+ is an array and may be repeated, SWITCH takes none.
flags() {
  local known=" $1 " flag value
  shift
  while (($#)); do
    case $1 in
      --) arguments=("${@:2}") && break ;;
      --help) usage && exit 0 ;;
      --*) ;;
      *) die "unexpected argument ${1@Q}: the trainer's flags come after --" ;;
    esac
    flag=${1%%=*} && flag=${flag#--}
    if [[ $known == *" $flag "* ]]; then
      [[ $1 != *=* ]] || die "--$flag takes no value"
      value=1
    elif [[ $known == *" $flag= "* || $known == *" $flag+ "* ]]; then
      if [[ $1 == *=* ]]; then
        value=${1#*=}
      else
        [[ $# -gt 1 && $2 != --* ]] || die "--$flag needs a value: --$flag=…"
        value=$2 && shift
      fi
    else
      die "unknown flag --$flag: see launch/$script --help (the trainer's flags come after --)"
    fi
    shift
    if [[ $known == *" $flag+ "* ]]; then
      local -n list=${flag//-/_}
      list+=("$value")
      unset -n list
    else
      [[ $value ]] || die "--$flag needs a value: --$flag=…"
      printf -v "${flag//-/_}" %s "$value"
    fi
  done
  check_env
}

# Exits with an error where one of the named flags was not given.
need() {
  local flag variable
  for flag in "$@"; do
    variable=${flag//-/_}
    [[ ${!variable} ]] || die "--$flag is missing: see launch/$script --help"
  done
}

# Exits with an error where one of the named flags is not a positive integer.
need_count() {
  local flag variable
  for flag in "$@"; do
    variable=${flag//-/_}
    [[ ${!variable} =~ ^[1-9][0-9]*$ ]] || die "--$flag=${!variable} is not a whole number from 1 on"
  done
}

# The value of an --env never appears on a command line, since ps shows those to every user of the machine.
check_env() {
  local name
  for name in "${env[@]}"; do
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] ||
      die "--env takes the name of a variable and no value, which ps would show: export it, then --env=NAME"
    [[ -v $name ]] || die "--env=$name is not set here: export it first"
  done
}

# Prints the training command of an interpreter as shell words.
trainer() {
  local argument
  ((${#arguments[@]})) ||
    die "nothing to run: the trainer's flags come after --, as in -- --config=configs/cqa.py --workdir=…"
  for argument in "${arguments[@]}"; do
    [[ $argument != *$'\n'* ]] || die "a line break in ${argument@Q}: remove it, not every launcher can pass it on"
  done
  quote "$1" -m "$module" "${arguments[@]}"
}

# Prints the --workdir among the trainer's arguments; exits with an error where training lacks one.
workdir_of() {
  local index argument
  for index in "${!arguments[@]}"; do
    argument=${arguments[index]}
    case $argument in
      --workdir=*) printf '%s' "${argument#*=}" ;;
      --workdir) printf '%s' "${arguments[index + 1]:-}" ;;
      *) continue ;;
    esac
    return
  done
  [[ $module != cotmi_jax.train ]] ||
    die "--workdir is missing: -- … --workdir=DIRECTORY, from which the run is also resumed"
}

# A directory that is deleted when the launcher exits; the lines of `run` refer to it as "$scratch".
scratch=''
open_scratch() {
  trap '[[ ! $scratch ]] || rm -rf -- "$scratch"' EXIT
  # shellcheck disable=SC2016
  run 'scratch=$(mktemp -d)'
}
# Clones the commit at HEAD into it, with .git, so that starts.jsonl names the commit.
clone_code() {
  git -C "$root" rev-parse --quiet --verify HEAD >/dev/null ||
    die "$root is not a git checkout: the commit at HEAD is copied, so there has to be one"
  [[ $dry_run || ! $(git -C "$root" status --porcelain) ]] || note "uncommitted changes are not copied"
  run "git clone --quiet --depth=1 $(quote "file://$root") \"\$scratch/code\""
}
close_scratch() {
  # shellcheck disable=SC2016
  run 'rm -rf -- "$scratch"'
}
