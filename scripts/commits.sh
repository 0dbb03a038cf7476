#!/usr/bin/env bash
# Checks commit messages: a subject of at most 60 characters, and a body that says why.
# usage: scripts/commits.sh [BASE]     the commits after BASE, up to HEAD, merges left out
#
# Without BASE it is the commit that added this file: what is older was written before the rule.
# Exit: 0 all good (or no git history here), 1 a message that breaks the rule, 2 no such BASE.
set -euo pipefail
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/.."
if ! git rev-parse --verify -q HEAD >/dev/null; then
    echo "skip: no git history here"
    exit 0
fi
base=${1:-$(git log --diff-filter=A --format=%H -- scripts/commits.sh | tail -n 1)}
if [ -z "$base" ]; then
    echo "skip: the rule is not committed yet"
    exit 0
fi
if ! git rev-parse --verify -q "$base^{commit}" >/dev/null; then
    echo "no such commit: $base" >&2
    exit 2
fi
checked=0 bad=0
while IFS= read -r commit; do
    subject=$(git log -1 --format=%s "$commit")
    # A sign-off alone says no why.
    body=$(git log -1 --format=%b "$commit" | grep -vE '^[A-Z][A-Za-z-]+: ' || true)
    checked=$((checked + 1))
    if [ ${#subject} -gt 60 ]; then
        echo "${commit:0:9}: the subject has ${#subject} characters, limit 60: $subject"
        bad=$((bad + 1))
    fi
    if [ -z "${body//[[:space:]]/}" ]; then
        echo "${commit:0:9}: no body that says why: $subject"
        bad=$((bad + 1))
    fi
done < <(git rev-list --no-merges "$base..HEAD")
echo "$checked commit messages checked, $bad faults"
[ "$bad" = 0 ]
