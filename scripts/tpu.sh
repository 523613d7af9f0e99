#!/usr/bin/env bash
# From a Google Cloud project to a table on a TPU: creates a TPU slice, installs this working tree on all of its hosts, runs
# `regcache` there, and deletes the slice. `docs/cloud_tpu.md` tells the story.
#
#   scripts/tpu.sh [--dry-run] create             the slice (all settings below are read from the environment)
#   scripts/tpu.sh [--dry-run] setup              this working tree's last commit, installed on every host
#   scripts/tpu.sh [--dry-run] devices            what JAX sees on every host
#   scripts/tpu.sh [--dry-run] run ARGUMENT...    regcache run --distributed ARGUMENT... on every host, until all are done
#   scripts/tpu.sh [--dry-run] regcache ARGUMENT...   any command, on the first host alone
#   scripts/tpu.sh [--dry-run] stop               ends what `run` has started, on every host
#   scripts/tpu.sh [--dry-run] delete
#
# --dry-run prints the commands, one a line, and runs none.
set -euo pipefail

NAME=${NAME:-regcache}                     # of the slice
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-8}                  # v5litepod-8: eight v5e chips of one host; v5litepod-16 and more: several hosts
VERSION=${VERSION:-v2-alpha-tpuv5-lite}    # the hosts' image
EXTRAS=${EXTRAS:-tpu,hub,gcs}
FOLDER=regcache_jax                        # on the hosts, in the home folder

dry_run=false
if [ "${1:-}" = --dry-run ]; then dry_run=true; shift; fi

usage() { sed -n '5,11s/^# *//p' "$0" >&2; exit 2; }

# Runs a command, or prints it as a line that a shell would read back.
do_or_say() {
  if ! $dry_run; then "$@"; return; fi
  local line='' word
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  echo "${line# }"
}

tpu() { do_or_say gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }

# $1: worker (all, or a number); the rest: a command line for it, in the project's folder.
on() {
  local worker=$1; shift
  tpu ssh "$NAME" --worker="$worker" --command="cd $FOLDER && $*"
}

# The arguments as words of a command line.
words() { [ $# = 0 ] || printf ' %q' "$@"; }

settings() { if [ -n "${TFDS_DATA_DIR:-}" ]; then printf 'TFDS_DATA_DIR=%q ' "$TFDS_DATA_DIR"; fi; }

command=${1:-}; shift || usage
case $command in
  create)
    tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION"
    ;;
  setup)
    archive=${TMPDIR:-/tmp}/regcache_jax-$NAME.tar.gz
    do_or_say git archive --format=tar.gz --output="$archive" HEAD
    tpu scp "$archive" "$NAME:regcache_jax.tar.gz" --worker=all
    # uv brings the Python that JAX wants (3.11 or later), which a host's image may not have.
    tpu ssh "$NAME" --worker=all --command="rm -rf $FOLDER && mkdir $FOLDER && tar xzf regcache_jax.tar.gz -C $FOLDER && \
cd $FOLDER && { python3 -m pip install --quiet --user uv || python3 -m pip install --quiet --user --break-system-packages uv; } && \
python3 -m uv venv --quiet --python 3.11 .venv && \
python3 -m uv pip install --quiet --python .venv --constraint constraints.txt --editable '.[$EXTRAS]' && \
python3 -m uv pip install --quiet --python .venv --no-deps open_clip_torch"
    ;;
  devices)
    on all ".venv/bin/python -c 'from regcache_jax import distributed; distributed.initialize(); \
import jax; print(jax.process_index(), jax.local_devices())'"
    ;;
  run)
    [ $# -gt 0 ] || usage
    on all "$(settings).venv/bin/regcache run --distributed$(words "$@")"
    ;;
  regcache)
    [ $# -gt 0 ] || usage
    on 0 "$(settings).venv/bin/regcache$(words "$@")"
    ;;
  stop)
    on all "pkill --full '[r]egcache run --distributed' || true"
    ;;
  delete)
    tpu delete "$NAME" --quiet
    ;;
  *)
    usage
    ;;
esac
