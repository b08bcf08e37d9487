#!/usr/bin/env bash
# A search over a Slurm cluster: each task of this array is one worker, and all share one study in PostgreSQL.
#
#   1. Study file, data and the study file's storage folder lie where all nodes see them. The database does not:
#      SQLite on a network file system loses writes.
#   2. The database's URL goes into the environment, and its password into a file that only you can read, since Slurm
#      keeps a job's environment:
#        export MMSEARCH_STORAGE=postgresql://mmsearch@db.example.org:5432/mmsearch
#        a line db.example.org:5432:mmsearch:mmsearch:PASSWORD in ~/.pgpass, or in the file that PGPASSFILE names
#        chmod 600 ~/.pgpass
#   3. In the environment that has mmsearch, which sbatch hands on, submit the study file, and its total if that is not
#      the one that the file says:
#        sbatch --array=0-15 deploy/slurm.sh studies/digits.toml 500
#      or a task a GPU:
#        sbatch --array=0-7 --gres=gpu:1 --cpus-per-task=4 deploy/slurm.sh studies/digits.toml 500
#
#   mmsearch status studies/digits.toml    how it goes, from any machine that reaches the database
#   scancel --state=PENDING JOBID          first, where tasks still wait: they would begin later, and go on
#   mmsearch stop studies/digits.toml      ends it: all tasks hand their trials back, and end
#   The same sbatch again                  more tasks, at any time; or goes on where it was, and the total stays exact
#
# Shortly before the time limit a task ends its epoch, writes a checkpoint, hands its trial back and queues itself again.
#
#SBATCH --job-name=mmsearch
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mmsearch-%A_%a.log

set -euo pipefail

readonly WAIT_S=1800 # for the first task to make the study

fail() {
  echo "slurm.sh: $*" >&2
  exit 2
}

[[ $# -ge 1 && $# -le 2 ]] || fail "usage: sbatch deploy/slurm.sh STUDY [TRIALS]"
study=$1
trials=${2:-}
[[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || fail "submit it with sbatch, as an array"
[[ ${MMSEARCH_STORAGE:-} == postgresql* ]] || fail "set MMSEARCH_STORAGE to the URL of a PostgreSQL database"
if [[ $MMSEARCH_STORAGE =~ ://[^/@]*:.*@ || ${MMSEARCH_STORAGE,,} =~ [?\&]password= || -n ${PGPASSWORD:-} ]]; then
  fail "the password belongs into ~/.pgpass or the file that PGPASSFILE names, and not into the environment"
fi
passwords=${PGPASSFILE:-$HOME/.pgpass}
if [[ -e $passwords && $(stat -Lc %a "$passwords") != [46]00 ]]; then
  fail "$passwords can be read by others, and is ignored: chmod 600 $passwords"
fi

if [[ $SLURM_ARRAY_TASK_ID == "${SLURM_ARRAY_TASK_MIN:-0}" ]]; then
  command=(mmsearch launch "$study" --workers 1) # makes the study, or goes on with it
  [[ -z $trials ]] || command+=(--trials "$trials")
else
  command=(mmsearch worker "$study" --workers 1 --wait "$WAIT_S")
fi

worker=
asked=
# shellcheck disable=SC2317 # traps call it
stop() { # a launcher that is asked twice stops at once
  if [[ -z $asked && -n $worker ]]; then kill -TERM "$worker" 2>/dev/null || true; fi
  if [[ $asked != cancel ]]; then asked=$1; fi
}
trap 'stop time' USR1   # the time limit is near
trap 'stop cancel' TERM # scancel; or a preemption, after which Slurm queues the task again by itself

"${command[@]}" &
worker=$!
[[ -z $asked ]] || kill -TERM "$worker" # before it could be told
code=0
wait "$worker" || code=$?
while kill -0 "$worker" 2>/dev/null; do # a signal came, and it is ending its epoch
  code=0
  wait "$worker" || code=$?
done

if [[ $asked == time && $code -ne 0 ]]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # SLURM_JOB_ID is the whole array's for one of its tasks
fi
exit "$code"
