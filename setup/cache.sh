# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is read by the script that sources it
# Where fetched things are kept, and the rule by which they get there. Sourced by the other scripts, not run.
#
# Everything lives under $SHOAL_CACHE, outside the clone, so that a new clone starts warm. A thing is there whole
# or not at all: it is made in a folder beside its place, marked `.complete` last, and renamed into place.
# The marker holds a checksum of what the thing was made from, so a changed pin makes it again.

SHOAL_CACHE="${SHOAL_CACHE:-$HOME/.cache/shoal}"
SHOAL_SETUP="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

# Ends with one line that says what to do.
die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# One line a step, so that a newcomer sees where the time goes.
say() { printf '%-16s %s\n' "$(basename "$0")" "$*"; }

# need COMMAND PACKAGE: ends, naming the Debian package, where a command is missing.
need() {
  command -v "$1" >/dev/null 2>&1 && return 0
  die "\`$1\` is missing; on Debian: apt-get update && apt-get install -y $2 (as root)"
}

# stamp TEXT...: what a thing is made from, as one checksum.
stamp() { printf '%s\0' "$@" | sha256sum | cut -d' ' -f1; }

# is_complete DIR STAMP: true where DIR was made whole from these inputs.
is_complete() { [ -e "$1/.complete" ] && [ "$(cat "$1/.complete")" = "$2" ]; }

# alone NAME: waits until no other run of this script works on NAME; held until this process ends.
alone() {
  mkdir -p "$SHOAL_CACHE/locks"
  exec 9>"$SHOAL_CACHE/locks/$1"
  flock -n 9 || { say "waiting for another run"; flock 9; }
}

# scratch DIR: makes an empty folder beside DIR (the same file system, so a rename is atomic), prints its name.
scratch() {
  mkdir -p "$(dirname "$1")"
  mktemp -d "$1.partial.XXXXXX"
}

# install_whole SCRATCH DIR STAMP: marks SCRATCH complete and puts it in DIR's place.
install_whole() {
  chmod 755 "$1"
  printf '%s\n' "$3" > "$1/.complete"
  rm -rf "$2"
  mv -T "$1" "$2"
}

# quietly COMMAND...: runs it without input; its output is shown only where it fails.
quietly() {
  local log
  log="$(mktemp)"
  if "$@" >"$log" 2>&1 </dev/null; then
    rm -f "$log"
  else
    tail -n 30 "$log" >&2
    rm -f "$log"
    die "failed: $*"
  fi
}

# no_arguments "$@": what the scripts without options do with their command line. Uses usage().
no_arguments() {
  [ $# -gt 0 ] || return 0
  case "$1" in
    -h|--help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
}
